"""The small parts of the agent: what it remembers, holds, says and counts."""

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tinylora_worker.agent import journal as journals
from tinylora_worker.agent.bench import describe
from tinylora_worker.agent.board import Board
from tinylora_worker.agent.desk import Orders, UnitOrder
from tinylora_worker.agent.hold import held
from tinylora_worker.agent.journal import Journal
from tinylora_worker.agent.options import Job, Options
from tinylora_worker.agent.progress import N_LOSSES, Progress
from tinylora_worker.agent.store import FILE, Kept, Store, read
from tinylora_worker.agent.totals import Totals

from tests.flower.helpers import make_unit, make_update
from tinylora.errors import RefusedError, SettingError, StorageError
from tinylora.protocol.documents import Receipt
from tinylora.protocol.standstill import WorkerState

# --- what it remembers ------------------------------------------------------------------------------------------------


def test_what_was_wished_is_known_after_a_restart(tmp_path: Path) -> None:
    store, job = Store(tmp_path), Job(base="b", data=("d",), columns={"text": "body"}, max_rank=4)
    assert store.kept == Kept() == read(tmp_path)
    store.change(is_paused=True, paused_until_s=7.5, job=job)
    store.change(is_finishing=True)
    assert Store(tmp_path).kept == Kept(
        is_paused=True, paused_until_s=7.5, is_finishing=True, job=job
    )  # fmt: skip
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "{", '{"is_paused": "perhaps"}', "[]"])
def test_a_spoiled_state_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(SettingError, match=r"state\.json: not readable; move it away"):
        Store(tmp_path)


def test_a_home_remembers_what_run_needs(tmp_path: Path) -> None:
    said = Options("u", "t", "base", ("a", "b"), tmp_path, {"text": "body"}, name="me", threads=2)
    again = Options.remembered(tmp_path, Job.model_validate_json(said.job.model_dump_json()), base="", threads=3)
    assert again == Options("", "", "base", ("a", "b"), tmp_path, {"text": "body"}, name="me", threads=3)
    with pytest.raises(SettingError, match="does not know its data yet; say --data"):
        Options.remembered(tmp_path, None, base="b")
    assert "secret" not in repr(Options("u", "secret", "b", (), tmp_path))


# --- what it holds ----------------------------------------------------------------------------------------------------

HOLD = """
import sys, threading
from pathlib import Path
from tinylora_worker.agent.hold import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    threading.Event().wait()
"""


def test_a_second_agent_is_told_whose_home_it_is_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    home = tmp_path / "über all" / "home"
    with subprocess.Popen([sys.executable, "-c", HOLD, home], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with (
            pytest.raises(RefusedError, match=rf"running there already \(process {other.pid}\).*worker status"),
            held(home),
        ):
            pass
        other.kill()
    with held(home):
        assert (home / "pid").read_text() == f"{os.getpid()}\n"
    with held(home):
        pass
    assert not (home / "pid").exists()


def test_a_home_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="choose another --home"), held(tmp_path / "file" / "home"):
        pass


# --- what it says -----------------------------------------------------------------------------------------------------


def test_lines_are_shown_kept_and_written_to_a_file_that_does_not_grow_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "MAX_BYTES", 1000)
    shown: list[str] = []
    journal = Journal(tmp_path, show=shown.append)
    for number in range(200):
        journal.say(f"line {number} äöü")
    journal.note("for the file alone")
    journal.close()
    assert len(shown) == 200 and journal.latest == tuple(shown[-journals.N_LATEST :])
    files = sorted((tmp_path / "logs").iterdir())
    assert len(files) == 1 + journals.N_FILES and all(file.stat().st_size <= 1000 for file in files)
    assert files[0].read_text().endswith("for the file alone\n")
    assert "line 199 äöü" in "".join(file.read_text() for file in files)
    assert logging.getLogger("tinylora").handlers == []


# --- what it counts ---------------------------------------------------------------------------------------------------


def test_totals_count_each_unit_of_this_run_once() -> None:
    receipt = Receipt(
        run="r", unit_id="u1", worker="w", kind="train", tokens=7, payload_sha256="a" * 64, event=3, log_sha256="b" * 64
    )
    others = [receipt.model_copy(update=changes) for changes in ({"run": "other"}, {"worker": "x"}, {})]
    sketch = receipt.model_copy(update={"unit_id": "u2", "kind": "sketch", "tokens": 3})
    assert Totals.of([receipt, *others, sketch], run="r", worker="w") == Totals(2, 1, 10)
    assert Totals.of([], run="r", worker="w").sentence() == "0 accepted updates, 0 of them trained, 0 tokens"


def test_progress_is_smooth_and_forgets_the_time_of_a_pause() -> None:
    progress = Progress()
    for step in range(1, 101):
        progress.note(step=step, n_steps=120, loss=1 / step, tokens_per_s=50.0, checkpoint_age_s=1.0, now_s=2.0 * step)
    assert (progress.left_s, progress.tokens_per_s, progress.loss) == (pytest.approx(40.0), 50.0, 0.01)
    assert len(progress.losses) == N_LOSSES and progress.checkpoint_at_s == 199.0
    progress.interrupted()
    progress.note(step=101, n_steps=120, loss=0.5, tokens_per_s=100.0, checkpoint_age_s=0.0, now_s=10_000.0)
    assert progress.left_s == pytest.approx(38.0) and progress.tokens_per_s == pytest.approx(60.0)


def test_a_unit_in_one_line() -> None:
    unit = make_unit("u1", b"", node="")
    update = make_update(unit, "w", b"").model_copy(
        update={"seconds": 2.0, "tokens": 512, "n_steps": 4, "losses": (3.5, 3.25)}
    )
    assert describe(unit, update) == "u1 node root: 4 steps, loss 3.500 -> 3.250, 256 tokens/s"
    sketch = unit.model_copy(update={"kind": "sketch"})
    assert describe(sketch, update) == "u1 sketch: 2.0 s"


# --- orders -----------------------------------------------------------------------------------------------------------


def test_who_waits_for_orders_gets_them() -> None:
    working = Orders(UnitOrder.GO_ON, True, True, False, WorkerState.WORKING)
    board, got = Board(working), []
    thread = threading.Thread(target=lambda: got.append(board.wait(lambda orders: orders.unit is UnitOrder.GIVE_BACK)))
    thread.start()
    assert not board.post(working) and board.version == 0
    assert board.post(Orders(UnitOrder.HOLD, False, False, False, WorkerState.PAUSED))
    last = Orders(UnitOrder.GIVE_BACK, False, False, True, WorkerState.LEAVING)
    assert board.post(last)
    thread.join(10.0)
    assert got == [last] and board.wait_for_news(1, timeout_s=0.0) == 2
    assert board.wait(lambda orders: False, timeout_s=0.0) == last

"""Every step that reaches the disk has a failpoint; killed at any of them, the ledger loses and doubles nothing."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.ledger.life import N_OLD, STEPS, begin, live
from tinylora.errors import StorageError
from tinylora.failpoints import armed, registered, watched
from tinylora.ledger.sqlite import SqliteLedger

MINE = tuple(name for name in registered() if name.startswith(("ledger.", "lock.")))
BEFORE = tuple(name for name in MINE if name.endswith(".before"))


# --- there are enough of them ----------------------------------------------------------------------------------------

_taken: list[str] | None = None
"""Steps and failpoints, in the order in which they happened, while somebody listens."""


def _audit(event: str, arguments: tuple) -> None:
    """Whatever Python does to files, by whichever function: see https://docs.python.org/3/library/audit_events.html."""
    if _taken is None:
        return
    if event == "open" and isinstance(arguments[0], str):
        if (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            _taken.append(f"step: {event} {arguments[0]}")
    elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"):
        _taken.append(f"step: {event} {arguments[0]}")


sys.addaudithook(_audit)


@contextmanager
def listening(monkeypatch) -> Iterator[list[str]]:
    """What is done to disk within: files as audited, flushes, and the statements of SQLite that reach the disk."""
    global _taken
    taken: list[str] = []
    flush = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (taken.append("step: fsync"), flush(descriptor))[1])

    def listen(database) -> None:
        is_lasting = ("COMMIT", "PRAGMA journal_mode")
        database.set_trace_callback(lambda sql: sql.startswith(is_lasting) and taken.append(f"step: {sql}"))

    from tinylora.ledger import database as module

    connect = module._connect

    def connect_and_listen(uri: str):
        database = connect(uri)
        listen(database)
        return database

    monkeypatch.setattr(module, "_connect", connect_and_listen)
    with watched(taken.append):
        _taken = taken
        try:
            yield taken
        finally:
            _taken = None


def test_no_step_without_its_failpoints(tmp_path, monkeypatch):
    """Between any two steps that reach the disk a process can be killed, and before each it can be made to fail."""
    folder = begin(tmp_path / "run")
    with listening(monkeypatch) as taken:
        live(folder)
    # The spooled body is not the ledger's: who brings it writes it.
    taken = [what for what in taken if not what.endswith("/spool/body")]
    steps = [place for place, what in enumerate(taken) if what.startswith("step: ")]
    assert len(steps) > 60
    bare = [taken[place] for place in steps if place == 0 or not taken[place - 1].endswith(".before")]
    assert bare == []


def test_every_failpoint_is_reached(tmp_path):
    seen: set[str] = set()
    with watched(seen.add):
        live(begin(tmp_path / "run"))
    assert seen == set(MINE)
    assert len(MINE) >= 60


# --- killed at each --------------------------------------------------------------------------------------------------


def killed(folder: Path, *cases: str) -> list[dict]:
    command = [sys.executable, "-m", "tests.ledger.killing", str(folder), *cases]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2])
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def assert_nothing_was_lost(outcomes: list[dict]) -> None:
    ends = [N_OLD + sum(map(len, STEPS[:number])) for number in range(1, len(STEPS) + 1)]
    for outcome in outcomes:
        assert outcome["is_killed"], outcome
        assert outcome["is_same"], outcome
        assert outcome["acknowledged"] in (0, *ends)


SAMPLE = random.Random(0).sample(MINE, 10)


def test_killed_at_a_failpoint_it_goes_on_to_the_same_end(tmp_path):
    """Same events, same hashes, same files, as if nobody had been killed."""
    outcomes = killed(tmp_path, *(f"{name}:1" for name in SAMPLE))
    assert len(outcomes) == len(SAMPLE)
    assert_nothing_was_lost(outcomes)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_each_time_that_a_failpoint_is_reached(tmp_path):
    (counts,) = killed(tmp_path)
    cases = [f"{name}:{nth}" for name, times in counts.items() for nth in range(1, times + 1)]
    random.Random(0).shuffle(cases)
    outcomes = [outcome for first in range(0, len(cases), 50) for outcome in killed_in(tmp_path, cases, first)]
    print(f"{len(outcomes)} kills at {len(counts)} failpoints: all went on to the same end")
    assert_nothing_was_lost(outcomes)


def killed_in(tmp_path: Path, cases: list[str], first: int) -> list[dict]:
    folder = tmp_path / f"from-{first}"
    folder.mkdir()
    return killed(folder, *cases[first : first + 50])


# --- failing at each: every second one here, all of them among the slow tests ---------------------------------------


@pytest.fixture(scope="module")
def calm(tmp_path_factory) -> tuple[str, frozenset[str]]:
    return live(begin(tmp_path_factory.mktemp("calm") / "run"))


@pytest.mark.parametrize("name", BEFORE[::2])
def test_a_full_disk_at_any_step(tmp_path, calm, name):
    """The same call, tried again on the same object, does what it should have done: nothing was half-written."""
    folder = begin(tmp_path / "run")
    with armed(f"{name}:1:enospc"):
        assert live(folder, is_patient=True) == calm


@pytest.mark.parametrize("name", BEFORE[1::2])
def test_a_broken_disk_at_any_step(tmp_path, calm, name):
    """One error of the disk ends this process; the next one goes on."""
    folder = begin(tmp_path / "run")
    with armed(f"{name}:1:eio"), pytest.raises(StorageError, match="Input/output error; check the disk"):
        live(folder, is_patient=True)
    assert live(folder) == calm


@pytest.mark.slow
@pytest.mark.parametrize("name", BEFORE)
@pytest.mark.parametrize("fails", [test_a_full_disk_at_any_step, test_a_broken_disk_at_any_step])
def test_a_failing_disk_at_every_step(tmp_path, calm, name, fails):
    fails(tmp_path, calm, name)


@pytest.mark.parametrize("name", ["ledger.blob.flush", "ledger.append.commit", "ledger.snapshot.folder"])
def test_after_an_error_of_the_disk_nothing_more_is_written(tmp_path, name):
    """A flush that failed is never tried again: the next one may say yes to bytes that are lost."""
    with SqliteLedger(tmp_path) as ledger:
        with armed(f"{name}.before:1:eio"), pytest.raises(StorageError, match="Input/output error"):
            ledger.put_blob(b"bytes")
            ledger.append(STEPS[0], 0.0)
            ledger.save_snapshot(1, "state")
        before = sorted(tmp_path.rglob("*"))
        for write in (lambda: ledger.put_blob(b"other"), lambda: ledger.append(STEPS[0], 0.0), ledger.rebuild):
            with pytest.raises(StorageError, match="not written to any more"):
                write()
        assert sorted(tmp_path.rglob("*")) == before
        ledger.events()

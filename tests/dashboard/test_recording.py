"""Recordings: what is written is read back, secrets stay at home, and what is wrong is told by its line."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tinylora_coordinator.cli import app
from tinylora_coordinator.dashboard import recording
from tinylora_coordinator.dashboard.recording import (
    Happened,
    Item,
    Told,
    merged,
    open_recording,
    without_secrets,
    write_recording,
)
from tinylora_coordinator.folder import RunFolder, write_run

from tests.federation.events import JOINED, LOST, STARTED
from tests.federation.facts import FACTS, SETTINGS
from tests.ledger.histories import EVENTS
from tinylora.command_line import exit_code_of
from tinylora.errors import DataError, StorageError
from tinylora.federation.events import UnitLeased, WorkerJoined
from tinylora.ledger.sqlite import SqliteLedger
from tinylora.protocol.report import WorkerReport
from tinylora.protocol.standstill import Reason, WorkerState

REPORTS = st.builds(
    WorkerReport,
    state=st.sampled_from(WorkerState),
    reason=st.sampled_from(["", *Reason]),
    step=st.integers(0, 99),
    gpu=st.text("abc öü<>&'\"", max_size=20),
    log=st.lists(st.text(max_size=20), max_size=3).map(tuple),
)
SAID = st.tuples(st.floats(0, 1e6), st.one_of(EVENTS, REPORTS))


def as_items(said: Sequence[tuple[float, object]]) -> list[Item]:
    """In the order of time, events numbered from `run_started` on."""
    items: list[Item] = [Happened(1, 0.0, STARTED)]
    number = 1
    for at_s, what in sorted(said, key=lambda pair: pair[0]):
        if isinstance(what, WorkerReport):
            items.append(Told(at_s, "w-1", what))
            continue
        number += 1
        items.append(Happened(number, at_s, what))  # type: ignore[arg-type]
    return items


@settings(max_examples=60)
@given(st.lists(SAID, max_size=12).map(as_items), st.sampled_from(("run.jsonl", "run.jsonl.gz")))
def test_what_is_written_is_read_back(items, name):
    with TemporaryDirectory() as folder:
        file = Path(folder, name)
        assert write_recording(file, "test", items) == len(items)
        again = open_recording(file)
        expected = [
            Happened(item.number, item.at_s, without_secrets(item.event)) if isinstance(item, Happened) else item
            for item in items
        ]
        assert list(again.items()) == expected
        assert again.run == "test"
        assert again.end_s == items[-1].at_s
        assert again.n_events + again.n_reports == len(items)


def test_the_same_run_gives_the_same_bytes_packed_or_not(tmp_path):
    items = as_items([(1.0, JOINED), (2.0, LOST)])
    for name in ("a.jsonl.gz", "b.jsonl.gz", "c.jsonl"):
        write_recording(tmp_path / name, "test", items)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()) == (tmp_path / "c.jsonl").read_bytes()


def test_what_a_visitor_need_not_have_is_left_out(tmp_path):
    lease = UnitLeased(
        unit_id="u0",
        worker="w0",
        kind="train",
        node="",
        nonce="secret-nonce",
        topology_version=0,
        router_version=0,
        node_version=0,
        at_s=1,
        deadline_s=2,
    )
    joined = WorkerJoined(worker="w0", name="ann", public_key="secret-key", token="secret-token")
    write_recording(tmp_path / "run.jsonl", "test", as_items([(1.0, joined), (2.0, lease)]))
    assert "secret" not in (tmp_path / "run.jsonl").read_text()


def test_what_workers_said_stands_between_the_events():
    events = [Happened(1, 0.0, STARTED), Happened(2, 5.0, JOINED), Happened(3, 4.9, LOST)]
    said = WorkerReport(state=WorkerState.WORKING)
    told = [Told(6.0, "w-1", said), Told(2.0, "w-1", said), Told(4.95, "w-2", said)]
    assert [(item.at_s, getattr(item, "number", 0)) for item in merged(events, told)] == [
        (0.0, 1),
        (2.0, 0),
        (4.95, 0),
        (5.0, 2),
        (5.0, 3),
        (6.0, 0),
    ]


def test_rows_of_one_moment_may_have_been_written_a_hair_apart(tmp_path):
    items = [Happened(1, 5.0, STARTED), Happened(2, 4.9, JOINED)]
    write_recording(tmp_path / "run.jsonl", "test", items)
    assert open_recording(tmp_path / "run.jsonl").end_s == 5.0


# --- what is none ---------------------------------------------------------------------------------------------------

HEADER = '{"tinylora_recording": 1, "run": "test"}'
FIRST = json.dumps({"n": 1, "at_s": 0.0, "event": json.loads(STARTED.model_dump_json())})
SECOND = json.dumps({"n": 2, "at_s": 1.0, "event": json.loads(JOINED.model_dump_json())})
REPORT = '{"at_s": 1.0, "worker": "w-1", "report": {"state": "working"}}'


def changed(line: str, **fields: object) -> str:
    return json.dumps(json.loads(line) | fields)


@pytest.mark.parametrize(
    ("lines", "number", "told"),
    [
        ([], 1, "first line"),
        (["hello"], 1, "JSON"),
        (['{"tinylora_recording": 2, "run": "test"}'], 1, "tinylora_recording"),
        (['{"tinylora_recording": 1}'], 1, "run"),
        (['{"tinylora_recording": 1, "run": "../../etc"}'], 1, "run"),
        ([HEADER.replace("}", ', "more": 1}')], 1, "more"),
        ([HEADER, SECOND], 2, "expected event 1, got 2"),
        ([HEADER, FIRST.replace('"run": "test"', '"run": "other"')], 2, "is of run other"),
        ([HEADER, changed(SECOND, n=1)], 2, "begins with run_started"),
        ([HEADER, FIRST, changed(FIRST, n=2)], 3, "begins with run_started"),
        ([HEADER, FIRST, changed(SECOND, n=3)], 3, "expected event 2, got 3"),
        ([HEADER, FIRST, changed(SECOND, n="two")], 3, "n:"),
        ([HEADER, FIRST, changed(SECOND, at_s=-1)], 3, "at_s"),
        ([HEADER, FIRST, SECOND.replace("1.0", "NaN")], 3, "NaN|at_s|finite"),
        ([HEADER, FIRST, changed(SECOND, at_s=9.0), changed(REPORT, at_s=8.0)], 4, "goes back from 9 to 8"),
        ([HEADER, FIRST, changed(SECOND, event={"type": "unheard_of"})], 3, "event"),
        ([HEADER, FIRST, changed(SECOND, event={"type": "worker_lost"})], 3, "worker"),
        ([HEADER, FIRST, changed(SECOND, more=1)], 3, "more"),
        ([HEADER, FIRST, "[]"], 3, "object|dictionary"),
        ([HEADER, FIRST, "[" * 5000], 3, "JSON"),
        ([HEADER, FIRST, ""], 3, "JSON"),
        ([HEADER, FIRST, "\x00"], 3, "JSON"),
        ([HEADER, FIRST, changed(REPORT, worker="<b>")], 3, "worker"),
        ([HEADER, FIRST, changed(REPORT, report={"state": "asleep"})], 3, "state"),
        ([HEADER, FIRST, changed(REPORT, report={"state": "working", "more": 1})], 3, "more"),
        ([HEADER, FIRST, SECOND[:-20]], 3, "JSON"),
    ],
)
def test_what_is_wrong_is_told_by_its_line(tmp_path, lines, number, told):
    file = tmp_path / "run.jsonl"
    file.write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(DataError, match=rf"run\.jsonl, line {number}: .*({told})") as caught:
        open_recording(file)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(file))


def test_a_recording_without_events_is_none(tmp_path):
    (tmp_path / "run.jsonl").write_text(HEADER + "\n")
    with pytest.raises(DataError, match="no event in it"):
        open_recording(tmp_path / "run.jsonl")


def test_a_line_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "MAX_LINE_BYTES", 2000)
    (tmp_path / "run.jsonl").write_text("\n".join([HEADER, FIRST, " " * 3000]))
    with pytest.raises(DataError, match="line 3: longer than 2000 bytes"):
        open_recording(tmp_path / "run.jsonl")


@pytest.mark.parametrize("damage", ["cut", "plain", "altered"])
def test_a_damaged_archive(tmp_path, damage):
    file = tmp_path / "run.jsonl.gz"
    write_recording(file, "test", as_items([(1.0, JOINED)]))
    whole = file.read_bytes()
    data = {"cut": whole[:-30], "plain": b"hello\n", "altered": whole[:60] + b"\xff\xff\xff" + whole[63:]}[damage]
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"run\.jsonl\.gz, line \d+"):
        open_recording(file)


def test_no_such_file(tmp_path):
    with pytest.raises(StorageError, match="No such file"):
        open_recording(tmp_path / "run.jsonl")
    with pytest.raises(StorageError, match="choose another place"):
        write_recording(tmp_path / "none" / "run.jsonl", "test", as_items([]))


# --- the command ----------------------------------------------------------------------------------------------------


def call(*words: object) -> int:
    return exit_code_of(lambda: app([str(word) for word in words]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of alembic, about flwr's use
def test_record_a_run_that_is_being_written(tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "events.jsonl.gz"
    assert call("record", run, "--out", out) == 2
    write_run(RunFolder(run), SETTINGS, FACTS, None, hosts=["tree.example.org"])
    assert call("record", run, "--out", out) == 2
    assert "has not begun" in capsys.readouterr().err
    with SqliteLedger(run) as ledger:
        ledger.append([STARTED], 0.0)
        ledger.append([JOINED.model_copy(update={"public_key": "key"}), LOST], 2.5)
        assert call("record", run, "--out", out) == 0
        assert "3 lines" in capsys.readouterr().err
    assert list(open_recording(out).items()) == [
        Happened(1, 0.0, STARTED),
        Happened(2, 2.5, JOINED),
        Happened(3, 2.5, LOST),
    ]
    assert call("record", run, "--out", tmp_path / "none" / "x.jsonl") == 8

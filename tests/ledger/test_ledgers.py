"""Two ledgers, one contract; and what only the one on disk promises."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from sqlalchemy.exc import OperationalError

from tests.federation.events import JOINED, LOST, STARTED
from tests.ledger.histories import CONTENTS, HISTORIES, alive, write
from tinylora.errors import DiskFull, StorageError
from tinylora.federation.events import BlobsPruned, GatesSolved
from tinylora.federation.ledger_memory import MemoryLedger
from tinylora.federation.ports import Ledger
from tinylora.ledger.sqlite import FILE, SqliteLedger
from tinylora.protocol.documents import sha256


@pytest.fixture(params=["memory", "sqlite"])
def ledger(request, tmp_path) -> Ledger:
    return MemoryLedger() if request.param == "memory" else SqliteLedger(tmp_path / "run")


# --- the contract ----------------------------------------------------------------------------------------------------


def test_events_come_back_in_order(ledger):
    ledger.append([STARTED], 0.0)
    ledger.append([JOINED, LOST], 1.5)
    assert list(ledger.events()) == [STARTED, JOINED, LOST]
    assert list(ledger.events(after=1)) == [JOINED, LOST]
    assert list(ledger.events(after=3)) == []


def test_the_hash_of_a_log_is_that_of_its_beginning(ledger):
    ledger.append([STARTED], 0.0)
    before = ledger.chain_at(1)
    ledger.append([JOINED], 0.0)
    assert ledger.chain_at(1) == before != ledger.chain_at(2)
    with pytest.raises(StorageError, match="no event 3"):
        ledger.chain_at(3)


def test_an_empty_ledger_and_an_empty_append(ledger):
    assert list(ledger.events()) == []
    ledger.append([], 0.0)
    assert list(ledger.events()) == []


def test_blobs_are_named_by_content_and_stored_once(ledger):
    name = ledger.put_blob(b"numbers")
    assert name == sha256(b"numbers") == ledger.put_blob(b"numbers")
    assert ledger.get_blob(name) == b"numbers"
    assert ledger.get_blob(ledger.put_blob(b"")) == b""


def test_a_blob_that_is_not_there(ledger):
    with pytest.raises(StorageError, match="not in"):
        ledger.get_blob("0" * 64)


def test_a_file_is_adopted(ledger, tmp_path):
    body = tmp_path / "body"
    body.write_bytes(b"spooled")
    assert ledger.adopt_blob(body, sha256(b"spooled")) == sha256(b"spooled")
    assert ledger.get_blob(sha256(b"spooled")) == b"spooled"
    assert not body.exists()
    body.write_bytes(b"spooled")
    ledger.adopt_blob(body, sha256(b"spooled"))
    assert ledger.stored_bytes() == len(b"spooled")


def test_blobs_are_dropped_and_come_again(ledger):
    name = ledger.put_blob(b"numbers")
    ledger.put_blob(b"others")
    assert ledger.stored_bytes() == 13
    ledger.drop_blobs([name, "0" * 64])
    assert ledger.stored_bytes() == 6
    with pytest.raises(StorageError, match=name):
        ledger.get_blob(name)
    ledger.put_blob(b"numbers")
    assert ledger.get_blob(name) == b"numbers"
    assert ledger.stored_bytes() == 13


def test_the_last_snapshot_is_kept(ledger):
    assert ledger.load_snapshot() is None
    ledger.append([STARTED, JOINED], 0.0)
    ledger.save_snapshot(1, "one")
    ledger.save_snapshot(2, "two")
    assert ledger.load_snapshot() == (2, "two")


@settings(max_examples=12)
@given(HISTORIES)
def test_both_ledgers_remember_the_same(history):
    """Any history: the same events from any place, the same blobs, the same bytes in all."""
    memory = MemoryLedger()
    events = write(memory, history)
    with TemporaryDirectory() as folder, SqliteLedger(folder) as durable:
        assert write(durable, history) == events
        for after in (0, 1, len(events) // 2, len(events), len(events) + 5):
            assert list(durable.events(after)) == list(memory.events(after)) == events[after:]
        assert durable.stored_bytes() == memory.stored_bytes()
        for name in alive(events):
            assert durable.get_blob(name) == memory.get_blob(name) == CONTENTS[name]


# --- on disk ---------------------------------------------------------------------------------------------------------


def test_events_with_their_numbers_and_times(tmp_path):
    with SqliteLedger(tmp_path) as ledger:
        assert ledger.timed_events() == ()
        ledger.append([STARTED], 0.0)
        ledger.append([JOINED, LOST], 1.5)
        assert ledger.timed_events() == ((1, 0.0, STARTED), (2, 1.5, JOINED), (3, 1.5, LOST))
        assert ledger.timed_events(after=1, at_most=1) == ((2, 1.5, JOINED),)
        assert ledger.timed_events(after=3) == ()


def _pragma(ledger: SqliteLedger, text: str) -> int:
    value = ledger._database._connection.exec_driver_sql(f"PRAGMA {text}").scalar_one()
    ledger._database._connection.rollback()
    return value


def _blob_files(directory: Path) -> list[Path]:
    return [file for file in (directory / "blobs").rglob("*") if file.is_file()]


def test_what_an_event_needs_is_not_dropped(tmp_path):
    with SqliteLedger(tmp_path) as ledger:
        name = ledger.put_blob(b"kept")
        ledger.append([STARTED, GatesSolved(version=1, contributors=(), drift=1.0, blob=name)], 0.0)
        with pytest.raises(StorageError, match="an event names it"):
            ledger.drop_blobs([name])
        ledger.append([BlobsPruned(blobs=(name,))], 1.0)
        ledger.drop_blobs([name])
        assert _blob_files(tmp_path) == []


def test_an_event_cannot_name_what_is_not_there(tmp_path):
    with SqliteLedger(tmp_path) as ledger:
        ledger.append([STARTED], 0.0)
        with pytest.raises(StorageError, match=r"gates_solved: names blob aaaa.*; store it first"):
            ledger.append([JOINED, GatesSolved(version=1, contributors=(), drift=1.0, blob="a" * 64)], 1.0)
        assert list(ledger.events()) == [STARTED]


@pytest.mark.parametrize("name", ["", "abc", "../" + "a" * 61, "A" * 64, "a" * 65])
def test_only_a_hash_names_a_blob(tmp_path, name):
    with SqliteLedger(tmp_path) as ledger, pytest.raises(StorageError, match="expected 64 hex digits"):
        ledger.get_blob(name)


def test_opened_again_it_clears_away_what_nobody_names(tmp_path):
    with SqliteLedger(tmp_path) as ledger:
        ledger.put_blob(b"never named")
        (ledger.spool / "half").write_bytes(b"of a body")
    reader = SqliteLedger.open_readonly(tmp_path)
    assert len(_blob_files(tmp_path)) == 1
    with SqliteLedger(tmp_path) as ledger:
        assert _blob_files(tmp_path) == []
        assert list(ledger.spool.iterdir()) == []
        assert ledger.stored_bytes() == reader.stored_bytes() == 0
    reader.close()


def test_reopened_it_knows_everything(tmp_path):
    with SqliteLedger(tmp_path) as ledger:
        name = ledger.put_blob(b"kept")
        solved = GatesSolved(version=1, contributors=("w0",), drift=1.0, blob=name)
        ledger.append([STARTED, JOINED, solved], 0.0)
    with SqliteLedger(tmp_path) as again:
        again.append([LOST], 2.0)
        assert list(again.events()) == [STARTED, JOINED, solved, LOST]
        assert again.get_blob(name) == b"kept"


def test_one_file_for_equal_blobs(tmp_path):
    ledger = SqliteLedger(tmp_path)
    for _ in range(3):
        ledger.put_blob(b"same")
    assert len(_blob_files(tmp_path)) == 1


def test_a_flipped_byte_is_found_and_mended_by_the_same_bytes(tmp_path):
    ledger = SqliteLedger(tmp_path)
    name = ledger.put_blob(b"sound bytes")
    (file,) = _blob_files(tmp_path)
    file.write_bytes(b"sOund bytes")
    with pytest.raises(StorageError, match="altered on disk"):
        ledger.get_blob(name)
    ledger.put_blob(b"sound bytes")
    assert ledger.get_blob(name) == b"sound bytes"


def test_a_failing_append_adds_nothing(tmp_path):
    ledger = SqliteLedger(tmp_path)
    ledger.append([STARTED], 0.0)
    pages = _pragma(ledger, "page_count")
    _pragma(ledger, f"max_page_count = {pages}")
    with pytest.raises(DiskFull, match="full"):
        ledger.append([JOINED] * 500, 1.0)
    assert list(ledger.events()) == [STARTED]
    _pragma(ledger, "max_page_count = 100000")
    ledger.append([JOINED], 1.0)
    assert list(ledger.events()) == [STARTED, JOINED]


def test_disk_full_leaves_no_half_blob(tmp_path, monkeypatch):
    ledger = SqliteLedger(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="free some space"):
        ledger.put_blob(b"too much")
    assert _blob_files(tmp_path) == []


def test_flushed_before_named(tmp_path, monkeypatch):
    """The bytes are on disk before the name is, and the name before `put_blob` returns."""
    ledger = SqliteLedger(tmp_path)
    calls = []
    flush, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("flush"), flush(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (calls.append("rename"), rename(self, to))[1])
    ledger.put_blob(b"data")
    assert calls[-3:] == ["flush", "rename", "flush"]


def test_another_process_reads_while_this_one_writes(tmp_path):
    script = (
        "import sys; from tinylora.ledger.sqlite import SqliteLedger\n"
        "ledger = SqliteLedger.open_readonly(sys.argv[1])\n"
        "for line in sys.stdin: print(len(ledger.events(after=int(line))), flush=True)\n"
    )
    with SqliteLedger(tmp_path) as ledger:
        ledger.append([STARTED], 0.0)
        command = [sys.executable, "-c", script, str(tmp_path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
            assert reader.stdin is not None and reader.stdout is not None
            for n_more in (0, 2, 5):
                ledger.append([JOINED] * n_more, 1.0)
                reader.stdin.write("1\n")
                reader.stdin.flush()
                assert int(reader.stdout.readline()) == len(ledger.events()) - 1
            reader.stdin.close()
            assert reader.wait(60) == 0


def test_reading_only_is_reading_only(tmp_path):
    with SqliteLedger(tmp_path) as ledger:
        name = ledger.put_blob(b"data")
        ledger.append([STARTED], 0.0)
    reader = SqliteLedger.open_readonly(tmp_path)
    assert list(reader.events()) == [STARTED]
    assert reader.get_blob(name) == b"data"
    with pytest.raises(StorageError, match="reading only"):
        reader.append([JOINED], 0.0)
    with pytest.raises(StorageError, match="reading only"):
        reader.put_blob(b"other")
    with pytest.raises(OperationalError, match="readonly"):
        reader._database._connection.exec_driver_sql("DELETE FROM event")


def test_reading_where_nothing_is(tmp_path):
    with pytest.raises(StorageError, match="no ledger here"):
        SqliteLedger.open_readonly(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_second_writer_is_found_out(tmp_path):
    with SqliteLedger(tmp_path) as first:
        first.append([STARTED], 0.0)
        with pytest.raises(StorageError, match=rf"another writer .* \(process {os.getpid()}\)"):
            SqliteLedger(tmp_path)
        first.append([JOINED], 0.0)
    with SqliteLedger(tmp_path) as second:
        assert list(second.events()) == [STARTED, JOINED]


def test_a_file_that_is_no_ledger(tmp_path):
    (tmp_path / FILE).write_bytes(b"something else entirely, long enough to be looked at" * 20)
    with pytest.raises(StorageError, match="not a database"):
        SqliteLedger(tmp_path)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file"):
        SqliteLedger(tmp_path / "file" / "run")

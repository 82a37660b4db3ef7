"""Disks that are full or read-only, two processes at once, clocks that jump."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.federation.events import JOINED, LOST, STARTED
from tinylora.errors import DiskFull, StorageError
from tinylora.ledger.faults import BrokenDisk, as_storage_error
from tinylora.ledger.lock import FolderLock
from tinylora.ledger.sqlite import SqliteLedger

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("code", "kind", "sentence"),
    [
        (errno.ENOSPC, DiskFull, "nothing was written, free some space"),
        (errno.EDQUOT, DiskFull, "nothing was written, free some space"),
        (errno.EIO, BrokenDisk, "check the disk"),
        (errno.EROFS, StorageError, "check the folder and its permissions"),
        (errno.EACCES, StorageError, "check the folder and its permissions"),
    ],
)
def test_each_error_of_the_system_has_its_sentence(tmp_path, code, kind, sentence):
    with pytest.raises(StorageError, match=sentence) as caught, as_storage_error(tmp_path, tmp_path / "file"):
        raise OSError(code, os.strerror(code), "somewhere")
    assert type(caught.value) is kind
    assert str(caught.value).startswith("somewhere: ")


@pytest.mark.slow
def test_a_small_disk_for_real(tmp_path):
    """Needs a kernel that lets us mount in a namespace of our own; the same faults are injected everywhere else."""
    flags = "-m" if os.geteuid() == 0 else "-Urm"
    command = ["unshare", flags, sys.executable, "-m", "tests.ledger.small_disk", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    blobs, events, freed, refused, read = result.stdout.splitlines()
    assert "free some space" in blobs
    assert "free some space" in events
    assert freed == "freed: both succeed"
    assert "Read-only file system; check the folder and its permissions" in refused
    assert read == "read: True ()"


def test_a_clock_that_jumps_changes_nothing(tmp_path):
    """Times are kept beside the events for people: an hour back, an hour forward, minus zero."""
    with SqliteLedger(tmp_path) as ledger:
        for event, now_s in ((STARTED, 7200.0), (JOINED, 3600.0), (LOST, -0.0), (JOINED, 1e9)):
            ledger.append([event], now_s)
        assert ledger.verify() == ()
        assert [event.type for event in ledger.events()] == [event.type for event in (STARTED, JOINED, LOST, JOINED)]


# --- one at a time ---------------------------------------------------------------------------------------------------


def test_a_lock_is_for_one(tmp_path):
    first = FolderLock(tmp_path / "lock", holder="coordinator")
    with pytest.raises(StorageError, match=rf"another coordinator is at work here \(process {os.getpid()}\)"):
        FolderLock(tmp_path / "lock", holder="coordinator")
    first.close()
    FolderLock(tmp_path / "lock", holder="coordinator").close()


HOLD = """
import sys
from pathlib import Path
from tinylora.ledger.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]), holder="coordinator")
print("held", flush=True)
sys.stdin.readline()
"""


def test_a_killed_holder_holds_no_more(tmp_path):
    file = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(StorageError, match=rf"process {process.pid}\)"):
            FolderLock(file, holder="coordinator")
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    FolderLock(file, holder="coordinator").close()


def test_a_child_that_inherits_the_lock_holds_it(tmp_path):
    """A supervisor may die before its children: while one of them lives, nobody else takes the folder."""
    lock = FolderLock(tmp_path / "lock", holder="coordinator")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[lock.fileno()]) as child:
        lock.close()
        with pytest.raises(StorageError, match="another coordinator"):
            FolderLock(tmp_path / "lock", holder="coordinator")
        assert child.stdin is not None
        child.stdin.close()
        child.wait(60)
    FolderLock(tmp_path / "lock", holder="coordinator").close()


def test_a_run_may_be_locked_and_its_ledger_written(tmp_path):
    """The supervisor's lock and the writer's are two: its child writes while it holds the folder."""
    with FolderLock(tmp_path / "lock", holder="coordinator"), SqliteLedger(tmp_path) as ledger:
        ledger.append([STARTED], 0.0)
        with pytest.raises(StorageError, match="another writer of the ledger"):
            SqliteLedger(tmp_path)


def test_a_ledger_that_was_forgotten_is_let_go(tmp_path):
    ledger = SqliteLedger(tmp_path)
    ledger.append([STARTED], 0.0)
    del ledger
    with SqliteLedger(tmp_path) as again:
        assert again.events() == (STARTED,)


# --- snapshots -------------------------------------------------------------------------------------------------------


def test_a_snapshot_comes_back(tmp_path):
    with SqliteLedger(tmp_path) as ledger:
        assert ledger.load_snapshot() is None
        ledger.append([STARTED, JOINED], 0.0)
        ledger.save_snapshot(1, "after one")
        ledger.save_snapshot(2, 'after "two" – ü')
        ledger.append([LOST], 1.0)
    with SqliteLedger(tmp_path) as again:
        assert again.load_snapshot() == (2, 'after "two" – ü')
        with pytest.raises(StorageError, match="no event 9"):
            again.save_snapshot(9, "of the future")
        assert again.load_snapshot() == (2, 'after "two" – ü')


def test_a_snapshot_that_is_damaged_is_nothing(tmp_path):
    with SqliteLedger(tmp_path) as ledger:
        ledger.append([STARTED], 0.0)
        ledger.save_snapshot(1, "the state")
        file = tmp_path / "snapshot.json"
        sound = file.read_bytes()
        for place in range(len(sound)):
            file.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
            assert ledger.load_snapshot() in (None, (1, "the state")), place
        for length in range(0, len(sound), 7):
            file.write_bytes(sound[:length])
            assert ledger.load_snapshot() is None
        file.write_bytes(sound)
        assert ledger.load_snapshot() == (1, "the state")


def test_a_snapshot_of_another_log_or_of_other_code_is_nothing(tmp_path, monkeypatch):
    with SqliteLedger(tmp_path / "one") as one, SqliteLedger(tmp_path / "other") as other:
        one.append([STARTED, JOINED], 0.0)
        other.append([STARTED, LOST], 0.0)
        one.save_snapshot(2, "the state")
        (tmp_path / "one" / "snapshot.json").rename(tmp_path / "other" / "snapshot.json")
        assert other.load_snapshot() is None
        one.save_snapshot(2, "the state")
        monkeypatch.setattr("tinylora.ledger.snapshots.code_version", lambda: "f" * 64)
        assert one.load_snapshot() is None

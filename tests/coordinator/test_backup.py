"""A run in one file: what is in it, what it takes to be believed, and what a hostile one leaves behind: nothing."""

import hashlib
import io
import json
import os
import shutil
import sqlite3
import stat
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tinylora_coordinator import keys
from tinylora_coordinator.backup.contents import KEYS, MANIFEST, Manifest, Member
from tinylora_coordinator.backup.note import heed_note
from tinylora_coordinator.backup.restoring import MAKING
from tinylora_coordinator.backup.tarball import ArchiveReader, write_archive
from tinylora_coordinator.cli import app
from tinylora_coordinator.folder import RunFolder, write_run
from tinylora_coordinator.keys import pin_of
from tinylora_coordinator.operator_store import OperatorStore, Worker

from tests.federation.facts import FACTS, SETTINGS
from tinylora import failpoints
from tinylora.command_line import exit_code_of
from tinylora.errors import StorageError
from tinylora.federation.events import BlobsPruned, NodeAveraged, RunStarted, WorkerJoined
from tinylora.ledger.lock import FolderLock
from tinylora.ledger.sqlite import SqliteLedger

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of alembic, about flwr's use

Capture = pytest.CaptureFixture[str]
Files = dict[str, bytes]
NOW = 1_700_000_000.0
NEEDED = ("run.toml", "keys/run.key")
BLOBS = (b"one", b"two" * 1000)


def call(*words: object) -> int:
    return exit_code_of(lambda: app([str(word) for word in words]))


def averaged(data: bytes, version: int) -> NodeAveraged:
    return NodeAveraged(
        node="", version=version, contributors=("w-1",), blob=hashlib.sha256(data).hexdigest(), n_steps=version
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run and its backup: a worker, two blobs, a bundle with its note, and a file that is left out."""
    root = tmp_path_factory.mktemp("made") / "run"
    write_run(RunFolder(root), SETTINGS, FACTS, None, places="{}")
    with OperatorStore(root) as store:
        token = store.create_token(pin_of(RunFolder(root).keys), now_s=NOW)
        who = {"name": "mine", "token_id": token.token_id, "secret": token.secret, "now_s": NOW}
        assert isinstance(store.enrol("w-1", "key of w-1", **who), Worker)
    with SqliteLedger(root) as ledger:
        for data in BLOBS:
            ledger.put_blob(data)
        ledger.append([RunStarted(run="test", settings=SETTINGS, base=FACTS)], 0.0)
        ledger.append([WorkerJoined(worker="w-1", name="mine", at_s=1.0)], 1.0)
        ledger.append([averaged(data, number + 1) for number, data in enumerate(BLOBS)], 2.0)
    (root / "bundles").mkdir(mode=0o700)
    note = root / "bundles" / f"{'a' * 64}.json"
    note.write_text("{}")
    note.chmod(0o600)
    (root / "bundles" / f"{'a' * 64}.safetensors").write_text("large")
    (root / "views.sqlite").write_text("made again")
    assert call("backup", root, "--out", root.parent / "b.tar") == 0
    return root.parent


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def backup(made: Path, tmp_path: Path) -> Path:
    shutil.copy2(made / "b.tar", tmp_path / "b.tar")
    return tmp_path / "b.tar"


def printed(capsys: Capture, *words: object) -> Any:
    capsys.readouterr()
    assert call(*words, "--json") == 0
    return json.loads(capsys.readouterr().out)


def there(root: Path) -> dict[str, tuple[bytes, int]]:
    """Every file with its permissions, but for what comes and goes with use."""
    found = {file.relative_to(root).as_posix(): file for file in root.rglob("*") if file.is_file()}
    passing = ("lock", "ledger.lock", "backup.lock", "views.sqlite", "restored.json")
    return {
        name: (b"" if name.endswith(".sqlite") else file.read_bytes(), stat.S_IMODE(file.stat().st_mode))
        for name, file in found.items()
        if name not in passing and not name.endswith(("-wal", "-shm"))
    }


def left_beside(file: Path) -> list[str]:
    return [other.name for other in file.parent.iterdir() if other.name.startswith(".")]


# --- there and back ---------------------------------------------------------------------------------------------------


def test_a_restored_run_is_the_run(run: Path, tmp_path: Path, capsys: Capture) -> None:
    out, again = tmp_path / "b.tar", tmp_path / "deep" / "again"
    taken = printed(capsys, "backup", run, "--out", out)
    told = printed(capsys, "restore", out, again)
    with SqliteLedger.open_readonly(run) as old, SqliteLedger.open_readonly(again) as new:
        assert (taken["n_events"], taken["chain"]) == old.head() == new.head() == (told["n_events"], told["chain"])
    expected = there(run)
    del expected[f"bundles/{'a' * 64}.safetensors"]
    assert there(again) == expected and stat.S_IMODE(again.stat().st_mode) == 0o700
    assert {stat.S_IMODE((again / name).stat().st_mode) for name in ("keys", "blobs", "bundles")} == {0o700}
    with OperatorStore(again) as store:
        assert [worker.worker for worker in store.workers()] == ["w-1"]
    assert printed(capsys, "verify-log", again)["faults"] == []
    assert (taken["n_blobs"], taken["sha256"]) == (2, hashlib.sha256(out.read_bytes()).hexdigest())
    assert taken["bytes"] == out.stat().st_size and stat.S_IMODE(out.stat().st_mode) == 0o600
    assert not left_beside(out) and not left_beside(run / "lock") and not left_beside(again / "keys")


def test_a_new_backup_takes_an_old_ones_place_and_may_have_the_bundles(run: Path, backup: Path, tmp_path: Path) -> None:
    before = backup.read_bytes()
    assert call("backup", run, "--out", backup, "--bundles") == 0
    assert backup.read_bytes() != before
    assert call("restore", backup, tmp_path / "again") == 0
    assert (tmp_path / "again" / "bundles" / f"{'a' * 64}.safetensors").read_text() == "large"


def test_a_run_that_was_never_served_has_no_ledger_and_a_backup_all_the_same(tmp_path: Path) -> None:
    write_run(RunFolder(tmp_path / "new"), SETTINGS, FACTS, None)
    assert call("backup", tmp_path / "new", "--out", tmp_path / "b.tar") == 0
    assert call("restore", tmp_path / "b.tar", tmp_path / "again") == 0
    assert there(tmp_path / "again") == there(tmp_path / "new")


# --- beside a run that goes on ----------------------------------------------------------------------------------------


def between(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Have something happen, once, between the copy of the operator's file and that of the ledger."""
    from tinylora_coordinator.backup import taking

    copy, acts = taking.copy_database, [act]

    def copy_and_act(source: Path, target: Path) -> None:
        copy(source, target)
        while acts:
            acts.pop()()

    monkeypatch.setattr(taking, "copy_database", copy_and_act)


def test_a_worker_who_comes_between_the_two_copies_is_in_both(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SqliteLedger(run) as ledger, OperatorStore(run) as store:

        def come() -> None:
            token = store.create_token("sys", now_s=NOW)
            store.enrol("w-2", "key", name="", token_id=token.token_id, secret=token.secret, now_s=NOW)
            ledger.append([WorkerJoined(worker="w-2", name="", at_s=3.0)], 3.0)

        between(monkeypatch, come)
        assert call("backup", run, "--out", tmp_path / "b.tar") == 0
    assert call("restore", tmp_path / "b.tar", tmp_path / "again") == 0
    with OperatorStore(tmp_path / "again") as store:
        assert [worker.worker for worker in store.workers()] == ["w-1", "w-2"]


def test_a_blob_that_is_pruned_after_the_ledger_was_copied_is_not_missed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tinylora_coordinator.backup import taking

    name, hold, acts = hashlib.sha256(b"one").hexdigest(), taking._hold, [1]
    with SqliteLedger(run) as ledger:

        def prune_and_hold(root: Path, links: Path, blobs: frozenset[str]) -> list[str]:
            while acts:
                acts.pop()
                ledger.append([BlobsPruned(blobs=(name,), reason="cap")], 4.0)
                ledger.drop_blobs([name])
            return hold(root, links, blobs)

        monkeypatch.setattr(taking, "_hold", prune_and_hold)
        assert call("backup", run, "--out", tmp_path / "b.tar") == 0
    assert call("restore", tmp_path / "b.tar", tmp_path / "again") == 0
    with SqliteLedger.open_readonly(tmp_path / "again") as ledger:
        assert ledger.head()[0] == 5 and not ledger.verify()


def test_a_blob_that_is_pruned_while_it_is_read_is_read_to_its_end(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tinylora_coordinator.backup import taking

    write = taking.write_archive

    def prune_and_write(*words: Any) -> str:
        shutil.rmtree(run / "blobs")
        return write(*words)

    monkeypatch.setattr(taking, "write_archive", prune_and_write)
    assert call("backup", run, "--out", tmp_path / "b.tar") == 0
    assert call("restore", tmp_path / "b.tar", tmp_path / "again") == 0


# --- no backup --------------------------------------------------------------------------------------------------------


def no_run(run: Path, out: Path) -> None:
    (run / "run.toml").unlink()


def damaged_event(run: Path, out: Path) -> None:
    with closing(sqlite3.connect(run / "ledger.sqlite")) as database, database:
        database.execute("UPDATE event SET body = replace(body, 'mine', 'thine') WHERE number = 2")


def damaged_page(run: Path, out: Path) -> None:
    data = bytearray((run / "operator.sqlite").read_bytes())
    data[4096:8192] = b"\xff" * 4096
    (run / "operator.sqlite").write_bytes(data)


def lost_blob(run: Path, out: Path) -> None:
    shutil.rmtree(run / "blobs")


def altered_blob(run: Path, out: Path) -> None:
    next((run / "blobs").glob("*/*")).write_bytes(b"other")


@pytest.mark.parametrize(
    ("fault", "code", "sentence"),
    [
        (no_run, 2, "no run here"),
        (damaged_event, 8, "the first one: event 2: altered"),
        (damaged_page, 8, "operator.sqlite"),
        (lost_blob, 8, "No backup was made"),
        (altered_blob, 8, "altered on disk"),
    ],
)
def test_what_is_damaged_is_not_written_over_what_is_not(
    run: Path, backup: Path, capsys: Capture, fault: Callable[[Path, Path], None], code: int, sentence: str
) -> None:
    before = backup.read_bytes()
    fault(run, backup)
    assert call("backup", run, "--out", backup) == code
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: ") and sentence in told
    assert backup.read_bytes() == before and not left_beside(backup) and not left_beside(run / "lock")


def test_it_refuses_before_it_works_where_it_cannot_write(run: Path, tmp_path: Path, capsys: Capture) -> None:
    for out, reason in ((tmp_path / "no" / "b.tar", "no such folder"), (run / "b.tar", "would be lost with it")):
        assert call("backup", run, "--out", out) == 8
        assert reason in capsys.readouterr().err
    with FolderLock(run / "backup.lock", holder="backup"):
        assert call("backup", run, "--out", tmp_path / "b.tar") == 8
    assert "another backup is at work here" in capsys.readouterr().err and not (tmp_path / "b.tar").exists()


def test_a_full_disk_leaves_the_old_backup(run: Path, backup: Path, capsys: Capture) -> None:
    before = backup.read_bytes()
    for step in ("backup.flush.before:enospc", "backup.out.rename.before:eio"):
        with failpoints.armed(step):
            assert call("backup", run, "--out", backup) == 8
        assert "no backup was made" in capsys.readouterr().err
        assert backup.read_bytes() == before and not left_beside(backup)


def test_what_a_killed_backup_left_goes_with_the_next_one(run: Path, backup: Path) -> None:
    (backup.parent / ".b.tar.making-0").mkdir()
    (backup.parent / ".b.tar.making-0" / "backup.tar").write_bytes(b"half")
    (run / ".backup").mkdir()
    (run / ".backup" / ("c" * 64)).write_bytes(b"held")
    assert call("backup", run, "--out", backup) == 0
    assert not left_beside(backup) and not left_beside(run / "lock")


def test_a_ledger_of_an_older_format_is_brought_up_to_date(backup: Path, tmp_path: Path, capsys: Capture) -> None:
    """No backup has format 1, which has no hashes; it stands for whatever will be older than the present one."""
    old, now = Path(__file__).parents[1] / "ledger" / "format_1", tmp_path / "now"
    shutil.copytree(old, now)
    with SqliteLedger(now) as ledger:
        n_events, chain = ledger.head()
    files = {name: data for name, data in unpacked(backup).items() if not name.startswith("blobs/")}
    files |= {"ledger.sqlite": (old / "ledger.sqlite").read_bytes()}
    files |= {f"blobs/{file.parent.name}/{file.name}": file.read_bytes() for file in now.glob("blobs/*/*")}
    packed(files, backup)
    with_manifest(backup, lambda manifest: manifest.update(n_events=n_events, chain=chain))
    assert call("restore", backup, tmp_path / "again") == 0, capsys.readouterr().err
    assert printed(capsys, "verify-log", tmp_path / "again")["faults"] == []


def test_a_tar_of_any_length_ends_as_one(tmp_path: Path) -> None:
    """It is filled up to twenty blocks, after at least two of them."""
    for n_blocks in range(1, 42):
        file = Member(name="base.json", bytes=n_blocks * 512, sha256=hashlib.sha256(bytes(n_blocks * 512)).hexdigest())
        empty = [Member(name=name, bytes=0, sha256=hashlib.sha256(b"").hexdigest()) for name in NEEDED]
        facts = {"format": 1, "program": "", "run": "r", "run_key": "0" * 64, "folder": "", "host": "", "chain": ""}
        manifest = Manifest(**facts, taken_s=0.0, n_events=0, files=(file, *empty))
        out = io.BytesIO()
        write_archive(
            out, manifest, lambda name, n=n_blocks: io.BytesIO(bytes(n * 512) if name == "base.json" else b"")
        )
        (tmp_path / str(n_blocks)).mkdir()
        reader = ArchiveReader(io.BytesIO(out.getvalue()), len(out.getvalue()))
        assert len(list(reader.members(tmp_path / str(n_blocks)))) == 3


# --- hostile ones -----------------------------------------------------------------------------------------------------


def unpacked(file: Path) -> Files:
    with tarfile.open(file) as archive:
        return {info.name: archive.extractfile(info).read() for info in archive}  # type: ignore[union-attr]


def packed(files: Files, file: Path) -> None:
    """The same with a manifest that fits, where it can."""
    manifest = json.loads(files[MANIFEST])
    manifest["files"] = [
        {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
        if name != MANIFEST
    ]
    write_tar({**files, MANIFEST: json.dumps(manifest).encode()}, file)


def write_tar(files: Files, file: Path, *, change: Callable[[tarfile.TarInfo], None] = lambda info: None) -> None:
    with tarfile.open(file, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            change(info)
            archive.addfile(info, io.BytesIO(data))


def with_manifest(backup: Path, change: Callable[[Any], None]) -> None:
    files = unpacked(backup)
    manifest = json.loads(files[MANIFEST])
    change(manifest)
    write_tar({**files, MANIFEST: json.dumps(manifest).encode()}, backup)


def as_kind(kind: bytes, target: str = "") -> Callable[[Path], None]:
    """The first file behind the manifest is a link, a device …"""

    def change(info: tarfile.TarInfo) -> None:
        if info.name == "base.json":
            info.type, info.linkname = kind, target
            info.size = 0

    return lambda backup: write_tar(unpacked(backup), backup, change=change)


def renamed(name: str) -> Callable[[Path], None]:
    """A file of another name in the archive alone."""

    def change(info: tarfile.TarInfo) -> None:
        info.name = name if info.name == "base.json" else info.name

    return lambda backup: write_tar(unpacked(backup), backup, change=change)


def listed_as(name: str) -> Callable[[Path], None]:
    """A file of another name in archive and manifest."""

    def change(backup: Path) -> None:
        files = unpacked(backup)
        packed({(name if key == "base.json" else key): data for key, data in files.items()}, backup)

    return change


def first_size(n_bytes: int) -> Callable[[Any], None]:
    def change(manifest: Any) -> None:
        manifest["files"][0]["bytes"] = n_bytes

    return change


def huge_in_header(backup: Path) -> None:
    data = bytearray(backup.read_bytes())
    info = tarfile.TarInfo("base.json")
    info.size = 2**60
    with tarfile.open(backup) as archive:
        at = archive.getmember("base.json").offset
    data[at : at + 512] = info.tobuf(tarfile.GNU_FORMAT)
    backup.write_bytes(data)


def below_nothing(backup: Path) -> None:
    data = bytearray(backup.read_bytes())
    info = tarfile.TarInfo(MANIFEST)
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\xff" * 12
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    data[:512] = block
    backup.write_bytes(data)


def altered(backup: Path) -> None:
    data = backup.read_bytes()
    backup.write_bytes(data.replace(b"twotwo", b"twoTwo"))


def without_blob(backup: Path) -> None:
    files = unpacked(backup)
    packed({name: data for name, data in files.items() if data != b"one"}, backup)


def with_more(backup: Path) -> None:
    data = b"more"
    name = hashlib.sha256(data).hexdigest()
    packed({**unpacked(backup), f"blobs/{name[:2]}/{name}": data}, backup)


def in_database(name: str, statement: str) -> Callable[[Path], None]:
    """A backup whose sums fit, with something in a database."""

    def change(backup: Path) -> None:
        files, place = unpacked(backup), backup.with_suffix(".sqlite")
        place.write_bytes(files[name])
        with closing(sqlite3.connect(place)) as database, database:
            database.executescript(statement)
        with closing(sqlite3.connect(place)) as database:
            database.execute("PRAGMA journal_mode = DELETE")
        files[name] = place.read_bytes()
        place.unlink()
        packed(files, backup)

    return change


def of_another_key(backup: Path) -> None:
    with_manifest(backup, lambda manifest: manifest.update(run_key="0" * 64))


def wrong_key(backup: Path) -> None:
    packed({**unpacked(backup), "keys/run.key": b"no key"}, backup)


def foreign_settings(backup: Path) -> None:
    packed({**unpacked(backup), "run.toml": b"depth = 'many'\n"}, backup)


def cut(backup: Path) -> None:
    backup.write_bytes(backup.read_bytes()[:-30_000])


def cut_in_manifest(backup: Path) -> None:
    backup.write_bytes(backup.read_bytes()[:700])


def with_tail(backup: Path) -> None:
    backup.write_bytes(backup.read_bytes() + b"x" * 20_000)


def empty(backup: Path) -> None:
    backup.write_bytes(b"")


def garbage(backup: Path) -> None:
    backup.write_bytes(os.urandom(4096))


TRIGGER = "CREATE TRIGGER t AFTER INSERT ON event BEGIN DELETE FROM event; END"
HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "traversal": (renamed("../../evil"), "found '../../evil'"),
    "traversal, listed": (listed_as("../../evil"), "names '../../evil'"),
    "absolute": (listed_as("/tmp/evil"), "names '/tmp/evil'"),
    "traversal below blobs": (listed_as("blobs/../x"), "names 'blobs/../x'"),
    "unknown name": (listed_as("keys/authorized_keys"), "which no run's folder has"),
    "a folder's name for another blob": (listed_as(f"blobs/ab/{'c' * 64}"), "which no run's folder has"),
    "symbolic link": (as_kind(tarfile.SYMTYPE, "/etc/passwd"), "holds a symbolic link"),
    "hard link": (as_kind(tarfile.LNKTYPE, "manifest.json"), "holds a hard link"),
    "device": (as_kind(tarfile.CHRTYPE), "holds a device"),
    "block device": (as_kind(tarfile.BLKTYPE), "holds a device"),
    "pipe": (as_kind(tarfile.FIFOTYPE), "holds a pipe"),
    "folder": (as_kind(tarfile.DIRTYPE), "holds a folder"),
    "extended header": (as_kind(tarfile.XHDTYPE), "a record of type"),
    "sparse file": (as_kind(tarfile.GNUTYPE_SPARSE), "a record of type"),
    "huge, listed": (lambda file: with_manifest(file, first_size(2**60)), "is cut off"),
    "huge in the header": (huge_in_header, "its manifest says"),
    "a size below nothing": (below_nothing, "below nothing"),
    "negative, listed": (lambda file: with_manifest(file, first_size(-1)), "its manifest makes no sense"),
    "altered": (altered, "was altered"),
    "without a blob": (without_blob, "is missing, and its ledger needs it"),
    "with a blob more": (with_more, "does not need"),
    "trigger": (in_database("ledger.sqlite", TRIGGER), "holds a trigger"),
    "view": (in_database("operator.sqlite", "CREATE VIEW v AS SELECT 1"), "holds a view"),
    "event altered": (in_database("ledger.sqlite", "UPDATE event SET at_s = 9 WHERE number = 2"), "altered"),
    "event cut off": (in_database("ledger.sqlite", "DELETE FROM event WHERE number = 4"), "fault"),
    "table gone": (in_database("ledger.sqlite", "DROP TABLE event"), "ledger.sqlite"),
    "table of nonsense": (in_database("operator.sqlite", "DROP TABLE job; CREATE TABLE job (x)"), "operator.sqlite"),
    "no database": (lambda file: packed({**unpacked(file), "ledger.sqlite": b"x" * 5000}, file), "ledger.sqlite"),
    "another key": (of_another_key, "of another key"),
    "no key": (wrong_key, "not a private key"),
    "settings": (foreign_settings, "depth"),
    "format": (lambda file: with_manifest(file, lambda found: found.update(format=2)), "install the TinyLoRA that"),
    "cut": (cut, "cut off"),
    "cut in the manifest": (cut_in_manifest, "cut off"),
    "with a tail": (with_tail, "behind its last file"),
    "empty": (empty, "cut off"),
    "garbage": (garbage, "no backup of a run"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_backup_gets_one_sentence_and_leaves_nothing(backup: Path, capsys: Capture, what: str) -> None:
    spoil, sentence = HOSTILE[what]
    spoil(backup)
    before = sorted(backup.parent.rglob("*"))
    capsys.readouterr()
    assert call("restore", backup, backup.parent / "again") == 8
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and told[0].startswith(f"error: {backup}: ") and sentence in told[0], told
    assert told[0].endswith("; nothing was restored") and len(told[0]) < 500
    assert sorted(backup.parent.rglob("*")) == before


# --- the place --------------------------------------------------------------------------------------------------------


def test_only_a_new_or_empty_folder_is_restored_into(run: Path, backup: Path, tmp_path: Path, capsys: Capture) -> None:
    before = there(run)
    assert call("restore", backup, run) == 2 and "is not empty" in capsys.readouterr().err
    assert there(run) == before
    fresh = tmp_path / "disk"
    (fresh / "lost+found").mkdir(parents=True)
    assert call("restore", backup, fresh) == 0 and (fresh / "lost+found").is_dir()


def test_a_restore_that_was_killed_can_be_called_again(backup: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    (again / MAKING).mkdir(parents=True)
    (again / "keys").mkdir()
    (again / "keys" / "run.key").write_text("of the first try")
    assert call("serve", again, "--port", "0") == 2
    assert call("restore", backup, again) == 0 and not (again / MAKING).exists()
    assert (again / "keys" / "run.key").read_bytes() == unpacked(backup)["keys/run.key"]


def test_a_full_disk_leaves_nothing(backup: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "there").mkdir()
    for step in ("restore.note.write.before:enospc", "restore.file.rename.before:3:eio"):
        for place in (tmp_path / "again", tmp_path / "there"):
            with failpoints.armed(step):
                assert call("restore", backup, place) == 8
            assert "nothing was restored" in capsys.readouterr().err
            assert not (tmp_path / "again").exists() and not list((tmp_path / "there").iterdir())


def test_a_restored_run_is_not_served_beside_the_original(run: Path, tmp_path: Path) -> None:
    again, backup, said = tmp_path / "again", tmp_path / "b.tar", []
    assert call("backup", run, "--out", backup) == 0
    assert call("restore", backup, again) == 0
    heed_note(again, said.append)
    assert "restored from a backup" in said[0] and "served nowhere else" in said[0]
    with FolderLock(run / "lock", holder="coordinator"), pytest.raises(StorageError, match="stop that one first"):
        heed_note(again, said.append)
    heed_note(run, said.append)
    assert len(said) == 1


def test_a_certificate_of_the_operators_is_named_where_it_is_missing(
    run: Path, tmp_path: Path, capsys: Capture
) -> None:
    files = {"certificate": "/nowhere/chain.pem", "private_key": "/nowhere/key.pem", "ca": None}
    (run / "keys" / "certificate.json").write_text(json.dumps(files))
    assert call("backup", run, "--out", tmp_path / "b.tar") == 0
    found = printed(capsys, "restore", tmp_path / "b.tar", tmp_path / "again")
    assert found["missing"] == ["/nowhere/chain.pem", "/nowhere/key.pem"]


def test_every_key_of_a_run_is_in_its_backup() -> None:
    assert {f"keys/{name}" for name in (*keys._PRIVATE, *keys._PUBLIC)} == set(KEYS)

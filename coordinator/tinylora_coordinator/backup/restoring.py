"""Making a run's folder from a backup, which may be from anybody: nothing counts before all of it was looked at."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tinylora import durable
from tinylora.errors import DiskFull, SettingError, StorageError
from tinylora_coordinator.backup.contents import LEDGER, OPERATOR, SETTINGS, WRITTEN_BY_INIT, Manifest
from tinylora_coordinator.backup.databases import bring_up_to_date, read_ledger, read_operator
from tinylora_coordinator.backup.note import NOTE, note_of
from tinylora_coordinator.backup.tarball import ArchiveReader
from tinylora_coordinator.folder import RunFolder, read_run, run_id
from tinylora_coordinator.keys import read_own, run_public

MAKING = ".restoring"
_OF_A_FRESH_DISK = frozenset({"lost+found"})
_SPARE_BYTES = 16 * 2**20

durable.register_move("restore.file")
durable.register_file("restore.note")


@dataclass(frozen=True)
class Restored:
    """A run's folder that came from a backup."""

    root: Path
    manifest: Manifest
    missing: tuple[Path, ...]
    """Files elsewhere that the run needs too: the operator's own certificate and its key."""


def restore_backup(file: Path, root: Path, *, now_s: float) -> Restored:
    """Make the run's folder `root` of a backup; if anything is wrong, there is nothing in `root` afterwards.

    `run.toml` is put in place last, so that a folder with one is complete.

    Args:
        file: The backup.
        root: New, or empty.
        now_s: The time, seconds since 1970.

    Raises:
        SettingError: There is something in `root` already.
        StorageError: The file is no backup, or was altered, or `root` cannot be written.
    """
    with _told(file, root), file.open("rb") as stream:
        reader = ArchiveReader(stream, os.fstat(stream.fileno()).st_size)
        _check_room(root, reader.manifest)
        with _making(root) as making:
            for _ in reader.members(making):
                pass
            missing = _check(making, reader.manifest)
            durable.replace_file(making / NOTE, note_of(reader.manifest, file, now_s), name="restore.note", mode=0o644)
            _put_in_place(making, root)
    return Restored(root, reader.manifest, missing)


@contextmanager
def _told(file: Path, root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kind = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
        raise kind(f"{error.filename or root}: {error.strerror or error}; nothing was restored") from None
    except StorageError as error:
        raise type(error)(f"{file}: {error}; nothing was restored") from None


# --- the place ------------------------------------------------------------------------------------------------------


def _check_room(root: Path, manifest: Manifest) -> None:
    """Refuse before anything is written what cannot fit, and a folder that is in use."""
    there = {entry.name for entry in root.iterdir()} if root.is_dir() else set()
    if there - _OF_A_FRESH_DISK and MAKING not in there:
        raise SettingError(f"{root}: is not empty; restore into a new folder")
    existing = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    needed, free = sum(member.bytes for member in manifest.files), shutil.disk_usage(existing).free
    if needed + _SPARE_BYTES > free:
        raise DiskFull(f"{needed} bytes are needed in {root}, {free} are free")


@contextmanager
def _making(root: Path) -> Iterator[Path]:
    """A folder inside of the new one, on the same disk; when all is well it is empty at the end."""
    is_ours = not root.exists()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    making = root / MAKING
    if making.exists():  # an earlier restore was killed: the folder was empty before it
        _clear(root)
    try:
        root.chmod(0o700)
        making.mkdir(mode=0o700)
        yield making
        making.rmdir()
    except BaseException:
        _clear(root)
        if is_ours:
            root.rmdir()
        raise


def _clear(root: Path) -> None:
    """Take away what a restore may have put here, and nothing else."""
    for name in (SETTINGS, NOTE, *WRITTEN_BY_INIT, OPERATOR, LEDGER, "bundle.safetensors"):
        (root / name).unlink(missing_ok=True)
    for name in ("keys", "blobs", "bundles", MAKING):
        shutil.rmtree(root / name, ignore_errors=True)


def _put_in_place(making: Path, root: Path) -> None:
    """Everything is on disk, then each part gets its name, the settings last."""
    os.sync()
    parts = sorted(making.iterdir(), key=lambda part: (part.name == SETTINGS, part.name))
    for part in parts:
        durable.move_file(part, root / part.name, name="restore.file")


# --- what it must be ------------------------------------------------------------------------------------------------


def _check(making: Path, manifest: Manifest) -> tuple[Path, ...]:
    """Compare what was unpacked with what the manifest says of the run; returns files elsewhere that are not here.

    Raises:
        StorageError: They differ, or a part of the run makes no sense.
    """
    folder = RunFolder(making)
    try:
        name = run_id(read_run(folder).settings)
        own = read_own(folder.keys)
    except SettingError as error:
        raise StorageError(str(error).replace(f"{making}/", "")) from None
    if (name, run_public(folder.keys)) != (manifest.run, manifest.run_key):
        raise StorageError(f"its manifest is of run {manifest.run}, its files are of {name}, or of another key")
    _check_databases(making, manifest)
    files = () if own is None else (own.certificate, own.private_key, *(() if own.ca is None else (own.ca,)))
    return tuple(file for file in files if not file.exists())


def _check_databases(making: Path, manifest: Manifest) -> None:
    read_operator(making)
    bring_up_to_date(making)
    found = read_ledger(making)
    if (found.n_events, found.chain) != (manifest.n_events, manifest.chain):
        raise StorageError(f"its ledger has {found.n_events} events and not the {manifest.n_events} of its manifest")
    lost, odd = found.blobs - manifest.blobs, manifest.blobs - found.blobs
    if lost:
        raise StorageError(f"blob {min(lost)} is missing, and its ledger needs it")
    if odd:
        raise StorageError(f"it holds blob {min(odd)}, which its ledger does not need")

"""Taking a backup: from a run that is being served or not, without anybody there waiting for it."""

import errno
import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from tinylora import __version__, durable
from tinylora.errors import DiskFull, StorageError
from tinylora.failpoints import around, reach
from tinylora.ledger.lock import FolderLock
from tinylora_coordinator.backup.contents import (
    FORMAT,
    KEYS,
    LEDGER,
    OPERATOR,
    WRITTEN_BY_INIT,
    Manifest,
    Member,
    blob_name,
)
from tinylora_coordinator.backup.databases import LedgerFacts, copy_database, read_ledger, read_operator
from tinylora_coordinator.backup.tarball import write_archive
from tinylora_coordinator.desk import check_output
from tinylora_coordinator.folder import RunFolder, read_run, run_id
from tinylora_coordinator.keys import run_public

LOCK, HELD = "backup.lock", ".backup"
_MAKING = ".making-"
_TRIES = 8

durable.register_move("backup.out")
around("backup.flush")


@dataclass(frozen=True)
class Taken:
    """A backup, on disk."""

    file: Path
    bytes: int
    sha256: str
    manifest: Manifest


def take_backup(root: Path, out: Path, *, now_s: float, with_bundles: bool = False) -> Taken:
    """Write the run in `root` into one file, in place of an older one; that one stays until the new one is whole.

    The copy of the ledger is checked from end to end, and every blob against its name: what is damaged is not copied
    over a backup that is not.

    Args:
        root: The run's folder; it may be being served.
        out: The file to write, outside of it.
        now_s: The time, seconds since 1970.
        with_bundles: Bundles too; without, only what is known of them.

    Raises:
        SettingError: There is no run in `root`.
        StorageError: Something cannot be read or written, the run is damaged, or another backup of it is under way.
    """
    files, folder = read_run(RunFolder(root)), RunFolder(root)
    _check_place(root, out)
    with ExitStack() as held, _told(out):
        held.enter_context(FolderLock(root / LOCK, holder="backup"))
        making = held.enter_context(_beside(out))
        links = held.enter_context(_holding(root))
        facts = _copied(root, making, links)
        sources = _sources(root, making, links, facts, with_bundles=with_bundles)
        manifest = Manifest(
            format=FORMAT,
            program=__version__,
            run=run_id(files.settings),
            run_key=run_public(folder.keys),
            taken_s=now_s,
            folder=str(root.resolve()),
            host=platform.node(),
            n_events=facts.n_events,
            chain=facts.chain,
            files=tuple(_member(name, file) for name, file in sources.items()),
        )
        fresh = making / "backup.tar"
        sha256 = _write(fresh, manifest, sources)
        n_bytes = fresh.stat().st_size
        durable.move_file(fresh, out, name="backup.out")
    return Taken(out, n_bytes, sha256, manifest)


def _check_place(root: Path, out: Path) -> None:
    check_output(out)
    if out.resolve().is_relative_to(root.resolve()):
        raise StorageError(f"{out}: lies in the run's folder, and would be lost with it; choose another place")


@contextmanager
def _told(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kind = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
        raise kind(f"{error.filename or out}: {error.strerror or error}; no backup was made") from None


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A folder beside the file, for what is not whole yet; what a killed backup left goes first."""
    prefix = f".{out.name}{_MAKING}"
    for left in out.parent.glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)
    making = Path(tempfile.mkdtemp(prefix=prefix, dir=out.parent))
    try:
        yield making
    finally:
        shutil.rmtree(making, ignore_errors=True)


@contextmanager
def _holding(root: Path) -> Iterator[Path]:
    """A folder in the run's, where second names keep blobs from going while they are read."""
    links = root / HELD
    shutil.rmtree(links, ignore_errors=True)
    try:
        yield links
    finally:
        shutil.rmtree(links, ignore_errors=True)


# --- one moment -----------------------------------------------------------------------------------------------------


def _copied(root: Path, making: Path, links: Path) -> LedgerFacts:
    """Copies of both databases that fit each other, with every blob held that they need.

    The operator's file comes first. An order is noted as done there after the ledger has its events, so what the older
    file still has to do is at worst done again, which harms nothing; the other way round a revocation could be noted as
    done and be in no event. Should a worker have come in between, the ledger would know one whom the operator does not:
    then both are taken again. So they are when the rounds have pruned a blob meanwhile.
    """
    before: frozenset[str] | None = None
    n_events = -1
    for _ in range(_TRIES):
        for name in (OPERATOR, LEDGER):
            (making / name).unlink(missing_ok=True)
            if (root / name).exists():
                copy_database(root / name, making / name)
        known, facts = read_operator(making), read_ledger(making)
        missing = _hold(root, links, facts.blobs)
        strangers = facts.workers - known
        if missing and facts.n_events == n_events:
            raise StorageError(f"blob {missing[0]}: not in {root}; look at it with verify-log. No backup was made")
        if not missing and (not strangers or strangers == before):
            return facts
        before, n_events = strangers, facts.n_events
    raise StorageError(f"{root}: blobs are pruned faster than they can be looked at; try again, or raise disk_cap_mib")


def _hold(root: Path, links: Path, blobs: frozenset[str]) -> list[str]:
    """Give each blob a second name; returns those that are not there. Where links cannot be made, it is hoped for."""
    links.mkdir(mode=0o700, exist_ok=True)
    missing = []
    for sha256 in sorted(blobs):
        try:
            os.link(root / blob_name(sha256), links / sha256)
        except FileExistsError:
            continue
        except FileNotFoundError:
            missing.append(sha256)
        except OSError:
            if not (root / blob_name(sha256)).exists():
                missing.append(sha256)
    return missing


# --- the file -------------------------------------------------------------------------------------------------------


def _sources(root: Path, making: Path, links: Path, facts: LedgerFacts, *, with_bundles: bool) -> dict[str, Path]:
    """Where each file of the backup is read from, in the order of the archive."""
    found = {name: root / name for name in (*WRITTEN_BY_INIT, *KEYS) if (root / name).is_file()}
    found |= {name: making / name for name in (OPERATOR, LEDGER) if (making / name).is_file()}
    for sha256 in sorted(facts.blobs):
        held = links / sha256
        found[blob_name(sha256)] = held if held.exists() else root / blob_name(sha256)
    notes = [*root.glob("bundles/*.json"), *(root.glob("bundles/*.safetensors") if with_bundles else ())]
    published = [root / "bundle.safetensors"] if with_bundles else []
    for file in sorted([*published, *notes]):
        if file.is_file() and not file.name.startswith("."):
            found[file.relative_to(root).as_posix()] = file
    return found


def _member(name: str, file: Path) -> Member:
    """A blob is believed to be what its name says, until it is read; the other files are hashed."""
    n_bytes = file.stat().st_size
    if name.startswith("blobs/"):
        return Member(name=name, bytes=n_bytes, sha256=name[-64:])
    with file.open("rb") as stream:
        return Member(name=name, bytes=n_bytes, sha256=hashlib.file_digest(stream, "sha256").hexdigest())


def _write(file: Path, manifest: Manifest, sources: dict[str, Path]) -> str:
    """The archive, flushed, for its owner alone; returns its hash."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        sha256 = write_archive(out, manifest, partial(_opened, sources))
        out.flush()
        reach("backup.flush.before")
        os.fsync(out.fileno())
    reach("backup.flush.after")
    return sha256


def _opened(sources: dict[str, Path], name: str) -> BinaryIO:
    return sources[name].open("rb")

"""`clean`: what this worker has put on the disk, and which of it can go.

    made again    tokens, logs, measured sizes, left-overs of processes that were killed: gone at once
    of value      key, membership, receipts, units that are under way or not yet accepted, limits: only with --all, and
                  only after the owner has typed that he means it
    not ours      whatever else lies in the home, and every link: never

The base is not here: it lies in the hub's own cache, which other programs use as well.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from filelock import FileLock, Timeout

from tinylora.errors import RefusedError, SettingError, StorageError, TinyLoraError
from tinylora.flower.outbox import UNIT, UNITS
from tinylora.flower.receipts import read_receipts
from tinylora_worker.machine import folder_bytes
from tinylora_worker.wire.private_folder import places, remove_leftovers

LOCK = "lock"
SENTENCE = "remove everything"
"""What has to be typed before anything of value goes."""


class Fate(StrEnum):
    """What `clean` does with a thing."""

    AGAIN = "made again"
    VALUE = "of value"
    FOREIGN = "not ours"


KNOWN = {
    "identity.pem": (Fate.VALUE, "the key that this worker is known by"),
    "membership.json": (Fate.VALUE, "the run that it belongs to"),
    "receipts.jsonl": (Fate.VALUE, "the run's word for accepted updates"),
    "state.json": (Fate.VALUE, "base, text and wishes, for `run`"),
    "node.json": (Fate.VALUE, "its place among the run's workers"),
    "limits.toml": (Fate.VALUE, "your limits"),
    "traffic.json": (Fate.VALUE, "the month's traffic"),
    LOCK: (Fate.VALUE, "one agent at a time"),
    "limits.lock": (Fate.VALUE, "one change of limits at a time"),
    "measured.json": (Fate.AGAIN, "sizes that were found"),
    "logs": (Fate.AGAIN, "lines of the past"),
    "tokens": (Fate.AGAIN, "tokens of your text"),
    "flower": (Fate.AGAIN, "Flower's own folder"),
    "agent.json": (Fate.AGAIN, "where an agent listens, or did"),
    "pid": (Fate.AGAIN, "number of an agent's process"),
}
"""Names at the top of a home; `units` has rules of its own."""


@dataclass(frozen=True)
class Item:
    """One thing in a home."""

    path: Path
    what: str
    n_bytes: int
    fate: Fate


@dataclass(frozen=True)
class Cleaned:
    """What `clean` did, or would do."""

    removed: tuple[Item, ...]
    kept: tuple[Item, ...]
    is_dry_run: bool

    @property
    def freed_bytes(self) -> int:
        """Bytes that are free now, or would be."""
        return sum(item.n_bytes for item in self.removed)


def survey(home: Path) -> list[Item]:
    """Everything in a home, by name.

    Raises:
        StorageError: The folder cannot be read.
    """
    try:
        found = sorted(home.iterdir()) if home.exists() else []
        return [item for path in found for item in _items(path, home)]
    except OSError as error:
        raise StorageError(f"{home}: {error.strerror or error}") from None


def clean(home: Path, *, everything: bool = False, is_dry_run: bool = False, typed: str = "") -> Cleaned:
    """What can be made again is gone; with `everything`, what is of value, too.

    Args:
        home: No agent may be working in it.
        everything: Also remove what is of value.
        is_dry_run: Remove nothing.
        typed: By the owner; `SENTENCE` where everything goes.

    Raises:
        RefusedError: An agent is working in this home.
        SettingError: `typed` is not the sentence.
        StorageError: Something cannot be removed; what came before it is gone.
    """
    if everything and not is_dry_run and typed.strip() != SENTENCE:
        raise SettingError(f"nothing was removed: everything goes only when you type: {SENTENCE}")
    if is_dry_run or not home.exists():
        return _sorted_out(survey(home), everything, is_dry_run)
    lock = FileLock(home / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RefusedError(f"{home}: a worker is running there; `tinylora-worker stop` ends it") from None
    except OSError as error:
        raise StorageError(f"{home}: {error.strerror or error}") from None
    try:
        plan = _sorted_out(survey(home), everything, is_dry_run)
        for item in plan.removed:
            if item.path != home / LOCK:
                _remove(item.path)
    finally:
        lock.release()
    if everything:
        _remove(home / LOCK)
        with suppress(OSError):  # units, and the home: unless something of others is in them
            (home / UNITS).rmdir()
        with suppress(OSError):
            home.rmdir()
    for place in places():
        remove_leftovers(place, now_s=time.time())
    return plan


def report(cleaned: Cleaned, *, as_json: bool = False) -> str:
    """For people, or one JSON object."""
    if as_json:
        content = {"dry_run": cleaned.is_dry_run, "freed_bytes": cleaned.freed_bytes}
        lists = {"removed": cleaned.removed, "kept": cleaned.kept}
        return json.dumps(content | {key: [_plain(item) for item in items] for key, items in lists.items()}, indent=1)
    verb = "would be removed" if cleaned.is_dry_run else "removed"
    lines = [f"{size(item.n_bytes):>9}  {item.path}  ({item.what}): {verb}" for item in cleaned.removed]
    lines += [f"{size(item.n_bytes):>9}  {item.path}  ({item.what}): kept, {item.fate}" for item in cleaned.kept]
    return "\n".join([*lines, f"{size(cleaned.freed_bytes):>9}  {'would be free' if cleaned.is_dry_run else 'freed'}"])


def size(n_bytes: int) -> str:
    """Bytes in three digits or so, with their unit: "12.3 MB"."""
    for unit, step in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= step:
            return f"{n_bytes / step:.1f} {unit}"
    return f"{n_bytes} B"


def _sorted_out(items: list[Item], everything: bool, is_dry_run: bool) -> Cleaned:
    goes = (Fate.AGAIN, Fate.VALUE) if everything else (Fate.AGAIN,)
    removed = tuple(item for item in items if item.fate in goes)
    return Cleaned(removed, tuple(item for item in items if item.fate not in goes), is_dry_run)


def _items(path: Path, home: Path) -> Iterator[Item]:
    if path.is_symlink():
        yield Item(path, "a link", 0, Fate.FOREIGN)
    elif path.name == UNITS and path.is_dir():
        yield from _units(path, home)
    else:
        fate, what = _judge(path)
        yield Item(path, what, _bytes(path), fate)


def _judge(path: Path) -> tuple[Fate, str]:
    if path.name in KNOWN:
        return KNOWN[path.name]
    if path.name.startswith(".") and path.name.endswith(".new") and path.is_file():
        return Fate.AGAIN, "half a file, left by a process that was killed"
    return Fate.FOREIGN, "unknown"


def _units(folder: Path, home: Path) -> Iterator[Item]:
    try:
        accepted = {(receipt.run, receipt.unit_id) for receipt in read_receipts(home)}
    except TinyLoraError:
        accepted = set()
    for path in sorted(folder.iterdir()):
        fate, what = Fate.VALUE, "a unit that is under way, or not accepted yet"
        if path.is_symlink() or not path.is_dir():
            fate, what = Fate.FOREIGN, "unknown"
        elif (name := _name_of(path)) is None:
            fate, what = Fate.AGAIN, "a unit that never arrived whole"
        elif name in accepted:
            fate, what = Fate.AGAIN, "a unit that was accepted"
        yield Item(path, what, _bytes(path), fate)


def _name_of(unit: Path) -> tuple[str, str] | None:
    """Run and unit of a folder, as its document has them; None if it never arrived whole."""
    try:
        document = json.loads((unit / UNIT).read_bytes())
        return str(document["run"]), str(document["unit_id"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return "", ""


def _bytes(path: Path) -> int:
    return folder_bytes(path) if path.is_dir() else path.lstat().st_size


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{os.fspath(path)}: {error.strerror or error}") from None


def _plain(item: Item) -> dict[str, object]:
    return {**asdict(item), "path": str(item.path)}

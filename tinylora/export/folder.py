"""A folder that is written whole or not at all."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tinylora.errors import DiskFull, StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_OURS = (".json", ".safetensors", ".md", ".jinja", ".model", ".txt")
"""Endings of what exports write; a folder with anything else in it is somebody's, and is never replaced."""


@contextmanager
def whole_folder(out: Path, *, is_forced: bool = False) -> Iterator[Path]:
    """A fresh folder beside `out`, which takes its place when the block ends well, and is gone when it does not.

    Args:
        out: Not there, or an empty folder; its parents are made.
        is_forced: Whether the folder of an earlier export may be replaced.

    Yields:
        The folder to write into.

    Raises:
        StorageError: `out` holds something, or it cannot be written.
    """
    out = Path(os.path.abspath(out))
    check_free(out, is_forced=is_forced)
    # One name, not a random one: what a killed process left behind is removed by the next.
    beside, old = (out.with_name(f".{out.name}.{state}") for state in ("part", "old"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove(beside)
        beside.mkdir()
        yield beside
        _flush(beside)
        _remove(old)
        if out.exists():
            out.replace(old)
        beside.replace(out)
    except OSError as error:
        kind = DiskFull if error.errno in _FULL else StorageError
        raise kind(f"{out}: cannot be written: {error.strerror or error}; choose another place") from None
    finally:
        _remove(beside)
        if out.exists():
            _remove(old)


def check_free(out: Path, *, is_forced: bool = False) -> None:
    """Check, before any work, that an export may be written there.

    Raises:
        StorageError: It is a file, or a folder with something in it that may not be replaced.
    """
    if not out.name or not out.exists():
        if not out.name or out.is_symlink():
            raise StorageError(f"{out}: cannot be written: expected the name of a new folder")
        return
    if not out.is_dir():
        raise StorageError(f"{out}: is a file; choose another place")
    entries = sorted(out.iterdir())
    if entries and not is_forced:
        raise StorageError(f"{out}: is not empty; choose another place, or add --force to replace an earlier export")
    strange = next((entry.name for entry in entries if not _is_ours(entry)), None)
    if strange is not None:
        raise StorageError(f"{out}: holds {strange}, which no export wrote; --force does not replace it")


def _is_ours(entry: Path) -> bool:
    if entry.is_dir():
        return entry.name.startswith("leaf-") and all(_is_ours(inner) for inner in entry.iterdir())
    return entry.suffix in _OURS


def _flush(folder: Path) -> None:
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)

"""Files that are either as they were or as they shall be, whenever the power goes.

Write beside, flush, rename, flush the folder. Each step has its failpoints, named `<name>.write.before`,
`<name>.write.after` and so on; users register them under a name of their own.

Source: Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014, section 5: a name must not reach the disk
before the bytes do, and a rename is durable only once its folder was flushed.
"""

import contextlib
import os
from pathlib import Path

from tinylora.failpoints import around, reach

_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


def register_file(name: str) -> None:
    """Register the failpoints of `replace_file` under this name."""
    around(*(f"{name}.{step}" for step in ("write", "flush", "rename", "folder")))


def register_move(name: str) -> None:
    """Register the failpoints of `move_file` under this name."""
    around(*(f"{name}.{step}" for step in ("rename", "folder")))


def register_folder(name: str) -> None:
    """Register the failpoints of `make_folder` under this name."""
    around(*(f"{name}.{step}" for step in ("make", "folder")))


def register_removal(name: str) -> None:
    """Register the failpoints of `remove_file` under this name."""
    around(f"{name}.unlink")


def replace_file(file: Path, data: bytes, *, name: str, mode: int = 0o600) -> None:
    """The file holds `data`, on disk, with these permissions; at no time does anybody see half of it.

    One process at a time may do so to one file.

    Args:
        file: In a folder that exists.
        data: All of it.
        name: Of the failpoints, registered by `register_file`.
        mode: Permissions, from the first byte on.

    Raises:
        OSError: Nothing changed; the file written beside is gone again.
    """
    # One name, not a random one: what a killed process left behind is overwritten by the next.
    fresh = file.with_name(f".{file.name}.new")
    try:
        _write(fresh, data, name, mode)
        reach(f"{name}.rename.before")
        fresh.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise
    reach(f"{name}.rename.after")
    flush_folder(file.parent, name=name)


def move_file(source: Path, target: Path, *, name: str) -> None:
    """The flushed file `source` is `target` from now on, on disk; both on one file system.

    Raises:
        OSError: Nothing was moved, or it was moved and the folder could not be flushed.
    """
    reach(f"{name}.rename.before")
    source.replace(target)
    reach(f"{name}.rename.after")
    flush_folder(target.parent, name=name)


def remove_file(file: Path, *, name: str) -> None:
    """The file is not there any more. Not flushed: what comes back after a power cut is removed again."""
    reach(f"{name}.unlink.before")
    file.unlink(missing_ok=True)
    reach(f"{name}.unlink.after")


def make_folder(folder: Path, *, name: str) -> None:
    """The folder is there, for its owner alone, and its name is on disk; one that is there is left as it is.

    Raises:
        OSError: It was not made.
    """
    if folder.is_dir():
        return
    if not folder.parent.is_dir():
        make_folder(folder.parent, name=name)
    reach(f"{name}.make.before")
    folder.mkdir(mode=0o700)
    reach(f"{name}.make.after")
    try:
        flush_folder(folder.parent, name=name)
    except BaseException:
        folder.rmdir()
        raise


def flush_folder(folder: Path, *, name: str) -> None:
    """The names in this folder are on disk; where folders cannot be opened, the rename is all there is."""
    if os.name == "nt":
        return
    reach(f"{name}.folder.before")
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    reach(f"{name}.folder.after")


def _write(file: Path, data: bytes, name: str, mode: int) -> None:
    reach(f"{name}.write.before")
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _NO_LINK, mode)
    with os.fdopen(descriptor, "wb") as out:
        out.write(data)
        out.flush()
        reach(f"{name}.write.after")
        reach(f"{name}.flush.before")
        os.fsync(out.fileno())
    reach(f"{name}.flush.after")

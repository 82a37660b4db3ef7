"""A short folder for Unix sockets that nobody else can enter, and that does not outlive its owner for long.

A socket's path holds 107 bytes (103 on macOS), a home folder may be longer. So sockets lie in the session's runtime
folder or in the system's temporary one:

    tlw-xxxxxxxx/held      locked by the process that made the folder, for as long as it lives
    tlw-xxxxxxxx/NAME      the socket

A folder whose lock is free belongs to nobody; whoever makes the next one removes it.
"""

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX = "tlw-"
_NEW_PREFIX = ".tlw-"
_LOCK_FILE = "held"
_LONGEST_PATH_BYTES = 103
_LONGEST_NAME_BYTES = len(f"/{PREFIX}xxxxxxxx/trainer.sock")
_ABANDONED_S = 60.0
"""A folder is given its final name once it is locked; one that was not within this time never will be."""


def places() -> tuple[Path, ...]:
    """Folders in which a socket's path is short enough, the best first."""
    wanted = [os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir()]
    return tuple(Path(place) for place in wanted if place and _is_fit(place))


def _is_fit(place: str) -> bool:
    is_short = len(os.fsencode(place)) + _LONGEST_NAME_BYTES <= _LONGEST_PATH_BYTES
    return is_short and os.path.isabs(place) and os.access(place, os.W_OK | os.X_OK)


class PrivateFolder:
    """Made by construction, with mode 0700; gone after `remove`.

    Args:
        where: Folders to choose from; the first in which one can be made is taken.

    Raises:
        OSError: In none of them.
    """

    def __init__(self, where: Sequence[Path]) -> None:
        self.path, self._lock = _make(where)

    def remove(self) -> None:
        """The folder and what is in it are gone."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.release(force=True)


def _make(where: Sequence[Path]) -> tuple[Path, FileLock]:
    problem = OSError(f"no folder for a socket: {', '.join(map(str, where)) or 'none'} can be written")
    for place in where:
        try:
            remove_leftovers(place, now_s=time.time())
            fresh = Path(tempfile.mkdtemp(prefix=_NEW_PREFIX, dir=place))
            lock = FileLock(fresh / _LOCK_FILE, thread_local=False)
            lock.acquire(blocking=False)
            # Only now does it get the name under which others look whether it is still somebody's.
            return fresh.rename(place / fresh.name[1:]), lock
        except OSError as error:
            problem = error
    raise problem


def remove_leftovers(place: Path, *, now_s: float) -> None:
    """Folders of processes that have died are gone from `place`; those of the living, and of others, are as they were.

    Args:
        place: Where to look.
        now_s: Seconds since 1970.
    """
    for folder in _own(place, PREFIX):
        lock = FileLock(folder / _LOCK_FILE, thread_local=False)
        try:
            lock.acquire(blocking=False)
        except (Timeout, OSError):
            continue
        shutil.rmtree(folder, ignore_errors=True)
        lock.release(force=True)
    for folder in _own(place, _NEW_PREFIX):
        if now_s - folder.lstat().st_mtime > _ABANDONED_S:
            shutil.rmtree(folder, ignore_errors=True)


def _own(place: Path, prefix: str) -> Iterator[Path]:
    for folder in place.glob(f"{prefix}????????"):
        try:
            found = folder.lstat()
        except OSError:
            continue
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
            yield folder

"""One process at a time: a lock on a file that the system lets go of when its holder dies."""

import errno
import fcntl
import os
import weakref
from pathlib import Path

from tinylora.errors import StorageError
from tinylora.failpoints import around, reach

around("lock.take")


class FolderLock:
    """Held from construction until `close`, the end of the process, or until nobody refers to it any more.

    The lock belongs to the open file, not to the process: children that inherit `fileno()` hold it too, and it is free
    when the last of them has gone. The file stays; what counts is the lock on it, never that it is there.

    Args:
        file: Made if it is not there; its folder exists.
        holder: What a holder of this lock is, for the message to those who come second.

    Raises:
        StorageError: Another process holds it, or the file cannot be made.
    """

    def __init__(self, file: Path, *, holder: str) -> None:
        self._file = file
        reach("lock.take.before")
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StorageError(f"{file}: {error.strerror}; check the folder and its permissions") from None
        self._close = weakref.finalize(self, os.close, descriptor)
        self._descriptor = descriptor
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            self._close()
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise StorageError(f"{file}: cannot be locked ({error.strerror}); use a local file system") from None
            raise StorageError(
                f"{file.parent}: another {holder} is at work here (process {pid}); stop it first, or wait for its end"
            ) from None
        reach("lock.take.after")
        self._note_pid()

    def fileno(self) -> int:
        """The descriptor that a child inherits to hold the lock too."""
        return self._descriptor

    def close(self) -> None:
        """Let go, unless a child has inherited it."""
        self._close()

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _note_pid(self) -> None:
        """Say who holds it. Only for people: on a full disk the lock works without."""
        try:
            os.pwrite(self._descriptor, f"{os.getpid():<20}\n".encode(), 0)
        except OSError:
            return

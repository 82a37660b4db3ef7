"""What SQLite and the system say when something is wrong, in our words; and whether one may go on after it."""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from tinylora.errors import DiskFull, StorageError

_FULL_ERRNO = frozenset({errno.ENOSPC, errno.EDQUOT})
_BROKEN_ERRNO = frozenset({errno.EIO})
_MALFORMED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class BrokenDisk(StorageError):
    """The disk did not take what it was given: what lies there now is unknown, so nothing more is written."""


@contextmanager
def as_storage_error(directory: Path, file: Path) -> Iterator[None]:
    """Turn what the system says into one sentence.

    Raises:
        DiskFull: No space; the same may be tried again.
        BrokenDisk: An I/O error; nothing may be tried again before the run was taken up anew.
        StorageError: Anything else.
    """
    try:
        yield
    except DBAPIError as error:
        raise _of_sqlite(error.orig, directory, file) from None
    except (sqlite3.Error, SQLAlchemyError) as error:
        raise _of_sqlite(error, directory, file) from None
    except UnicodeDecodeError as error:
        raise StorageError(f"{file}: text in it is damaged ({error}); restore it from a backup") from None
    except OSError as error:
        raise _of_system(error, directory) from None


def _of_sqlite(error: BaseException | None, directory: Path, file: Path) -> StorageError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if isinstance(error, sqlite3.IntegrityError):
        return StorageError(f"{directory}: another process wrote to this ledger; stop it, and start again")
    if code == sqlite3.SQLITE_FULL:
        return DiskFull(f"{file}: {error}; nothing was written, free some space")
    if code == sqlite3.SQLITE_IOERR:
        return BrokenDisk(f"{file}: {error}; check the disk, then start again")
    if code in _MALFORMED:
        return StorageError(f"{file}: {error}; look at it with verify-log, then restore it from a backup")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StorageError(f"{file}: {error}; another process holds it, stop that one, then start again")
    return StorageError(f"{file}: {error}; check the folder and its permissions, then start again")


def _of_system(error: OSError, directory: Path) -> StorageError:
    where, what = error.filename or directory, error.strerror or error
    if error.errno in _FULL_ERRNO:
        return DiskFull(f"{where}: {what}; nothing was written, free some space")
    if error.errno in _BROKEN_ERRNO:
        return BrokenDisk(f"{where}: {what}; check the disk, then start again")
    return StorageError(f"{where}: {what}; check the folder and its permissions, then start again")

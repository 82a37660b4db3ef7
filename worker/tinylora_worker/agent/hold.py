"""One agent in a home: HOME/lock is held while one lives. Whoever kills it frees it, so no lock is left behind."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from tinylora.errors import RefusedError, StorageError

LOCK, PID = "lock", "pid"


@contextmanager
def held(home: Path) -> Iterator[None]:
    """The home is ours alone while the context is open; it is made where it was missing, for its owner alone.

    Raises:
        RefusedError: Another agent holds it.
        StorageError: The folder cannot be written.
    """
    lock = FileLock(home / LOCK)
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock.acquire(timeout=0)
    except Timeout:
        raise RefusedError(
            f"{home}: a worker is running there already (process {_pid_in(home) or 'unknown'}); "
            "`tinylora-worker status` tells what it does, another --home makes a second worker"
        ) from None
    except OSError as error:
        raise StorageError(f"{home}: {error.strerror or error}; choose another --home") from None
    try:
        with suppress(OSError):  # for the sentence above alone
            (home / PID).write_text(f"{os.getpid()}\n")
        yield
    finally:
        (home / PID).unlink(missing_ok=True)
        lock.release()


def _pid_in(home: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        text = (home / PID).read_text(encoding="ascii").strip()
        return text if text.isdigit() else ""
    return ""

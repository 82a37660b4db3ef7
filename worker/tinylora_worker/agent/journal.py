"""Lines for people: on the screen, in memory for the status, in HOME/logs/worker.log, which does not grow for ever."""

import logging
import sys
import threading
from collections import deque
from collections.abc import Callable
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TypeAlias

from tinylora.errors import StorageError

FOLDER, FILE = "logs", "worker.log"
MAX_BYTES, N_FILES, N_LATEST = 2**20, 3, 20
Tell: TypeAlias = Callable[[str], None]


def to_stderr(line: str) -> None:
    """Show one line."""
    print(line, file=sys.stderr, flush=True)


class Journal:
    """Takes each line once, from any thread.

    Raises:
        StorageError: The log file cannot be opened.
    """

    def __init__(self, home: Path, *, show: Tell = to_stderr) -> None:
        file = home / FOLDER / FILE
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = RotatingFileHandler(file, maxBytes=MAX_BYTES, backupCount=N_FILES, encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{file}: {error.strerror or error}; choose another --home") from None
        self._file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self._show, self._latest, self._lock = show, deque[str](maxlen=N_LATEST), threading.Lock()
        self._n_said = 0

    @property
    def latest(self) -> tuple[str, ...]:
        """The last lines, oldest first."""
        with self._lock:
            return tuple(self._latest)

    def since(self, n_before: int) -> tuple[int, tuple[str, ...]]:
        """How many lines were said so far, and the latest of those after the first `n_before`, oldest first."""
        with self._lock:
            n_new = min(self._n_said - n_before, len(self._latest))
            return self._n_said, tuple(self._latest)[len(self._latest) - n_new :]

    def say(self, line: str) -> None:
        """One line for people."""
        with self._lock:
            self._latest.append(line)
            self._n_said += 1
        self.note(line)
        self._show(line)

    def note(self, line: str) -> None:
        """One line for the file alone."""
        self._file.handle(logging.LogRecord("tinylora", logging.INFO, "", 0, line, None, None))

    def close(self) -> None:
        """Nothing is written any more."""
        self._file.close()

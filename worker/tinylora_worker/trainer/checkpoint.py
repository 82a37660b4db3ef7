"""The last finished step of the unit under way, on disk: now and then while it is worked on, and once more at the end.

A step is taken in much less time than its snapshot needs to become durable, so a thread of its own writes the newest.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from tinylora import durable
from tinylora.flower.outbox import CHECKPOINT

EVERY_S = 20.0
_STEP = "worker.checkpoint"
durable.register_file(_STEP)
log = logging.getLogger(__name__)


class Written(Protocol):
    """What is written down: a snapshot."""

    @property
    def n_steps(self) -> int:
        """Finished steps."""
        ...

    def to_bytes(self) -> bytes:
        """The file."""
        ...


class Checkpoint:
    """The file of one unit, and who writes it.

    Args:
        folder: Of the unit.
        latest: The newest snapshot, from any thread; None where there is none yet.
        clock: Seconds.
    """

    def __init__(
        self, folder: Path, latest: Callable[[], Written | None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._file = folder / CHECKPOINT
        self._latest, self._clock = latest, clock
        self._lock = threading.Lock()
        self._n_steps = 0
        self._written_s = clock()

    @property
    def age_s(self) -> float:
        """Seconds since the last one was written, or since the unit was begun."""
        return self._clock() - self._written_s

    def write(self) -> bool:
        """Have the newest snapshot on disk; returns whether there is a file to go on from.

        A disk that refuses costs the checkpoint, not the unit.
        """
        with self._lock:
            snapshot = self._latest()
            if snapshot is not None and snapshot.n_steps > self._n_steps:
                try:
                    durable.replace_file(self._file, snapshot.to_bytes(), name=_STEP)
                    self._n_steps, self._written_s = snapshot.n_steps, self._clock()
                except OSError as error:
                    log.warning("%s: %s; the unit goes on without", self._file, error.strerror or error)
        return self._file.exists()

    @contextmanager
    def every(self, seconds: float) -> Iterator[None]:
        """Within it the file is never older than `seconds` and one step."""
        over = threading.Event()

        def write_now_and_then() -> None:
            while not over.wait(seconds):
                self.write()

        writer = threading.Thread(target=write_now_and_then, name="checkpoint", daemon=True)
        writer.start()
        try:
            yield
        finally:
            over.set()
            writer.join()

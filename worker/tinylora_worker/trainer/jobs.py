"""One job at a time, done by the process's main thread; whoever asked hears its events in a thread of his own.

torch keeps its number of threads for each thread that calls it, and CUDA its current device: all of it happens in one.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tinylora.errors import TinyLoraError

Event = TypeVar("Event")


class Busy(TinyLoraError):
    """Another job is under way."""


@dataclass(frozen=True)
class _Job(Generic[Event]):
    do: Callable[[Callable[[Event], None]], None]
    failed: Callable[[BaseException], Event]
    events: "queue.SimpleQueue[Event | None]" = field(default_factory=queue.SimpleQueue)
    """What happens, then None."""

    def run(self) -> None:
        """Do it. Whatever goes wrong is an event."""
        try:
            self.do(self.events.put)
        except Exception as error:
            self.events.put(self.failed(error))


class Bench:
    """Where jobs wait for the main thread; there is room for one."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._room = threading.Lock()

    def ask(
        self, do: Callable[[Callable[[Event], None]], None], failed: Callable[[BaseException], Event]
    ) -> Iterator[Event]:
        """Have a job done; its events as they come. It is done to its end also when nobody listens any more.

        Args:
            do: The job; it is given a function that tells an event.
            failed: Makes an event of an error.
        """
        job = _Job(do, failed)
        if not self._room.acquire(blocking=False):
            yield failed(Busy("the trainer does something else already, and one thing at a time"))
            return
        self._jobs.put(job)
        while (event := job.events.get()) is not None:
            yield event

    def work(self) -> None:
        """Do jobs, for ever."""
        while True:
            job = self._jobs.get()
            job.run()
            self._room.release()  # before the end is told: who hears it may ask for the next
            job.events.put(None)

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


Do = Callable[[Callable[[Event], None]], Event]
"""A job: it is given a function that tells an event, and returns the last one."""


@dataclass(frozen=True)
class _Job(Generic[Event]):
    do: Do[Event]
    failed: Callable[[BaseException], Event]
    events: "queue.SimpleQueue[Event | None]" = field(default_factory=queue.SimpleQueue)
    """What happens, then None."""

    def run(self) -> Event:
        """Do it; whatever goes wrong is its last event."""
        try:
            return self.do(self.events.put)
        except Exception as error:
            return self.failed(error)


class Bench:
    """Where jobs wait for the main thread; there is room for one."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._room = threading.Lock()

    def ask(self, do: Do[Event], failed: Callable[[BaseException], Event]) -> Iterator[Event]:
        """Have a job done; its events as they come. It is done to its end also when nobody listens any more.

        Args:
            do: The job.
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
            last = job.run()
            self._room.release()  # before the end is told: who hears it may ask for the next
            job.events.put(last)
            job.events.put(None)

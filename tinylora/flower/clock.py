"""The run's clock in a real process: monotonic, taken up where the ledger's last event left it."""

import threading
import time
from collections.abc import Callable, Iterable

from tinylora.federation.events import Event


class RunClock:
    """`tinylora.federation.ports.Clock` that wakes early.

    Args:
        started_at_s: The run's age when this process took it up.
        wake: Ends a wait when it is set: something has arrived, or the process shall stop.
        monotonic: Where time comes from.
    """

    def __init__(
        self, started_at_s: float, wake: threading.Event, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._monotonic, self._wake = monotonic, wake
        self._origin_s = monotonic() - started_at_s

    def now(self) -> float:
        """Seconds since the run was first started, without the time in which no coordinator ran."""
        return self._monotonic() - self._origin_s

    def wait(self, seconds: float) -> None:
        """Sleep at most so long."""
        self._wake.wait(max(0.0, seconds))


def age_s(events: Iterable[Event]) -> float:
    """The run's age at its last event that tells one."""
    return max((getattr(event, "at_s", 0.0) for event in events), default=0.0)

"""Whether the coordinator answers, and what its run is doing: asked beside the work, or a busy worker never hears."""

import threading
import time
from collections.abc import Callable

from tinylora.errors import NetworkError
from tinylora.flower.enrolment import Phase, StateAnswer
from tinylora.flower.pulse import Pulse

_FRESH_S = 1.0


class Lookout:
    """The latest answer of the state route, and since when there has been none.

    Args:
        ask: One question to the coordinator; raises `NetworkError`.
        changed: Called after each answer or failure.
        period_s: Seconds between two questions.
        wall: Seconds since 1970.
    """

    def __init__(
        self,
        ask: Callable[[], StateAnswer],
        changed: Callable[[], None],
        *,
        period_s: float = 10.0,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._ask, self._changed, self._wall = ask, changed, wall
        self._lock, self._asked_at_s = threading.Lock(), 0.0
        self.answer: StateAnswer | None = None
        self.unreachable_since_s = 0.0
        """Seconds since 1970; 0: it answered when it was asked last."""
        self._pulse = Pulse(self._look, period_s=period_s)

    def phase(self) -> Phase:
        """What the run is doing, by an answer that is a second old at most.

        Raises:
            NetworkError: The coordinator does not answer now.
        """
        with self._lock:
            is_fresh = 0.0 <= self._wall() - self._asked_at_s < _FRESH_S
            if self.answer is not None and is_fresh and not self.unreachable_since_s:
                return self.answer.phase
            try:
                self.answer, self.unreachable_since_s = self._ask(), 0.0
            except NetworkError:
                self.unreachable_since_s = self.unreachable_since_s or self._wall()
                raise
            finally:
                self._asked_at_s = self._wall()
                self._changed()
            return self.answer.phase

    def note_reach(self, is_reachable: bool) -> None:
        """Somebody else has asked, and was answered or not."""
        if is_reachable == bool(self.unreachable_since_s):
            self.unreachable_since_s = 0.0 if is_reachable else self._wall()
            self._changed()

    def __enter__(self) -> "Lookout":
        """Begin to look."""
        self._pulse.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Look no more."""
        self._pulse.stop()

    def _look(self) -> bool:
        try:
            self.phase()
        except NetworkError:
            return False
        return True

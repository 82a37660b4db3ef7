"""How often one address may try in vain."""

import time
from collections import deque
from collections.abc import Callable


class Tries:
    """Tries in vain of the last minute, by place. A try counts when it begins and is forgiven when it succeeds.

    So a classroom behind one address comes in at once, and who guesses tokens has few guesses.

    Args:
        per_minute: As many.
        clock: Seconds.
    """

    _MINUTE_S = 60.0

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute, self._clock = per_minute, clock
        self._at: dict[str, deque[float]] = {}

    def begin(self, place: str) -> float | None:
        """The try, to forgive it by; None where there were too many."""
        at = self._clock()
        self._forget(at)
        tries = self._at.setdefault(place, deque())
        if len(tries) >= self._per_minute:
            return None
        tries.append(at)
        return at

    def forgive(self, place: str, begun: float) -> None:
        """It succeeded."""
        if begun in self._at.get(place, ()):
            self._at[place].remove(begun)

    def _forget(self, at: float) -> None:
        for place, tries in list(self._at.items()):
            while tries and tries[0] <= at - self._MINUTE_S:
                tries.popleft()
            if not tries:
                del self._at[place]

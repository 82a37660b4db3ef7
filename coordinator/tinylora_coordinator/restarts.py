"""When a child process that died is started again, and when it is given up. Pure."""

from dataclasses import dataclass, field

FIRST_S, LONGEST_S = 0.1, 10.0
MAX_DEATHS, WITHIN_S = 10, 60.0
SETTLED_S = 5.0
"""A process that lived so long has begun properly, whatever ended it."""


@dataclass
class Restarts:
    """The deaths of one child since it last got anywhere."""

    deaths: list[float] = field(default_factory=list)

    def progress(self) -> None:
        """It got somewhere: what was before does not count any more."""
        self.deaths.clear()

    def died(self, now: float, *, lived_s: float) -> float | None:
        """Seconds to wait before it is started again; None when it is to be given up.

        The wait doubles with each death without progress.
        """
        if lived_s >= SETTLED_S:
            self.progress()
        self.deaths = [at for at in self.deaths if now - at < WITHIN_S] + [now]
        if len(self.deaths) >= MAX_DEATHS:
            return None
        return min(FIRST_S * 2 ** (len(self.deaths) - 1), LONGEST_S)

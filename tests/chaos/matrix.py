"""The kill matrix: every scenario, killed at every failpoint that it reaches, must end as if nothing had happened.

A scenario does something durable in a folder, and does it to the end when it is called again on the same folder. What
it returns says how it ended; that may depend on nothing but the scenario.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.chaos.processes import in_a_process
from tinylora import failpoints

Facts = dict[str, str]


@dataclass(frozen=True)
class Scenario:
    """Something durable."""

    name: str
    act: Callable[[Path], Facts]
    prepare: Callable[[Path], None] = lambda folder: None
    """Done once, before the first kill."""

    def __str__(self) -> str:
        """As pytest shows it."""
        return self.name


@dataclass(frozen=True)
class Kill:
    """One place and time to die."""

    scenario: Scenario
    point: str
    nth: int

    def __str__(self) -> str:
        """As pytest shows it."""
        return f"{self.scenario.name}-{self.point}-{self.nth}"


@dataclass(frozen=True)
class Outcome:
    """How a scenario went that was killed once."""

    facts: Facts
    recovery_s: float


def reached(scenario: Scenario) -> tuple[Counter[str], Facts]:
    """How often an undisturbed scenario passes each failpoint, and how it ends."""

    def record() -> tuple[Counter[str], Facts]:
        counts: Counter[str] = Counter()
        with failpoints.watched(lambda name: counts.update([name])):
            return counts, scenario.act(folder)

    with TemporaryDirectory(prefix="tinylora-chaos-") as place:
        folder = Path(place)
        scenario.prepare(folder)
        ending = in_a_process(record)
    assert ending.answer is not None, f"{scenario.name} was killed although nothing should kill it"
    return ending.answer


def kills(scenario: Scenario, counts: Counter[str], *, times: int = 1) -> Iterator[Kill]:
    """For each failpoint so many of its passes, spread evenly; a single one is that in the middle."""
    for point, n_passes in sorted(counts.items()):
        n_chosen = min(times, n_passes)
        chosen = {1 + (2 * index + 1) * n_passes // (2 * n_chosen) for index in range(n_chosen)}
        for nth in sorted(min(nth, n_passes) for nth in chosen):
            yield Kill(scenario, point, nth)


def survive(kill: Kill) -> Outcome:
    """Kill the scenario there, take it up again, and tell how it ended."""
    with TemporaryDirectory(prefix="tinylora-chaos-") as place:
        folder = Path(place)
        kill.scenario.prepare(folder)
        first = in_a_process(lambda: _armed(kill, folder))
        assert first.is_killed, f"{kill}: the scenario ended before the failpoint"
        again = in_a_process(lambda: kill.scenario.act(folder))
        assert again.answer is not None, f"{kill}: killed although nothing should kill it"
        return Outcome(again.answer, again.seconds)


def _armed(kill: Kill, folder: Path) -> Facts:
    with failpoints.armed(f"{kill.point}:{kill.nth}:kill"):
        return kill.scenario.act(folder)

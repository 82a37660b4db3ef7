"""A real run on loopback with volunteers in processes of their own; their trainers count steps in place of torch."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.worker_kills import Volunteer, enlist
from tests.coordinator.running import Coordinator, make_run, serving
from tests.flower.helpers import until
from tests.web.serving import address_in
from tests.worker.agents import trainers_of
from tinylora.federation.events import Event, TopologySet


@dataclass
class RealRun:
    """A coordinator with its dashboard, and its volunteers."""

    coordinator: Coordinator
    homes: Path
    volunteers: list[Volunteer] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Of the operator's dashboard, without a slash at its end; the latest that was told."""
        return address_in(self.coordinator.said)

    def add(self) -> Volunteer:
        """One more volunteer, at work."""
        made = enlist(self.coordinator, self.homes / f"home {len(self.volunteers)}")
        self.volunteers.append(made)
        made.start()
        return made

    def wait_for_tree(self) -> None:
        """Until every volunteer has its leaf."""
        until(lambda: self.coordinator.count(TopologySet) > 0, timeout_s=60.0, what="the tree")

    def events(self, kind: type[Event]) -> list[Event]:
        """Those of one type."""
        return [event for event in self.coordinator.events() if isinstance(event, kind)]


def kill(volunteer: Volunteer) -> None:
    """All of it at once, for good: power is off."""
    assert volunteer.process is not None
    for pid in (*trainers_of(volunteer.home), volunteer.process.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    volunteer.process.wait()


@contextmanager
def real_run(folder: Path, n_volunteers: int, **settings: object) -> Iterator[RealRun]:
    """A run that is served; nobody is left behind."""
    choices = {"leaf_steps": 1_000_000, "unit_steps": 20, "min_workers": n_volunteers, "probes": 0}
    root = make_run(folder / "run", **(choices | settings))
    with serving(root) as coordinator:
        run = RealRun(coordinator, folder)
        try:
            until(lambda: bool(run.url), timeout_s=30.0, what="the dashboard's address")
            for _ in range(n_volunteers):
                run.add()
            run.wait_for_tree()
            yield run
        finally:
            for volunteer in run.volunteers:
                if volunteer.process is not None and volunteer.process.poll() is None:
                    kill(volunteer)


def now_s() -> float:
    """The wall clock, which the page's `Date.now()` shares on one machine."""
    return time.time()

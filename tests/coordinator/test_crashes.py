"""SIGKILL of any of the coordinator's processes at any moment: workers come back by themselves, and nothing is lost.

Every step of the counting trainer adds the same to B, so what a finished leaf holds says how many steps were counted.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tinylora_coordinator.folder import RunFolder

from tests.coordinator.running import (
    Coordinator,
    Role,
    assert_nothing_lost_or_doubled,
    gone,
    make_run,
    n_steps,
    recovery_s,
    serving,
)
from tests.flower.helpers import QUICK, until
from tinylora.federation.events import LeaseExpired, UpdateAccepted, UpdateRejected
from tinylora.flower.fleet import FleetHttpClient

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of alembic and pathspec, about flwr's use


class Killer:
    """Kills one role, once, when it is called the `nth` time; and starts the supervisor again if it was that."""

    def __init__(self, coordinator: Coordinator, role: Role, nth: int) -> None:
        self._coordinator, self._left = coordinator, nth
        self._role: Role = role
        self._lock = threading.Lock()
        self.took_s: list[float] = []
        self.threads: list[threading.Thread] = []

    def __call__(self, _what: object = None) -> None:
        """Count, and kill when it is time."""
        with self._lock:
            self._left -= 1
            if self._left == 0:
                n_before, at = n_steps(self._coordinator), time.monotonic()
                killed = self._coordinator.kill(self._role)
                assert killed
                until(lambda: gone(killed), timeout_s=30.0, what="the end of all that was killed")
                if self._role == "supervisor":
                    self._coordinator.start()
                self.threads.append(threading.Thread(target=self._watch, args=(n_before, at)))
                self.threads[-1].start()

    def _watch(self, n_before: int, at: float) -> None:
        self.took_s.append(recovery_s(self._coordinator, n_before, at))

    def join(self) -> float:
        """Seconds that the recovery took."""
        for thread in self.threads:
            thread.join(60.0)
        return self.took_s[0]


def killing_uploads(monkeypatch: pytest.MonkeyPatch, kill: Callable[[object], None]) -> None:
    """`kill` is called with each part of an update, before it is uploaded."""
    push = FleetHttpClient.PushObject

    def push_and_kill(client: FleetHttpClient, request: Any) -> Any:
        kill(request)
        return push(client, request)

    monkeypatch.setattr(FleetHttpClient, "PushObject", push_and_kill)


@pytest.mark.parametrize("role", ["link", "rounds", "supervisor"])
def test_whoever_is_killed_nothing_is_lost_and_nothing_counts_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: Role, record_property: Callable[[str, object], None]
) -> None:
    with serving(make_run(tmp_path / "run", leaf_steps=30)) as coordinator:
        in_unit, in_upload = Killer(coordinator, role, 4), Killer(coordinator, role, 35)
        killing_uploads(monkeypatch, in_upload)
        coordinator.wait_until_spares_are_ready()
        workers = [coordinator.volunteer(centre, before=in_unit) for centre in (0.0, 2.0)]
        assert coordinator.finish() == 0, coordinator.said
        until(lambda: all(worker.endings for worker in workers), what="the workers' end")
        assert [worker.endings for worker in workers] == [["finished"], ["finished"]]
        assert_nothing_lost_or_doubled(coordinator)
        assert not coordinator.count(LeaseExpired) and not coordinator.count(UpdateRejected)
        done = [unit for worker in workers for unit in worker.done]
        assert len(done) == len(set(done)) == coordinator.count(UpdateAccepted), "a unit was worked on twice"
        for moment, killer in (("mid-unit", in_unit), ("mid-upload", in_upload)):
            took_s = killer.join()
            record_property(f"recovery after {role} died {moment}", took_s)
            print(f"{role} killed {moment}: next step after {took_s:.1f} s")


def test_what_another_start_would_only_repeat_is_not_repeated(tmp_path: Path) -> None:
    root = make_run(tmp_path / "run")
    with serving(root) as coordinator:
        twin = Coordinator(root)
        twin.start()
        assert twin.finish() == 8 and "another coordinator is at work here" in coordinator.said
        until(lambda: bool(coordinator.events()), what="the run's first event")
        assert coordinator.process is not None
        coordinator.process.terminate()
        assert coordinator.finish(15.0) == 0 and "takes the run up again" in coordinator.said
        settings = RunFolder(root).settings_file
        settings.write_text(settings.read_text().replace("leaf_steps = 20", "leaf_steps = 21"))
        coordinator.start()
        assert coordinator.finish() == 2
        assert "leaf_steps 20 to 21" in coordinator.said and "cannot go on" in coordinator.said


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("trained_s", [60.0, 150.0], ids=["done while it is away", "done after it is back"])
def test_two_minutes_without_a_coordinator_cost_nothing(tmp_path: Path, trained_s: float) -> None:
    """All of it is killed in the middle of a unit and starts again two minutes later; the worker just goes on."""
    with serving(make_run(tmp_path / "run", leaf_steps=30)) as coordinator:
        begun, back = threading.Event(), threading.Timer(120.0, coordinator.start)

        def train(unit: Any) -> None:
            if unit.kind == "train" and not begun.is_set():
                begun.set()
                time.sleep(trained_s)  # the length of this unit is what is tried

        patient = replace(QUICK, patience_s=600.0)
        worker = coordinator.volunteer(0.0, before=train, pace=patient)
        other = coordinator.volunteer(2.0, pace=patient)
        assert begun.wait(60.0)
        assert coordinator.kill("supervisor")
        back.start()
        try:
            assert coordinator.finish(400.0) == 0, coordinator.said
        finally:
            back.cancel()
        until(lambda: bool(worker.endings and other.endings), what="the workers' end")
        assert [worker.endings, other.endings] == [["finished"], ["finished"]]
        assert_nothing_lost_or_doubled(coordinator)
        assert not coordinator.count(LeaseExpired) and not coordinator.count(UpdateRejected)
        assert len(worker.done) == len(set(worker.done)), "no unit was done twice"

"""Whole runs over the real wire: loop, link and counting workers; some die, come late, or repeat themselves."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.federation.facts import FACTS, SETTINGS
from tests.flower.counting import CountingTrainer, assert_counted_once
from tests.flower.helpers import QUICK, TOKEN, Federation, Worker, federation, until
from tinylora.config import RunSettings
from tinylora.federation.campaign import Campaign
from tinylora.federation.events import Event, LeaseExpired, TopologySet, UnitLeased, UpdateAccepted, UpdateRejected
from tinylora.federation.ledger_memory import MemoryLedger
from tinylora.federation.loop import run_campaign
from tinylora.flower.clock import RunClock
from tinylora.flower.compat.link import now
from tinylora.flower.fleet import FleetHttpClient
from tinylora.flower.identity import new_identity
from tinylora.numerics import TorchNumerics

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of alembic and pathspec, about flwr's use


@dataclass
class Run:
    """A campaign in a thread."""

    served: Federation
    ledger: MemoryLedger = field(default_factory=MemoryLedger)
    events: list[Event] = field(default_factory=list)
    ended: list[Campaign] = field(default_factory=list)

    def of(self, kind: type) -> list[Any]:
        """Events of one type so far."""
        return [event for event in list(self.events) if isinstance(event, kind)]

    def start_worker(self, centre: float = 0.0, **options: Any) -> Worker:
        """A counting worker in a thread."""
        identity = new_identity()
        trainer = CountingTrainer(identity, centre)
        return self.served.start_worker(lambda worker: trainer.run, identity=identity, **options)

    def finish(self) -> Campaign:
        """Wait for the end."""
        until(lambda: bool(self.ended), timeout_s=100.0, what="the end of the run")
        return self.ended[0]


@contextmanager
def running(folder: Path, *, wall: Callable[[], datetime] = now, **changes: object) -> Iterator[Run]:
    settings = RunSettings.model_validate(SETTINGS.model_dump() | {"min_workers": 1, "leaf_steps": 10} | changes)
    with federation(folder, settings=settings, facts=FACTS, wall=wall) as served, served.transport() as transport:
        run, stop = Run(served), threading.Event()

        def drive() -> None:
            campaign = run_campaign(
                run.ledger, transport, RunClock(0.0, transport.arrived), run="run", settings=settings, base=FACTS,
                numerics=TorchNumerics(), on_event=run.events.append, stop=stop.is_set, poll_s=0.05,
            )  # fmt: skip
            run.ended.append(campaign)

        thread = threading.Thread(target=drive, name="rounds", daemon=True)
        thread.start()
        try:
            yield run
        finally:
            stop.set()
            transport.arrived.set()
            thread.join(10.0)


def test_a_run_ends_with_every_step_counted_once(tmp_path: Path) -> None:
    with running(tmp_path, min_workers=2) as run:
        names = {run.start_worker(centre).name for centre in (0.0, 2.0)}
        assert_counted_once(run.finish(), run.ledger)
        assert {event.worker for event in run.of(UpdateAccepted)} == names
        assert not run.of(UpdateRejected) and not run.of(LeaseExpired)


def test_who_joins_late_gets_work_at_once(tmp_path: Path) -> None:
    gate = threading.Event()
    with running(tmp_path, leaf_steps=15) as run:
        identity = new_identity()
        first = CountingTrainer(identity)

        def hold(worker: str) -> Callable[..., Any]:
            def handle(unit: Any, payload: bytes) -> Any:
                assert unit.kind == "sketch" or gate.wait(100.0)
                return first.run(unit, payload)

            return handle

        run.served.start_worker(hold, identity=identity)
        until(lambda: bool(run.of(TopologySet)), what="the topology")
        late = run.start_worker(5.0)
        until(lambda: any(event.worker == late.name for event in run.of(UpdateAccepted)), what="its first update")
        until(
            lambda: any(event.worker == late.name and event.kind == "train" for event in run.of(UnitLeased)),
            what="a train unit for the late worker while the first is still busy",
        )
        gate.set()
        assert_counted_once(run.finish(), run.ledger)


def test_a_killed_workers_unit_goes_to_another_and_nothing_counts_twice(tmp_path: Path) -> None:
    home, marker = tmp_path / "home", tmp_path / "marker"
    home.mkdir()
    with running(tmp_path, min_workers=2, first_deadline_s=5.0) as run:
        command = [sys.executable, "-m", "tests.flower.victim", run.served.address.url(), TOKEN, str(home), str(marker)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as victim:
            try:
                survivor = run.start_worker(0.0)
                until(lambda: marker.exists() or victim.poll() is not None, timeout_s=60.0, what="the victim's unit")
                assert victim.poll() is None, victim.communicate()[1]
            finally:
                victim.send_signal(signal.SIGKILL)
        unit = marker.read_text()
        campaign = run.finish()
        lost = next(event for event in run.of(UnitLeased) if event.unit_id == unit)
        assert unit in {event.unit_id for event in run.of(LeaseExpired)}
        assert unit not in {event.unit_id for event in run.of(UpdateAccepted)}
        heirs = [event for event in run.of(UpdateAccepted) if event.node == lost.node and event.kind == "train"]
        assert {event.worker for event in heirs} == {survivor.name}
        assert_counted_once(campaign, run.ledger)


@pytest.mark.parametrize("verb", ["PushMessages", "PushObject"])
def test_an_update_that_is_sent_twice_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    send, lost = getattr(FleetHttpClient, verb), []

    def forgetful(client: FleetHttpClient, request: Any) -> Any:
        answer = send(client, request)
        if len(lost) < 3:  # the link has it, its answer is lost on the way back, and the worker sends it again
            lost.append(answer)
            raise httpx.ReadTimeout("no answer")
        return answer

    monkeypatch.setattr(FleetHttpClient, verb, forgetful)
    with running(tmp_path) as run:
        run.start_worker()
        assert_counted_once(run.finish(), run.ledger)
        accepted = [event.unit_id for event in run.of(UpdateAccepted)]
        assert len(lost) == 3 and len(accepted) == len(set(accepted))
        assert not run.of(UpdateRejected) and not run.of(LeaseExpired)


def test_a_worker_outlives_a_restart_of_the_link(tmp_path: Path) -> None:
    with running(tmp_path) as first:
        worker = first.start_worker(pace=QUICK)
        first.finish()
        first.served.workers.clear()  # it is not told to stop
        port = int(first.served.address.host_port.split(":")[1])
    assert not worker.endings
    with federation(tmp_path, facts=FACTS, port=port) as second, second.transport() as transport:
        second.workers.append(worker)
        until(lambda: [info.worker for info in transport.workers()] == [worker.name], what="the worker online again")
        assert not worker.endings

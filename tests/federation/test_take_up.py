"""Taking a run up: open leases are sent again, byte by byte; a snapshot and the log's tail are as good as the log."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.federation.facts import FACTS, SETTINGS
from tests.federation.world import assert_counted_once, crowd, only, run_world
from tinylora.config import RunSettings
from tinylora.federation.campaign import Campaign, apply, fold
from tinylora.federation.events import Event, RunStarted, UnitLeased, WorkerLost
from tinylora.federation.ledger_memory import MemoryLedger
from tinylora.federation.loop import Rounds, run_campaign
from tinylora.federation.ports import Reply, WorkerInfo
from tinylora.federation.record import SNAPSHOT_EVENTS
from tinylora.federation.retention import named
from tinylora.federation.snapshot import read_snapshot, write_snapshot
from tinylora.numerics import TorchNumerics
from tinylora.protocol.documents import WorkUnit
from tinylora.simulate import SimulatedTransport, SimulatedWorker, VirtualClock

FEW: dict[str, Any] = {"depth": 2, "min_workers": 4, "leaf_steps": 10, "probes": 2}
WORLDS: dict[str, dict[str, Any]] = {
    "probes": FEW,
    "replicas on paths": FEW | {"depth": 1, "where": "path", "router_sync": "both", "replicas": "alternate"},
    "a tree that grows": FEW | {"depth": 1, "grow": True, "min_workers": 2, "leaf_steps": 40, "probes": 0},
}


@functools.cache
def _world(name: str) -> tuple[tuple[Event, ...], MemoryLedger]:
    """A run, and its ledger with every blob that was ever in it."""
    _, events, ledger = run_world(crowd(4, has_histograms=True), **WORLDS[name])
    assert isinstance(ledger, MemoryLedger)
    return events, ledger


def _cut(events: Sequence[Event], ledger: MemoryLedger, n: int) -> MemoryLedger:
    """The ledger as it was after the first `n` events."""
    half = MemoryLedger()
    half.append(events[:n], 0.0)
    for event in events[:n]:
        for blob in named(event):
            half.put_blob(ledger.get_blob(blob))
    return half


@dataclass
class _Wire:
    """Notes what is sent; the workers named are there."""

    online: list[str]
    sent: list[tuple[str, WorkUnit, bytes]] = field(default_factory=list)

    def workers(self) -> list[WorkerInfo]:
        return [WorkerInfo(name, name) for name in self.online]

    def send(self, worker: str, unit: WorkUnit, payload: bytes) -> None:
        self.sent.append((worker, unit, payload))

    def poll(self) -> list[Reply]:
        return []


def _settings(events: Sequence[Event]) -> RunSettings:
    (start,) = only(events, RunStarted)
    return start.settings


def _at(n: int, events: Sequence[Event]) -> Campaign:
    state = fold(events[:n])
    assert state is not None
    return state


def _taken_up(half: MemoryLedger, wire: _Wire, settings: RunSettings) -> Rounds:
    rounds = Rounds(half, wire, VirtualClock(_at(len(half.events()), half.events()).latest_at_s), TorchNumerics())
    rounds.open(RunStarted(run="test", settings=settings, base=FACTS))
    return rounds


@pytest.mark.parametrize("name", WORLDS)
def test_whatever_was_open_is_sent_again_as_it_was(name):
    events, ledger = _world(name)
    settings = _settings(events)
    first: dict[str, tuple[WorkUnit, bytes]] = {}
    for n, event in enumerate(events, start=1):
        if n % 3 and not isinstance(event, UnitLeased):
            continue
        half = _cut(events, ledger, n)
        state = _at(n, events)
        wire = _Wire(sorted(state.workers))
        rounds = _taken_up(half, wire, settings)
        rounds._leasing.resend(set(state.workers))
        assert {unit.unit_id for _, unit, _ in wire.sent} == set(state.leases)
        for worker, unit, payload in wire.sent:
            assert (worker, unit.nonce) == (state.leases[unit.unit_id].worker, state.leases[unit.unit_id].nonce)
            assert first.setdefault(unit.unit_id, (unit, payload)) == (unit, payload)
        assert len(half.events()) == n, event  # nothing new in the log
    assert first.keys() == {event.unit_id for event in only(events, UnitLeased)}


def test_who_is_not_there_gets_its_unit_when_it_comes():
    events, ledger = _world("probes")
    first = only(events, UnitLeased)[0]
    n = events.index(first) + 1
    wire = _Wire([])
    rounds = _taken_up(_cut(events, ledger, n), wire, _settings(events))
    times = {"since_s": 0.0, "patience_s": 1e9, "rejoin_s": 60.0}
    rounds.step(wire, times, lambda: False)
    assert not wire.sent
    lost = only(rounds._record.ledger.events(), WorkerLost)
    assert "w0" not in {event.worker for event in lost}  # it gets some time to find the coordinator again
    wire.online = ["w0"]
    rounds.step(wire, times, lambda: False)
    rounds.step(wire, times, lambda: False)
    assert [unit.unit_id for _, unit, _ in wire.sent] == [first.unit_id]


def test_who_does_not_come_back_is_lost_after_a_while():
    events, ledger = _world("probes")
    first = only(events, UnitLeased)[0]
    n = events.index(first) + 1
    half = _cut(events, ledger, n)
    workers = [worker for worker in crowd(4) if worker.name != first.worker]
    campaign, more, _ = run_world(workers, ledger=half, **{**WORLDS["probes"], "min_workers": 4})
    (lost,) = [event for event in only(more, WorkerLost) if event.worker == first.worker]
    assert lost.at_s == pytest.approx(60.0, abs=1.0)
    assert campaign.finished


class _Deaf(SimulatedTransport):
    """Workers that lose whatever is sent to them once; as if the first sending was lost with the process."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.lost: set[str] = set()

    def send(self, worker: str, unit: WorkUnit, payload: bytes) -> None:
        if unit.unit_id in self.lost:
            super().send(worker, unit, payload)
        self.lost.add(unit.unit_id)


def test_a_process_killed_after_every_step_ends_with_the_same_tree():
    """Each process lives for one step; every unit's first sending is lost with it. The tree is that of a calm run."""
    calm, _, _ = run_world(crowd(4), **FEW)
    settings = SETTINGS.model_copy(update=FEW)
    workers, ledger, clock = crowd(4), MemoryLedger(), VirtualClock()
    transport = _Deaf(workers, [worker.runner for worker in workers], clock)

    def once() -> Campaign:
        steps = iter((False, True))
        return run_campaign(
            ledger, transport, clock, run="test", settings=settings, base=FACTS, numerics=TorchNumerics(),
            stop=lambda: next(steps), poll_s=1e9,
        )  # fmt: skip

    campaign = once()
    while not campaign.finished:
        campaign = once()
    assert campaign.finished == calm.finished
    assert {top: node.blob for top, node in campaign.nodes.items()} == {t: n.blob for t, n in calm.nodes.items()}
    assert_counted_once(campaign, ledger)


# --- snapshots -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WORLDS)
def test_a_snapshot_and_the_tail_are_the_whole(name):
    events, _ = _world(name)
    state = None
    for n, event in enumerate(events, start=1):
        state = apply(state, event)
        restored = read_snapshot(write_snapshot(state))
        assert restored == state, n
        assert restored is not None and list(restored.nodes) == list(state.nodes)
        if n % 16 == 0:
            for later in events[n:]:
                restored = apply(restored, later)
            assert restored == fold(events)


def test_the_loop_keeps_a_snapshot_and_starts_from_it(monkeypatch):
    events, ledger = _world("probes")
    kept = ledger.load_snapshot()
    assert kept is not None and kept[0] % 1 == 0
    assert 0 < len(events) - kept[0] < 2 * SNAPSHOT_EVENTS
    half = _cut(events, ledger, len(events))
    half.save_snapshot(*kept)
    monkeypatch.setattr("tinylora.federation.record.fold", None)  # it is not folded from the beginning
    assert _taken_up_state(half, events) == fold(events)


@pytest.mark.parametrize("text", ["", "0.0.0\n{}", "damaged"])
def test_a_snapshot_of_another_version_or_a_damaged_one_is_left_alone(text):
    events, ledger = _world("probes")
    half = _cut(events, ledger, len(events))
    kept = write_snapshot(_at(len(events), events))
    half.save_snapshot(len(events), kept[: len(kept) // 2] if text == "damaged" else text)
    assert _taken_up_state(half, events) == fold(events)


def _taken_up_state(half: MemoryLedger, events: Sequence[Event]):
    rounds = Rounds(half, _Wire([]), VirtualClock(), TorchNumerics())
    rounds.open(RunStarted(run="test", settings=_settings(events), base=FACTS))
    return rounds.state


def test_a_worker_that_comes_later_finds_the_run_going_on():
    events, ledger = _world("probes")
    half = _cut(events, ledger, len(events) // 2)
    late = SimulatedWorker("late", runner=crowd(5)[4].runner, seconds_per_step=1.0)
    campaign, _, _ = run_world([*crowd(4), late], ledger=half, **WORLDS["probes"])
    assert campaign.finished == "every leaf has had its steps"

"""Virtual time, virtual workers, and plans of what goes wrong."""

import math

import pytest

from tests.federation.facts import FACTS, SETTINGS
from tests.federation.world import FakeRunner, assert_counted_once, crowd, run_world
from tinylora.errors import SettingError
from tinylora.federation.ledger_memory import MemoryLedger
from tinylora.protocol.documents import Update, WorkUnit
from tinylora.simulate import Fault, FaultPlan, SimulatedTransport, SimulatedWorker, VirtualClock, run_simulated


def _unit(number: int = 0, *, kind: str = "train", n_steps: int = 10) -> WorkUnit:
    return WorkUnit.model_validate(
        {"unit_id": f"u{number}", "run": "r", "kind": kind, "nonce": "n", "deadline_s": 1.0, "n_steps": n_steps,
         "base_fingerprint": "a" * 64, "tokenizer_fingerprint": "b" * 64, "feature_hash": "c" * 64,
         "payload_sha256": "d" * 64}
    )  # fmt: skip


class Echo:
    """Answers every unit with nothing in it."""

    def run(self, unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
        fields = {"unit_id": unit.unit_id, "run": "r", "kind": unit.kind, "worker": "w", "nonce": "n"}
        return Update.model_validate(fields | {"shard_version": "0" * 64, "payload_sha256": "0" * 64}), b""


def _transport(
    *speeds: float, faults: FaultPlan | None = None, joins_at_s: float = 0.0
) -> tuple[SimulatedTransport, VirtualClock]:
    clock = VirtualClock()
    workers = [
        SimulatedWorker(f"w{i}", seconds_per_step=speed, joins_at_s=joins_at_s) for i, speed in enumerate(speeds)
    ]
    return SimulatedTransport(workers, [Echo() for _ in workers], clock, faults=faults), clock


def test_time_passes_only_by_waiting_and_jumps_to_what_comes_next():
    transport, clock = _transport(1.0, 0.5)
    transport.send("w0", _unit(0), b"")
    transport.send("w1", _unit(1), b"")
    assert transport.poll() == []
    clock.wait(100.0)
    assert clock.now() == 5.0
    assert [reply.worker for reply in transport.poll()] == ["w1"]
    clock.wait(2.0)
    assert clock.now() == 7.0
    clock.wait(math.inf)
    assert clock.now() == 10.0
    assert [reply.worker for reply in transport.poll()] == ["w0"]
    assert transport.poll() == []


def test_replies_come_by_time_and_then_by_worker():
    transport, clock = _transport(1.0, 1.0, 0.5)
    for number, worker in enumerate(("w1", "w0", "w2")):
        transport.send(worker, _unit(number), b"")
    clock.wait(5.0)
    clock.wait(5.0)
    assert [reply.worker for reply in transport.poll()] == ["w2", "w0", "w1"]


def test_a_killed_worker_is_gone_half_way_and_may_return():
    transport, clock = _transport(1.0, 1.0, faults=FaultPlan.parse(kill=["0@0:7", "w1@0"]))
    for worker in ("w0", "w1"):
        transport.send(worker, _unit(), b"")
    seen = []
    for _ in range(2):
        clock.wait(100.0)
        seen.append((clock.now(), [info.worker for info in transport.workers()]))
    assert seen == [(5.0, []), (12.0, ["w0"])]
    assert transport.poll() == []


def test_a_unit_to_somebody_who_is_gone_is_no_error():
    transport, clock = _transport(1.0, joins_at_s=3.0)
    transport.send("w0", _unit(), b"")
    clock.wait(100.0)
    assert clock.now() == 3.0
    assert transport.poll() == []


def test_speeds_are_drawn_from_the_seed():
    def times(seed: int) -> list[float]:
        clock = VirtualClock()
        workers = [SimulatedWorker(f"w{i}") for i in range(20)]
        transport = SimulatedTransport(workers, [Echo() for _ in workers], clock, seed=seed)
        for worker in workers:
            transport.send(worker.name, _unit(n_steps=1), b"")
        return [due for due, _ in transport._due]

    assert times(1) == times(1) != times(2)
    assert all(0.5 <= seconds <= 2.0 for seconds in times(1))


# --- plans -----------------------------------------------------------------------------------------------------------


def test_plans_are_read():
    plan = FaultPlan.parse(kill=["1@2", "ann@0:30"], silent=["0@1"], delay=["2@3:1.5"])
    assert plan.of("bob", 1, 2) == Fault("kill")
    assert plan.of("ann", 7, 0) == Fault("kill", 30.0)
    assert plan.of("bob", 0, 1) == Fault("silent")
    assert plan.of("bob", 2, 3) == Fault("delay", 1.5)
    assert plan.of("bob", 2, 2) is None


@pytest.mark.parametrize(
    "plan",
    [{"kill": ["1"]}, {"kill": ["1@"]}, {"kill": ["@1"]}, {"kill": ["1@-2"]}, {"silent": ["1@2:3"]}, {"delay": ["1@2"]},
     {"delay": ["1@2:soon"]}, {"delay": ["1@2:-3"]}, {"kill": ["1@2", "1@2:3"]}, {"kill": [""]}],
)  # fmt: skip
def test_plans_that_make_no_sense(plan):
    with pytest.raises(SettingError, match="--"):
        FaultPlan.parse(**plan)


def test_a_fault_of_somebody_who_is_not_there():
    with pytest.raises(SettingError, match="worker '4': no such worker"):
        run_world(crowd(2), faults=FaultPlan.parse(kill=["4@0"]))


def test_workers_need_names_of_their_own():
    twins = [SimulatedWorker("w0", runner=FakeRunner("w0"))] * 2
    for workers in ([], twins):
        with pytest.raises(SettingError, match="different names"):
            run_simulated(MemoryLedger(), SETTINGS, workers, FACTS, [])


# --- losses by chance ------------------------------------------------------------------------------------------------


def test_losses_are_drawn_from_seed_worker_and_unit():
    plan = FaultPlan(drop=0.5)
    drawn = [plan.loses(seed, worker, unit) for seed in range(4) for worker in ("a", "b") for unit in range(100)]
    assert 0.45 < sum(drawn) / len(drawn) < 0.55
    assert drawn == [
        plan.loses(seed, worker, unit) for seed in range(4) for worker in ("a", "b") for unit in range(100)
    ]
    assert not any(FaultPlan().loses(0, "a", unit) for unit in range(100))


@pytest.mark.parametrize("share", [-0.1, 1.0, math.nan])
def test_a_share_that_is_none(share):
    with pytest.raises(SettingError, match=r"--drop .*: expected a share of updates from 0 to less than 1"):
        FaultPlan(drop=share)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_run_that_loses_updates_does_not_end_early(share):
    """Its patience of an hour is long over when some worker was unlucky many times in a row."""
    campaign, events, ledger = run_world(crowd(2), faults=FaultPlan(drop=share))
    assert campaign.finished == "every leaf has had its steps"
    assert_counted_once(campaign, ledger)
    lost = sum(event.type == "lease_expired" for event in events)
    n_leased = sum(event.type == "unit_leased" and event.kind == "train" for event in events)
    assert n_leased == lost + 8
    again, more, _ = run_world(crowd(2), faults=FaultPlan(drop=share))
    assert (again, more) == (campaign, events)


def test_planned_faults_go_before_chance_and_sketches_are_never_lost():
    plan = FaultPlan.parse(kill=["0@1:5"], drop=0.99)
    _, events, _ = run_world(crowd(1), depth=0, min_workers=1, leaf_steps=5, faults=plan)
    assert next(event for event in events if event.type == "lease_expired").reason == "the worker went offline"
    assert all(
        event.kind == "train" for event in events if event.type == "unit_leased" and event.unit_id != "u00000000"
    )

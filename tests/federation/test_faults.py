"""One named fault at a time, with the verdict that is expected; and random schedules of all of them."""

import math
from collections.abc import Callable
from dataclasses import replace
from enum import Enum

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.federation.facts import RANK
from tests.federation.world import FakeRunner, assert_counted_once, crowd, only, run_world, with_spoil
from tinylora.errors import DataError, ProtocolError
from tinylora.federation.campaign import FIRST_REST_S, fold
from tinylora.federation.events import (
    LeaseExpired,
    NodeAveraged,
    RunFinished,
    UnitLeased,
    UpdateAccepted,
    UpdateRejected,
    WorkerLost,
    WorkerReturned,
)
from tinylora.federation.standing import strikes
from tinylora.protocol.documents import WorkUnit
from tinylora.simulate import Fault, FaultPlan, SimulatedWorker
from tinylora.tensors import Tensors


class Spoil(Enum):
    """What a broken or hostile worker may do to its tensors, and the code it is refused with."""

    NOT_A_NUMBER = "not_finite"
    HUGE = "too_far"
    A_TENSOR_LESS = "bad_manifest"
    A_STRANGER = "bad_manifest "
    WRONG_RANK = "bad_manifest  "
    WRONG_DTYPE = "bad_manifest   "

    def __call__(self, unit: WorkUnit, made: Tensors) -> Tensors:
        """The spoiled tensors of a train unit."""
        if unit.kind != "train":
            return made
        name = sorted(name for name in made if name.endswith("lora_B"))[0]
        right = made[name]
        spoiled = {
            Spoil.NOT_A_NUMBER: {name: right * math.nan},
            Spoil.HUGE: {name: right + 1e6},
            Spoil.A_TENSOR_LESS: {},
            Spoil.A_STRANGER: {name: right, "node.0.other.lora_B": right},
            Spoil.WRONG_RANK: {name: torch.zeros(2, 5, RANK + 1)},
            Spoil.WRONG_DTYPE: {name: right.double()},
        }[self]
        return {other: tensor for other, tensor in made.items() if other != name} | spoiled


@pytest.mark.parametrize("spoil", Spoil)
def test_a_spoiled_update_is_refused_and_its_worker_gets_no_more(spoil):
    good, bad = crowd(2)
    campaign, events, ledger = run_world([good, with_spoil(bad, spoil)])
    rejected = only(events, UpdateRejected)
    assert [event.code.partition(".")[0] for event in rejected] == [spoil.value.strip()] * 3
    assert campaign.workers["w1"].standing == "quarantined"
    assert "3 of its latest 4 results" in campaign.workers["w1"].refusal
    assert not [event for event in only(events, UpdateAccepted) if event.worker == "w1" and event.kind == "train"]
    assert campaign.finished == "every leaf has had its steps"
    assert_counted_once(campaign, ledger)  # the good worker adopts the other leaf


def test_two_bad_updates_among_good_ones_are_forgiven():
    units = iter(range(100))
    good, bad = crowd(2)

    def sometimes(unit: WorkUnit, made: Tensors) -> Tensors:
        return Spoil.NOT_A_NUMBER(unit, made) if next(units) in (1, 4) else made

    campaign, events, ledger = run_world([good, with_spoil(bad, sometimes)])
    assert len(only(events, UpdateRejected)) == 2
    assert not campaign.workers["w1"].refusal
    assert_counted_once(campaign, ledger)


# --- workers that vanish, fall silent, or are late -------------------------------------------------------------------


def test_a_killed_worker_is_replaced():
    campaign, events, ledger = run_world(crowd(2), faults=FaultPlan.parse(kill=["1@2"]))
    (lost,) = only(events, WorkerLost)
    (expired,) = only(events, LeaseExpired)
    assert (lost.worker, expired.reason) == ("w1", "the worker went offline")
    adopted = [event for event in only(events, UnitLeased) if event.is_adopted]
    assert {event.worker for event in adopted} == {"w0"}
    assert {event.node for event in adopted} == {campaign.workers["w1"].node}
    assert_counted_once(campaign, ledger)


def test_a_leaf_is_adopted_only_after_the_own_one_is_finished():
    campaign, events, _ = run_world(crowd(2), faults=FaultPlan.parse(kill=["1@1"]))
    by_w0 = [event for event in only(events, UnitLeased) if event.worker == "w0" and event.kind == "train"]
    assert [event.is_adopted for event in by_w0] == [False] * 4 + [True] * 4
    assert campaign.finished


def test_a_replica_goes_on_alone():
    campaign, events, ledger = run_world(crowd(4), min_workers=4, faults=FaultPlan.parse(kill=["1@2"]))
    assert not [event for event in only(events, UnitLeased) if event.is_adopted]
    assert_counted_once(campaign, ledger)


def test_a_lost_worker_that_returns_gets_its_node_back():
    campaign, events, ledger = run_world(crowd(2), faults=FaultPlan.parse(kill=["1@2:4"]))
    (returned,) = only(events, WorkerReturned)
    after = [event for event in only(events[events.index(returned) :], UnitLeased) if event.worker == "w1"]
    assert {event.node for event in after} == {campaign.workers["w1"].node}
    assert not any(event.is_adopted for event in only(events, UnitLeased))
    assert_counted_once(campaign, ledger)


def test_who_returns_from_being_cut_off_has_a_moment_to_bring_what_it_made_meanwhile():
    _, events, _ = run_world(crowd(2), faults=FaultPlan.parse(kill=["1@2:4"]))
    (returned,) = only(events, WorkerReturned)
    following = next(e for e in only(events[events.index(returned) :], UnitLeased) if e.worker == "w1")
    assert following.at_s == returned.at_s + FIRST_REST_S


def test_a_lost_subtree_is_adopted_leaf_by_leaf():
    campaign, events, ledger = run_world(crowd(3), depth=2, min_workers=3, faults=FaultPlan.parse(kill=["0@2", "2@2"]))
    wide = next(worker for worker in campaign.workers.values() if len(worker.node or "") == 1)
    adopted = {event.node for event in only(events, UnitLeased) if event.is_adopted}
    assert wide.worker in ("w0", "w2") and set(campaign.leaves_below(wide.node or "")) <= adopted
    assert_counted_once(campaign, ledger)


def test_the_adopter_is_the_one_with_the_nearest_text():
    campaign, events, _ = run_world(crowd(4), depth=2, min_workers=4, faults=FaultPlan.parse(kill=["3@1"]))
    adopters = {event.worker for event in only(events, UnitLeased) if event.is_adopted}
    assert adopters == {"w2"}
    assert campaign.finished


def test_a_silent_worker_is_waited_for_once_and_then_tried_again():
    campaign, events, ledger = run_world(crowd(2), faults=FaultPlan.parse(silent=["1@1"]))
    (expired,) = only(events, LeaseExpired)
    assert expired.reason == "the deadline passed"
    assert_counted_once(campaign, ledger)


def test_a_late_update_counts_while_nothing_took_its_place():
    """It comes after the deadline of 60 s, while the only worker rests and nobody else could take the leaf."""
    faults = FaultPlan({("w0", 1): Fault("delay", 57.0)})
    campaign, events, ledger = run_world(crowd(1), depth=0, min_workers=1, faults=faults)
    (expired,) = only(events, LeaseExpired)
    assert expired.unit_id in {event.unit_id for event in only(events, UpdateAccepted)}
    assert not only(events, UpdateRejected)
    assert len(only(events, UnitLeased)) == 1 + 4
    assert_counted_once(campaign, ledger)


def test_a_late_update_is_refused_when_the_leaf_was_leased_again():
    faults = FaultPlan({("w1", 1): Fault("delay", 200.0)})
    campaign, events, ledger = run_world(crowd(2), leaf_steps=400, unit_steps=40, faults=faults)
    (expired,) = only(events, LeaseExpired)
    (rejected,) = only(events, UpdateRejected)
    assert (rejected.unit_id, rejected.code) == (expired.unit_id, "lease_closed")
    assert not strikes(campaign.workers["w1"])
    assert_counted_once(campaign, ledger)


def test_a_slow_worker_gets_more_time_after_a_miss():
    slow = replace(crowd(3)[2], seconds_per_step=40.0)
    campaign, events, ledger = run_world([*crowd(2), slow], depth=0, min_workers=3, leaf_steps=200)
    deadlines = [event.deadline_s - event.at_s for event in only(events, UnitLeased) if event.worker == "w2"]
    assert max(deadlines) > deadlines[1] >= 5
    assert_counted_once(campaign, ledger)


# --- workers that answer with an error -------------------------------------------------------------------------------


class Failing(FakeRunner):
    """Raises where `fails` says so."""

    error: Exception = ProtocolError("out of memory")
    fails: Callable[[WorkUnit], bool] = staticmethod(lambda unit: unit.kind == "train")

    def run(self, unit, payload):
        if type(self).fails(unit):
            raise self.error
        return super().run(unit, payload)


def test_a_worker_that_only_fails_does_not_stop_the_others():
    failing = SimulatedWorker("w9", runner=Failing("w9", (1.0, 0, 0, 0)), seconds_per_step=1.0)
    campaign, events, ledger = run_world([*crowd(2), failing], min_workers=3)
    assert {event.reason for event in only(events, LeaseExpired)} == {"out of memory"}
    assert_counted_once(campaign, ledger)


def test_a_worker_that_declines_for_good_is_not_asked_again():
    class Declining(Failing):
        error = DataError("shard w9 is too small")
        fails = staticmethod(lambda unit: True)

    declining = SimulatedWorker("w9", runner=Declining("w9"), seconds_per_step=1.0)
    campaign, events, _ = run_world([*crowd(2), declining])
    assert campaign.workers["w9"].refusal == "shard w9 is too small"
    assert [event.kind for event in only(events, UnitLeased) if event.worker == "w9"] == ["sketch"]
    assert [event.code for event in only(events, UpdateRejected)] == ["declined"]


def test_a_run_that_nobody_can_go_on_with_ends_and_says_why():
    campaign, events, _ = run_world(crowd(2), faults=FaultPlan.parse(kill=["0@2", "1@2"]))
    assert campaign.finished.startswith("nobody could go on; node 0 has had 5 of 20 steps")
    assert only(events, RunFinished)[0].at_s >= 3600


def test_a_run_without_a_single_sketch_ends_and_says_why():
    campaign, _, _ = run_world(crowd(2), faults=FaultPlan.parse(kill=["0@0", "1@0"]))
    assert campaign.finished == "nobody could go on; 0 of 2 workers were sketched, so the tree was never set"


# --- random schedules ------------------------------------------------------------------------------------------------

N = 4
_seconds = st.sampled_from([1.0, 10.0, 100.0, 1000.0])
_faults = st.one_of(
    st.just(Fault("kill")),
    st.builds(lambda s: Fault("kill", s), _seconds),
    st.just(Fault("silent")),
    st.builds(lambda s: Fault("delay", s), _seconds),
)
_schedules = st.dictionaries(
    st.tuples(st.integers(0, N - 1).map(lambda i: f"w{i}"), st.integers(0, 6)), _faults, max_size=8
)


_speeds = st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=N, max_size=N)


def _run_schedule(schedule, depth, speeds):
    """With few router versions, because many schedules are to be tried."""
    workers = [
        SimulatedWorker(f"w{i}", runner=FakeRunner(f"w{i}", (2.0 * i, 0, 0, 0)), seconds_per_step=speed)
        for i, speed in enumerate(speeds)
    ]
    return run_world(workers, depth=depth, min_workers=N, router_period=50, faults=FaultPlan(schedule))


@given(schedule=_schedules, depth=st.integers(0, 3), speeds=_speeds)
def test_whatever_goes_wrong_nothing_is_lost_or_counted_twice(schedule, depth, speeds):
    campaign, events, ledger = _run_schedule(schedule, depth, speeds)
    assert campaign.finished
    assert fold(events) == campaign
    _check_each_lease_ends_once(events)
    _check_each_version_follows(events)
    dead = {worker for (worker, _), fault in schedule.items() if fault == Fault("kill")}
    if len(dead) < N:
        assert campaign.finished == "every leaf has had its steps"
        assert_counted_once(campaign, ledger)


def test_the_same_faults_give_the_same_events():
    schedule = {("w0", 1): Fault("kill", 10.0), ("w1", 2): Fault("silent"), ("w2", 2): Fault("delay", 100.0)}
    first, second = (_run_schedule(schedule, 2, [1.0, 0.5, 3.0, 1.0]) for _ in range(2))
    assert first[:2] == second[:2]


def _check_each_lease_ends_once(events):
    """Accepted at most once, and never after a rejection of its own."""
    accepted = [event.unit_id for event in only(events, UpdateAccepted)]
    assert len(accepted) == len(set(accepted))
    assert set(accepted) <= {event.unit_id for event in only(events, UnitLeased)}


def _check_each_version_follows(events):
    """Each update enters exactly the version that it was made on, and each leaf in it was trained by somebody."""
    leases = {event.unit_id: event for event in only(events, UnitLeased)}
    versions: dict[str, int] = {}
    for event in events:
        if isinstance(event, NodeAveraged):
            assert event.version == versions.get(event.node, 0) + 1
            versions[event.node] = event.version
        elif isinstance(event, UpdateAccepted) and event.kind == "train":
            version = next((version for node, version in versions.items() if event.node.startswith(node)), 0)
            assert leases[event.unit_id].node_version == event.node_version == version

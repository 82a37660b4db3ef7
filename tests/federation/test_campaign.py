"""Whole runs without faults: who gets what, what is counted, and that the state is the fold of the events."""

import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.federation.facts import DIM, FACTS, SETTINGS
from tests.federation.world import FakeRunner, assert_counted_once, crowd, only, run_world
from tinylora.errors import SettingError, StorageError
from tinylora.federation.campaign import apply, fold
from tinylora.federation.events import (
    GatesSolved,
    NodeAveraged,
    RunStarted,
    TopologySet,
    UnitLeased,
    UpdateAccepted,
    WorkerAssigned,
    WorkerJoined,
    event_from_json,
    event_to_json,
)
from tinylora.federation.ledger_memory import MemoryLedger
from tinylora.federation.routers import Blobs
from tinylora.numerics import TorchNumerics
from tinylora.routing.gates import solve_gates
from tinylora.routing.statistics import RouterStatistics
from tinylora.simulate import SimulatedWorker
from tinylora.tree import Topology


@pytest.mark.parametrize(("n_workers", "depth"), [(1, 0), (3, 0), (1, 2), (2, 1), (3, 2), (4, 2), (6, 2), (9, 3)])
def test_every_leaf_gets_its_steps(n_workers, depth):
    campaign, events, ledger = run_world(crowd(n_workers), depth=depth, min_workers=n_workers)
    assert campaign.finished == "every leaf has had its steps"
    assert_counted_once(campaign, ledger)
    (tree,) = only(events, TopologySet)
    assert set(tree.assignment) == {f"w{i}" for i in range(n_workers)}
    assert not campaign.leases


def test_steps_are_counted_once_for_each_round_of_replicas():
    campaign, events, _ = run_world(crowd(4), depth=1, min_workers=4)
    trained = [event for event in only(events, UpdateAccepted) if event.kind == "train"]
    assert len(trained) == 4 * 4
    assert [event.n_steps for event in only(events, NodeAveraged) if event.node == "0"] == [5, 10, 15, 20]
    assert all(len(event.contributors) == 2 for event in only(events, NodeAveraged))
    assert all(node.version == 4 for node in campaign.nodes.values())


def test_the_last_unit_is_shorter_when_steps_do_not_divide():
    campaign, events, ledger = run_world(crowd(2), leaf_steps=12, unit_steps=5)
    assert sorted({event.n_steps for event in only(events, UnitLeased)}) == [0, 2, 5]
    assert_counted_once(campaign, ledger)


def test_a_subtree_is_leased_as_one():
    campaign, events, _ = run_world(crowd(3), depth=2, min_workers=3)
    tops = sorted(campaign.nodes)
    assert sorted(len(top) for top in tops) == [1, 2, 2]
    assert {event.node for event in only(events, UnitLeased) if event.kind == "train"} == set(tops)


def test_gates_inside_a_subtree_are_zero_until_its_sums_arrive():
    campaign, events, ledger = run_world(crowd(1), depth=1, min_workers=1)
    blobs = Blobs(ledger, TorchNumerics())
    first, second, *_ = only(events, GatesSolved)
    assert not blobs.gates(first.blob).nodes[""].w.any()
    assert blobs.gates(first.blob).nodes[""].b == 0
    assert second.reason == "new statistics"
    assert blobs.gates(second.blob).nodes[""].w.any()
    assert campaign.router.version >= 2


def test_router_versions_come_every_period_and_at_the_end():
    campaign, events, _ = run_world(crowd(2), router_period=4)
    solved = only(events, GatesSolved)
    assert [event.version for event in solved] == list(range(1, len(solved) + 1))
    assert [event.reason for event in solved] == ["the first sketches", "4 updates", "the end"]
    assert solved[0].drift == 1
    assert solved[0].contributors == ("w0", "w1")
    assert campaign.router.n_updates == 0


@pytest.mark.parametrize("sync", ["statistics", "weights", "both"])
def test_routers_by_statistics_and_by_weights(sync):
    campaign, _, ledger = run_world(crowd(4, has_histograms=True), depth=2, min_workers=4, router_sync=sync)
    blobs = Blobs(ledger, TorchNumerics())
    gates, weights = blobs.gates(campaign.router.blob), blobs.weights(campaign.router.blob)
    assert set(gates.nodes) == {"", "0", "1"}
    assert set(weights.nodes) == (set() if sync == "statistics" else {"", "0", "1"})
    if sync == "weights":
        assert gates.nodes["0"].b == weights.nodes["0"].b
    if sync == "both":
        assert gates.nodes["0"].b != weights.nodes["0"].b
    assert all(gate.tau != 0.35 for gate in gates.nodes.values())


def test_a_late_joiner_works_at_once_as_a_replica_of_the_nearest_leaf():
    late = SimulatedWorker(
        "late", runner=FakeRunner("late", (2.1, 0.0, 0.0, 0.0)), joins_at_s=12.0, seconds_per_step=1.0
    )
    campaign, events, ledger = run_world([*crowd(2), late])
    (assigned,) = only(events, WorkerAssigned)
    assert assigned.node == campaign.workers["w1"].node
    leases = [event for event in only(events, UnitLeased) if event.worker == "late"]
    assert [lease.kind for lease in leases[:2]] == ["sketch", "train"]
    assert leases[0].at_s == 12.0
    assert leases[1].at_s == 14.0
    assert_counted_once(campaign, ledger)


def test_a_late_joiner_helps_within_a_subtree():
    late = SimulatedWorker(
        "late", runner=FakeRunner("late", (0.5, 0.0, 0.0, 0.0)), joins_at_s=8.0, seconds_per_step=1.0
    )
    campaign, events, ledger = run_world([*crowd(1), late], min_workers=1)
    (assigned,) = only(events, WorkerAssigned)
    assert len(assigned.node) == 1
    assert any(event.contributors == ("late", "w0") for event in only(events, NodeAveraged))
    assert_counted_once(campaign, ledger)


def test_a_shard_that_is_too_small_gets_nothing():
    tiny = SimulatedWorker("tiny", runner=FakeRunner("tiny", shard_tokens=8 * 9), seconds_per_step=1.0)
    campaign, events, _ = run_world([*crowd(2), tiny], min_sequences=10)
    assert "9 windows of 8 tokens" in campaign.workers["tiny"].refusal
    assert [event.kind for event in only(events, UnitLeased) if event.worker == "tiny"] == ["sketch"]
    assert campaign.finished == "every leaf has had its steps"


def test_with_too_few_sketches_the_tree_is_set_after_a_while():
    campaign, events, _ = run_world(crowd(2), min_workers=5)
    position = events.index(only(events, TopologySet)[0])
    assert all(event.at_s >= 100 for event in only(events[position:], UnitLeased))
    assert campaign.finished == "every leaf has had its steps"


def test_the_gates_at_the_end_are_those_of_the_pooled_texts():
    """Every leaf's sums are those of its holders' sketches; nothing is lost on the way through units and rounds."""
    campaign, _, ledger = run_world(crowd(6), depth=2, min_workers=6)
    pooled = {leaf: RouterStatistics.zero(DIM) for leaf in campaign.leaves}
    for worker in crowd(6):
        assert isinstance(worker.runner, FakeRunner)
        pooled[campaign.workers[worker.name].node or ""] += worker.runner.sums
    expected = solve_gates(pooled, Topology.perfect(2))
    gates = Blobs(ledger, TorchNumerics()).gates(campaign.router.blob)
    for node, gate in expected.nodes.items():
        np.testing.assert_allclose(gates.nodes[node].w, gate.w, rtol=1e-10)
        np.testing.assert_allclose(gates.nodes[node].b, gate.b, rtol=1e-10)


# --- the fold --------------------------------------------------------------------------------------------------------


def test_the_state_is_the_fold_of_what_was_written():
    campaign, events, _ = run_world(crowd(3), depth=2, min_workers=3, router_sync="both")
    assert fold(events) == campaign
    assert fold(event_from_json(event_to_json(event)) for event in events) == campaign


@functools.cache
def _events():
    return run_world(crowd(2))[1]


@given(st.data())
def test_a_fold_can_be_cut_anywhere(data):
    events = _events()
    cut = data.draw(st.integers(1, len(events) - 1))
    state = fold(events[:cut])
    for event in events[cut:]:
        state = apply(state, event)
    assert state == fold(events)


def test_a_run_begins_with_its_start_and_only_once():
    start = RunStarted(run="test", settings=SETTINGS, base=FACTS)
    with pytest.raises(StorageError, match="first event is worker_joined"):
        apply(None, WorkerJoined(worker="w0", name="w0"))
    with pytest.raises(StorageError, match="later event is run_started"):
        apply(apply(None, start), start)
    assert fold([]) is None


# --- taking a run up again -------------------------------------------------------------------------------------------


def test_a_finished_run_stays_as_it_is():
    campaign, events, ledger = run_world(crowd(2))
    again, more, _ = run_world(crowd(2), ledger=ledger)
    assert again == campaign
    assert more == events


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"name": "other"}, "holds run test"), ({"leaf_steps": 99}, "leaf_steps 20 to 99")],
)
def test_a_ledger_of_another_run_is_refused(change, sentence):
    _, _, ledger = run_world(crowd(2))
    with pytest.raises(SettingError, match=sentence):
        run_world(crowd(2), ledger=ledger, **change)


def _named_blobs(events):
    return {event.blob for event in events if isinstance(event, UpdateAccepted | GatesSolved | NodeAveraged)}


def test_a_run_goes_on_from_any_event():
    """The process died after any event: the run is taken up, ends, and counts every step once."""
    few: dict[str, Any] = {"depth": 1, "min_workers": 3, "leaf_steps": 10}
    _, events, ledger = run_world(crowd(3), **few)
    for cut in range(1, len(events)):
        half = MemoryLedger()
        half.append(events[:cut], 0.0)
        for blob in _named_blobs(events):
            half.put_blob(ledger.get_blob(blob))
        campaign, _, _ = run_world(crowd(3), ledger=half, **few)
        assert campaign.finished == "every leaf has had its steps", cut
        assert_counted_once(campaign, half)

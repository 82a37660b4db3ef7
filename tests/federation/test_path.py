"""Adapters on whole paths: who trains which node when, from what, and that every step is counted once."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.federation.facts import SETTINGS
from tests.federation.test_faults import _schedules
from tests.federation.world import FakeRunner, assert_counted_once, crowd, only, run_world
from tinylora import tensors
from tinylora.config import make_settings
from tinylora.errors import SettingError
from tinylora.federation.campaign import fold
from tinylora.federation.events import NodeAveraged, UnitLeased, UpdateAccepted
from tinylora.federation.summary import summarise
from tinylora.protocol.documents import WorkUnit
from tinylora.release import make_bundle
from tinylora.simulate import FaultPlan, SimulatedWorker
from tinylora.tree import Topology, ancestors

CASCADE: dict[str, Any] = {"where": "path", "depth": 2, "min_workers": 4}
JOINT: dict[str, Any] = CASCADE | {"path_training": "joint"}
ALL = ("", "0", "1", "00", "01", "10", "11")


def _leases(events) -> list[UnitLeased]:
    return [event for event in only(events, UnitLeased) if event.kind == "train"]


def _steps_by_worker(events) -> dict[str, int]:
    found: dict[str, int] = {}
    for event in only(events, UpdateAccepted):
        found[event.worker] = found.get(event.worker, 0) + event.n_steps
    return found


# --- a cascade -------------------------------------------------------------------------------------------------------


def test_a_cascade_divides_the_steps_of_a_leaf_among_its_levels():
    campaign, events, ledger = run_world(crowd(4), **CASCADE)
    assert campaign.finished == "every leaf has had its steps"
    assert tuple(campaign.nodes) == ALL
    assert {top: node.steps for top, node in campaign.nodes.items()} == {
        "": 6, "0": 6, "1": 6, "00": 8, "01": 8, "10": 8, "11": 8
    }  # fmt: skip
    assert_counted_once(campaign, ledger)
    assert _steps_by_worker(events) == dict.fromkeys(("w0", "w1", "w2", "w3"), 20)


def test_levels_may_be_given():
    campaign, _, ledger = run_world(crowd(4), path_steps=(1, 7, 12), **CASCADE)
    assert [campaign.nodes[top].steps for top in ALL] == [1, 7, 7, 12, 12, 12, 12]
    assert_counted_once(campaign, ledger)


def test_a_node_of_the_trunk_is_averaged_over_all_workers_below_it():
    campaign, events, _ = run_world(crowd(4), **CASCADE)
    holders = {worker.node: name for name, worker in campaign.workers.items()}
    for event in only(events, NodeAveraged):
        below = tuple(sorted(name for leaf, name in holders.items() if (leaf or "").startswith(event.node)))
        assert event.contributors == below


def test_a_level_begins_when_the_one_above_it_is_done():
    _, events, _ = run_world(crowd(4), **CASCADE)
    done: dict[str, int] = {}
    for event in events:
        if isinstance(event, NodeAveraged):
            done[event.node] = event.n_steps
        if isinstance(event, UnitLeased) and event.kind == "train":
            (node,) = event.nodes
            assert event.frozen == ancestors(node)
            assert all(done[above] == 6 for above in ancestors(node))
            assert event.node.startswith(node)


def test_a_unit_carries_its_ancestors_and_brings_itself_alone():
    carried: dict[str, set[str]] = {}

    class Watching(FakeRunner):
        def run(self, unit: WorkUnit, payload: bytes):
            if unit.kind == "train":
                names = (name.split(".") for name in unit.manifest)
                carried.setdefault(unit.unit_id, {parts[1] for parts in names if parts[0] == "node"})
            return super().run(unit, payload)

    watching = [
        SimulatedWorker(f"w{i}", runner=Watching(f"w{i}", (2.0 * i, 0, 0, 0)), seconds_per_step=1.0) for i in range(4)
    ]
    _, events, ledger = run_world(watching, **CASCADE)
    leases = {lease.unit_id: lease for lease in _leases(events)}
    for unit, nodes in carried.items():
        lease = leases[unit]
        assert nodes == {*lease.frozen, *(lease.nodes if lease.node_version else ())}
    for event in only(events, UpdateAccepted):
        if event.kind == "train":
            found = tensors.from_bytes(ledger.get_blob(event.blob))
            assert {name.split(".")[1] for name in found if name.startswith("node.")} == set(event.nodes)


def test_the_schedule_is_that_of_the_level():
    totals: dict[str, int] = {}

    class Watching(FakeRunner):
        def run(self, unit: WorkUnit, payload: bytes):
            totals.update(dict.fromkeys(unit.trained, unit.total_steps))
            return super().run(unit, payload)

    run_world([SimulatedWorker("w0", runner=Watching("w0"))], where="path", depth=0, min_workers=1)
    assert totals == {"": 20}
    run_world(
        [SimulatedWorker(f"w{i}", runner=Watching(f"w{i}", (2.0 * i, 0, 0, 0))) for i in range(2)],
        where="path",
        depth=1,
    )
    assert totals == {"": 10, "0": 10, "1": 10}


@pytest.mark.parametrize("mode", [CASCADE, JOINT])
@pytest.mark.parametrize("n_workers", [1, 3, 6])
def test_any_number_of_workers(mode, n_workers):
    """A held subtree has adapters at its leaves alone; what its inner levels would have had goes to them."""
    campaign, events, ledger = run_world(crowd(n_workers), **mode | {"min_workers": n_workers})
    assert campaign.finished == "every leaf has had its steps"
    tops = {worker.node or "" for worker in campaign.workers.values()}
    trunk = {above for top in tops for above in ancestors(top)}
    assert set(campaign.nodes) == tops | trunk
    if mode is CASCADE:
        assert_counted_once(campaign, ledger)
    assert set(_steps_by_worker(events).values()) == {20}
    bundle = make_bundle(campaign, ledger)
    assert set(bundle.nodes) == trunk | set(Topology.perfect(2).leaves)
    assert summarise(events)["topology"]["nodes"].keys() == tops | trunk


def test_alternating_factors_in_a_cascade():
    _, events, _ = run_world(crowd(4), replicas="alternate", **CASCADE)
    turns = {(lease.nodes[0], lease.node_version): lease.factors for lease in _leases(events)}
    assert turns["", 0] == ("lora_B",)
    assert turns["", 1] == ("lora_A",)
    assert turns["0", 0] == ("lora_B",)
    assert turns["00", 0] == ()


# --- jointly ---------------------------------------------------------------------------------------------------------


def test_a_joint_unit_trains_the_whole_path():
    campaign, events, ledger = run_world(crowd(4), **JOINT)
    assert {lease.nodes for lease in _leases(events)} == {(*ancestors(leaf), leaf) for leaf in campaign.leaves}
    assert {node.steps for node in campaign.nodes.values()} == {20}
    assert_counted_once(campaign, ledger)
    roots = [event for event in only(events, NodeAveraged) if event.node == ""]
    assert [event.contributors for event in roots] == [("w0", "w1", "w2", "w3")] * 4
    leaves = [event for event in only(events, NodeAveraged) if len(event.node) == 2]
    assert {len(event.contributors) for event in leaves} == {1}


def test_a_worker_waits_for_the_shared_nodes_of_its_path():
    """One worker is slower; the others do not run ahead on a root that it has not brought back yet."""
    workers = crowd(4)
    slow = SimulatedWorker("w3", runner=workers[3].runner, seconds_per_step=1.5)
    campaign, events, ledger = run_world([*workers[:3], slow], **JOINT)
    assert_counted_once(campaign, ledger)
    roots = [event for event in only(events, NodeAveraged) if event.node == ""]
    assert [event.version for event in roots] == [1, 2, 3, 4]
    assert all(len(event.contributors) == 4 for event in roots)


def test_whoever_comes_late_finds_the_trunk_done():
    workers = crowd(4)
    campaign, events, ledger = run_world(
        workers, faults=FaultPlan.parse(silent=["3@1"]), first_deadline_s=500.0, **JOINT
    )
    late = campaign.workers["w3"].node or ""
    alone = [lease for lease in _leases(events) if lease.nodes == (late,)]
    assert alone and all(lease.frozen == ancestors(late) for lease in alone)
    assert_counted_once(campaign, ledger)


# --- faults ----------------------------------------------------------------------------------------------------------


def test_a_lost_worker_s_leaf_is_adopted_beside_its_frozen_path():
    campaign, events, ledger = run_world(crowd(4), faults=FaultPlan.parse(kill=["1@2"]), **CASCADE)
    lost = campaign.workers["w1"].node or ""
    adopted = [lease for lease in _leases(events) if lease.is_adopted]
    assert {(lease.node, lease.nodes, lease.frozen) for lease in adopted} == {(lost, (lost,), ancestors(lost))}
    assert_counted_once(campaign, ledger)


def test_a_node_of_the_trunk_whose_workers_are_all_gone_is_adopted():
    first, _, _ = run_world(crowd(4), **CASCADE)
    gone = sorted(name for name, worker in first.workers.items() if (worker.node or "").startswith("0"))
    plan = FaultPlan.parse(kill=[f"{name}@3" for name in gone])
    campaign, events, ledger = run_world(crowd(4), faults=plan, **CASCADE)
    assert {lease.nodes for lease in _leases(events) if lease.is_adopted} == {("0",), ("00",), ("01",)}
    assert_counted_once(campaign, ledger)


def test_jointly_the_leaf_alone_is_adopted():
    campaign, events, _ = run_world(crowd(4), faults=FaultPlan.parse(kill=["1@2"]), **JOINT)
    lost = campaign.workers["w1"].node or ""
    adopted = [lease for lease in _leases(events) if lease.is_adopted]
    assert {(lease.nodes, lease.frozen) for lease in adopted} == {((lost,), ancestors(lost))}
    assert campaign.finished == "every leaf has had its steps"


@settings(max_examples=12)
@given(schedule=_schedules, is_joint=st.booleans(), depth=st.integers(0, 2))
def test_whatever_goes_wrong_every_node_has_its_steps(schedule, is_joint, depth):
    mode = (JOINT if is_joint else CASCADE) | {"depth": depth}
    campaign, events, ledger = run_world(crowd(4), router_period=50, faults=FaultPlan(schedule), **mode)
    assert campaign.finished
    assert fold(events) == campaign
    accepted = [event.unit_id for event in only(events, UpdateAccepted)]
    assert len(accepted) == len(set(accepted))
    dead = {worker for (worker, _), fault in schedule.items() if fault.kind == "kill" and fault.seconds > 1e6}
    if len(dead) < 4:
        assert campaign.finished == "every leaf has had its steps"
        if not is_joint:
            assert_counted_once(campaign, ledger)
        for top, node in campaign.nodes.items():
            if not campaign.is_trunk(top):
                assert node.steps == campaign.budget(top)


def test_the_same_run_twice_is_the_same():
    for mode in (CASCADE, JOINT):
        first, second = (run_world(crowd(4), faults=FaultPlan.parse(kill=["2@3:40"]), **mode) for _ in range(2))
        assert first[:2] == second[:2]


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"where": "trunk"}, "where: input should be 'leaves' or 'path'"),
        ({"path_steps": [1, 2]}, "path_steps: expected none"),
        ({"where": "path", "path_steps": [100, 300]}, r"path_steps: expected 3 numbers.*got \(100, 300\)"),
        ({"where": "path", "path_steps": [100, 100, 100]}, "path_steps: expected 3 numbers.*the 400 leaf_steps"),
        ({"where": "path", "path_steps": [0, 200, 200]}, r"path_steps\.0: input should be greater than or equal to 1"),
        ({"where": "path", "leaf_steps": 2}, "leaf_steps 2: expected at least 3"),
        (
            {"where": "path", "path_training": "joint", "replicas": "alternate"},
            "replicas = alternate: expected path_tr",
        ),
    ],
)
def test_paths_that_make_no_sense(values, sentence):
    with pytest.raises(SettingError, match=f"run.toml: {sentence}"):
        make_settings("run.toml", values)


def test_steps_by_level_come_from_lists_and_from_the_command_line():
    values: dict[str, object] = {"where": "path", "leaf_steps": 20}
    read = {
        make_settings("x", values | {"path_steps": given}).path_steps for given in ([1, 7, 12], "1,7,12", "[1, 7, 12]")
    }
    assert read == {(1, 7, 12)}
    assert make_settings("x", {"path_steps": ""}).path_steps == ()
    with pytest.raises(SettingError, match=r"path_steps\.1: input should be a valid integer"):
        make_settings("x", values | {"path_steps": "1,two"})


def test_equal_shares_leave_the_rest_to_the_leaves():
    settings = SETTINGS.model_copy(update={"where": "path", "depth": 2, "leaf_steps": 20})
    assert settings.level_steps == (6, 6, 8)
    assert SETTINGS.model_copy(update={"depth": 0}).level_steps == (20,)

"""What is decided, from a state and a time alone."""

import math
from dataclasses import replace
from typing import Any

import pytest

from tests.federation.facts import FACTS, SETTINGS
from tinylora.federation.campaign import Campaign, Node, Router, Worker
from tinylora.federation.decisions import (
    Adopt,
    Assign,
    Average,
    Expire,
    Finish,
    Give,
    Lose,
    Return,
    SetTopology,
    Solve,
    Welcome,
    decide,
    wakes_at,
)
from tinylora.federation.events import UnitLeased, UpdateAccepted
from tinylora.federation.ports import WorkerInfo
from tinylora.protocol.documents import UnitKind
from tinylora.tree import Topology

A, B, C = (WorkerInfo(name, name) for name in "abc")
SKETCHED = {"sketch": "1" * 64, "sketch_version": "2" * 64, "shard_version": "2" * 64}


def _worker(name: str, **fields: Any) -> Worker:
    return replace(Worker(name, name), **fields)


def _lease(
    unit: str, worker: str, *, kind: UnitKind = "train", node: str = "0", deadline_s: float = 60.0
) -> UnitLeased:
    return UnitLeased(
        unit_id=unit, worker=worker, kind=kind, node=node, nonce="n", topology_version=1, router_version=1,
        node_version=0, n_steps=5, at_s=0.0, deadline_s=deadline_s,
    )  # fmt: skip


def _update(worker: str, node: str) -> UpdateAccepted:
    return UpdateAccepted(
        unit_id=f"u-{worker}", worker=worker, kind="train", node=node, node_version=0, router_version=1, n_steps=5,
        shard_version="2" * 64, shard_tokens=1, tokens=1, seconds=1.0, base_loads=1, blob="3" * 64, bytes_received=1,
        at_s=1.0,
    )  # fmt: skip


def _new(*workers: Worker, **fields: Any) -> Campaign:
    return replace(Campaign("test", SETTINGS, FACTS, {worker.worker: worker for worker in workers}), **fields)


def _grown(*workers: Worker, **fields: Any) -> Campaign:
    """Two leaves, gates solved, nothing trained."""
    base = {"topology": Topology.perfect(1), "nodes": {"0": Node(), "1": Node()}, "router": Router(1, "4" * 64)}
    return _new(*(replace(worker, **SKETCHED) for worker in workers), **(base | fields))


def test_who_comes_goes_and_returns():
    state = _new(_worker("a"), _worker("b", is_online=False))
    assert decide(state, 0.0, [B, C]) == [Lose("a"), Return("b"), Welcome(C)]


def test_a_new_worker_is_sketched_at_once():
    assert decide(_new(_worker("a"), _worker("b", refusal="no")), 0.0, [A, B]) == [Give("a", "sketch")]


def test_an_overdue_lease_is_taken_back_before_anything_else():
    state = _grown(_worker("a", node="0", unit_id="u1"), leases={"u1": _lease("u1", "a")})
    assert decide(state, 60.0, [A]) == [Expire("u1", "the deadline passed")]
    assert decide(state, 59.0, [A]) == []


def test_the_tree_waits_for_enough_sketches_and_for_those_under_way():
    ready = [_worker(name, **SKETCHED) for name in "ab"]
    drawing = _worker("c", unit_id="u1")
    leases = {"u1": _lease("u1", "c", kind="sketch", node="")}
    one = _new(ready[0], first_sketch_at_s=1.0)
    assert decide(one, 2.0, [A]) == []
    assert decide(one, 101.0, [A]) == [SetTopology(("a",))]
    assert decide(_new(*ready, first_sketch_at_s=1.0), 2.0, [A, B]) == [SetTopology(("a", "b"))]
    three = _new(*ready, drawing, leases=leases, first_sketch_at_s=1.0)
    assert decide(three, 2.0, [A, B, C]) == []
    assert decide(three, 6.0, [A, B, C]) == [SetTopology(("a", "b"))]


def test_a_round_ends_when_every_lease_on_it_is_settled():
    done = {"0": Node(contributions=(_update("a", "0"),)), "1": Node()}
    workers = (_worker("a", node="0"), _worker("b", node="0", unit_id="u1"))
    still_open = _grown(*workers, nodes=done, leases={"u1": _lease("u1", "b")})
    assert not [c for c in decide(still_open, 1.0, [A, B]) if isinstance(c, Average)]
    settled = _grown(workers[0], nodes=done)
    assert decide(settled, 1.0, [A]) == [Average("0")]


def test_a_subtree_moves_on_only_with_all_its_leaves():
    nodes = {"0": Node(contributions=(_update("b", "01"),)), "1": Node(steps=20)}
    state = _grown(_worker("b", node="01"), nodes=nodes, topology=Topology(("00", "01", "1")))
    assert decide(state, 1.0, [B]) == [Adopt("00", ("b",))]
    nodes["0"] = Node(contributions=(_update("b", "00"), _update("b", "01")))
    assert decide(replace(state, nodes=nodes), 1.0, [B]) == [Average("0")]


@pytest.mark.parametrize(
    ("router", "reason"),
    [(Router(), "the first sketches"), (Router(1, "4" * 64, n_updates=4), "4 updates"),
     (Router(1, "4" * 64, has_news=True), "new statistics"), (Router(1, "4" * 64, n_updates=3), "")],
)  # fmt: skip
def test_when_gates_are_due(router, reason):
    commands = decide(_grown(_worker("a", node="0", unit_id="u1"), router=router), 1.0, [A])
    assert [c for c in commands if isinstance(c, Solve)] == ([Solve(reason)] if reason else [])


def test_the_end_comes_after_the_last_gates():
    nodes = {"0": Node(steps=20), "1": Node(steps=20)}
    assert decide(_grown(nodes=nodes, router=Router(3, "4" * 64, n_updates=1)), 1.0, []) == [Solve("the end")]
    assert decide(_grown(nodes=nodes), 1.0, []) == [Finish("every leaf has had its steps")]
    assert decide(_grown(nodes=nodes, finished="over"), 1.0, [A]) == []


def test_a_worker_without_a_leaf_gets_an_orphan_first():
    state = _grown(_worker("a", node="0", unit_id="u1"), _worker("c"))
    assert decide(state, 1.0, [A, C]) == [Assign("c", ("1",))]
    both = _grown(_worker("a", node="0", unit_id="u1"), _worker("b", node="1", unit_id="u2"), _worker("c"))
    assert decide(both, 1.0, [A, B, C]) == [Assign("c", ("0", "1"))]


def test_own_work_goes_before_orphans_and_a_resting_worker_gets_nothing():
    state = _grown(_worker("a", node="0"), _worker("b", node="1", rests_until_s=9.0))
    assert decide(state, 1.0, [A, B]) == [Give("a", "train", "0")]
    waiting = replace(state, nodes={"0": Node(steps=20), "1": Node()})
    assert decide(waiting, 1.0, [A, B]) == [Adopt("1", ("a",))]
    assert decide(waiting, 9.0, [A, B]) == [Give("b", "train", "1")]


def test_a_changed_shard_is_sketched_again_before_it_is_trained_on():
    state = _grown(_worker("a", node="0"))
    changed = replace(state.workers["a"], shard_version="9" * 64)
    assert decide(replace(state, workers={"a": changed}), 1.0, [A]) == [Give("a", "sketch")]


def test_a_subtree_that_became_too_large_for_its_holder_is_trained_leaf_by_leaf():
    """Its device was found smaller after the tree was set: it is never given the whole again."""
    workers = _worker("w1", node="0", max_leaves=1), _worker("w2", node="1", max_leaves=2)
    state = _grown(*workers, topology=Topology.perfect(2), nodes={"0": Node(), "1": Node()})
    commands = decide(state, 0.0, [WorkerInfo(worker.worker, "") for worker in workers])
    assert commands == [Give("w2", "train", "1")]
    busy = replace(state.workers["w2"], unit_id="u")
    state = replace(state, workers={**state.workers, "w2": busy})
    assert decide(state, 0.0, [WorkerInfo(worker.worker, "") for worker in workers]) == [Adopt("00", ("w1",))]


def test_patience():
    state = _grown(_worker("a", node="0", is_online=False), progress_at_s=10.0)
    assert decide(state, 109.0, [], patience_s=100.0) == []
    (end,) = decide(state, 110.0, [], patience_s=100.0)
    assert isinstance(end, Finish)
    assert end.reason == ("nobody could go on; node 0 has had 0 of 20 steps; node 1 has had 0 of 20 steps")
    assert decide(state, 110.0, [], patience_s=100.0, since_s=50.0) == []
    assert decide(_new(), 1e9, []) == []


def test_it_wakes_when_something_is_due():
    assert wakes_at(_new(), 0.0, patience_s=math.inf) == math.inf
    state = _grown(
        _worker("a", node="0", unit_id="u1"), _worker("b", rests_until_s=30.0), leases={"u1": _lease("u1", "a")}
    )
    assert wakes_at(state, 0.0) == 30.0
    assert wakes_at(state, 30.0) == 60.0
    assert wakes_at(state, 60.0) == 3600.0
    started = _new(_worker("a", **SKETCHED), first_sketch_at_s=1.0)
    assert wakes_at(started, 0.0) == 6.0
    assert wakes_at(started, 6.0) == 101.0

"""A worker taken out: by rule or by the operator, its sums leave the gates, its work the parts, and the run goes on."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.federation.facts import DIM
from tests.federation.test_orders import order, run_with
from tests.federation.world import FakeRunner, assert_counted_once, cloud, crowd, only, run_world
from tinylora import tensors
from tinylora.bundle import write_bundle
from tinylora.federation.campaign import fold
from tinylora.federation.events import (
    GatesSolved,
    NodeAveraged,
    UnitLeased,
    UpdateAccepted,
    UpdateRejected,
    WorkerErased,
    WorkerQuarantined,
    WorkerRevoked,
)
from tinylora.federation.ledger_memory import MemoryLedger
from tinylora.federation.retention import named, owned
from tinylora.federation.routers import Blobs, capped_shares
from tinylora.federation.standing import CLASS_OF, MAX_STRIKES, WINDOW, is_on_probation, why_quarantine
from tinylora.federation.state import Campaign, Worker
from tinylora.numerics import TorchNumerics
from tinylora.release import make_bundle
from tinylora.routing.features import feature_hash
from tinylora.routing.gates import solve_gates
from tinylora.routing.statistics import sum_statistics
from tinylora.simulate import SimulatedWorker
from tinylora.tree import Topology

HERE: dict[str, Any] = {"depth": 1, "probes": 0}


def _gates(campaign: Campaign, ledger):
    return Blobs(ledger, TorchNumerics()).gates(campaign.router.blob)


def _bytes(campaign: Campaign, ledger, tmp_path, **options: Any) -> bytes:
    file = tmp_path / "bundle.safetensors"
    bundle = make_bundle(campaign, ledger, **options)
    facts = bundle.base.model_copy(update={"feature_hash": feature_hash(None, DIM, DIM)})
    write_bundle(replace(bundle, base=facts), file)
    return file.read_bytes()


# --- standing --------------------------------------------------------------------------------------------------------


def test_three_strikes_within_ten_results():
    worker = Worker("w", "w", last_fault="so")
    assert why_quarantine(replace(worker, results=("fault", "ok", "harm", "ok"))) is None
    assert why_quarantine(replace(worker, results=("fault", "ok", "harm", "ok", "fault"))) is not None
    assert why_quarantine(replace(worker, results=("forgery",)))[0] == "forgery"  # type: ignore[index]
    assert why_quarantine(replace(worker, results=("forgery",), refusal="gone")) is None
    assert MAX_STRIKES < WINDOW


def test_old_strikes_are_forgotten():
    """Every fifth update is bad: two within ten at any time."""
    numbers = iter(range(1000))

    def sometimes(unit, made):
        is_bad = unit.kind == "train" and next(numbers) % 5 == 4
        return {name: tensor * np.nan for name, tensor in made.items()} if is_bad else made

    good, bad = crowd(2)
    assert isinstance(bad.runner, FakeRunner)
    bad = replace(bad, runner=replace(bad.runner, spoil=sometimes))
    campaign, events, ledger = run_world([good, bad], leaf_steps=100, unit_steps=5)
    assert len(only(events, UpdateRejected)) >= 4
    assert campaign.workers["w1"].standing == "good"
    assert_counted_once(campaign, ledger)


def test_every_class_is_used():
    assert set(CLASS_OF.values()) == {"benign", "fault", "harm", "forgery"}


def test_probation_ends_with_the_second_update():
    _, events, _ = run_world(crowd(2), **HERE)
    seen = []
    for n in range(1, len(events) + 1):
        worker = (fold(events[:n]) or None).workers.get("w0")  # type: ignore[union-attr]
        if worker:
            seen.append((worker.n_trained, is_on_probation(worker)))
    assert {(n, n < 2) for n in range(5)} == set(seen)


def test_an_orphan_goes_to_those_past_probation_first():
    """The one who holds the leaf is gone; a newcomer is idle, and so is an old hand."""
    workers = [*crowd(3)[:2], replace(crowd(3)[2], leaves_at_s=20.0)]
    campaign, events, ledger = run_world(workers, depth=2, min_workers=3, leaf_steps=20)
    adopted = [lease for lease in only(events, UnitLeased) if lease.is_adopted]
    for lease in adopted:
        state = fold(events[: events.index(lease)])
        assert state is not None
        idle = [w for w in state.workers.values() if w.is_free(lease.at_s) and w.sketch]
        assert not is_on_probation(state.workers[lease.worker]) or all(is_on_probation(worker) for worker in idle)
    assert adopted
    assert_counted_once(campaign, ledger)


# --- quarantine and revocation ---------------------------------------------------------------------------------------


def test_the_gates_after_a_revocation_are_those_of_the_others():
    campaign, _, ledger, _ = run_with((9.0, order(1, "revoke", worker="w1")), n=6, **HERE)
    texts = {leaf: {} for leaf in campaign.leaves}
    for worker in crowd(6):
        assert isinstance(worker.runner, FakeRunner)
        node = campaign.workers[worker.name].node
        if node is not None:
            texts[node][worker.name] = worker.runner.sums
    assert sum(map(len, texts.values())) == 5
    expected = solve_gates({leaf: sum_statistics(items) for leaf, items in texts.items()}, Topology.perfect(1))
    gate = _gates(campaign, ledger).nodes[""]
    np.testing.assert_allclose(gate.w, expected.nodes[""].w, rtol=1e-12)
    np.testing.assert_allclose(gate.b, expected.nodes[""].b, rtol=1e-12)


def test_a_leaf_of_its_own_goes_back_to_nothing_and_is_adopted():
    campaign, events, ledger, _ = run_with((14.0, order(1, "revoke", worker="w1")), n=2, **HERE)
    (revoked,) = only(events, WorkerRevoked)
    state = fold(events[: events.index(revoked) + 1])
    before = fold(events[: events.index(revoked)])
    assert state is not None and before is not None
    node = before.workers["w1"].node or ""
    assert before.nodes[node].steps and before.nodes[node].blob
    assert (state.nodes[node].steps, state.nodes[node].blob) == (0, "")
    assert state.nodes[node].version > before.nodes[node].version
    after = [lease for lease in only(events, UnitLeased) if lease.node == node and lease.at_s > revoked.at_s]
    assert {lease.worker for lease in after} == {"w0"} and after[0].node_version == 0 and after[0].first_step == 0
    assert campaign.finished == "every leaf has had its steps"
    assert_counted_once(campaign, ledger)


def test_what_was_shared_goes_back_to_the_last_version_without_it():
    """A second worker joined a leaf late; what both made since then is gone, what the first one made before is not."""
    late = SimulatedWorker("late", runner=FakeRunner("late", (2.1, 0, 0, 0)), joins_at_s=12.0, seconds_per_step=1.0)
    campaign, events, _ = run_world([*crowd(2), late], leaf_steps=40)
    node = campaign.workers["late"].node or ""
    averaged = [event for event in only(events, NodeAveraged) if event.node == node]
    first = next(i for i, event in enumerate(averaged) if "late" in event.contributors)
    assert first > 0
    from tinylora.federation.removal import revoked

    after = revoked(campaign, WorkerRevoked(worker="late"))
    assert (after.nodes[node].blob, after.nodes[node].steps) == (averaged[first - 1].blob, averaged[first - 1].n_steps)
    assert after.nodes[node].before.keys() == {"w1"}
    assert after.workers["late"].refusal and after.workers["late"].node is None


def test_a_late_answer_of_a_revoked_worker_changes_nothing():
    campaign, events, ledger, _ = run_with((8.0, order(1, "revoke", worker="w1")), n=4, depth=1, probes=2)
    (revoked,) = only(events, WorkerRevoked)
    position = events.index(revoked)
    assert not [event for event in only(events[position:], UpdateAccepted) if event.worker == "w1"]
    assert {event.code for event in only(events[position:], UpdateRejected) if event.worker == "w1"} <= {"lease_closed"}
    assert_counted_once(campaign, ledger)


def test_everybody_may_be_taken_out():
    planned = [(9.0 + i, order(i, "revoke", worker=f"w{i}")) for i in range(2)]
    campaign, _, ledger, _ = run_with(*planned, n=2, **HERE)
    assert "nobody could go on" in campaign.finished
    assert not _gates(campaign, ledger).nodes[""].w.any()
    assert make_bundle(campaign, ledger).nodes == {}


@pytest.mark.parametrize("where", ["leaves", "path"])
@pytest.mark.parametrize("moment", [0.4, 0.7, 1.0])
@pytest.mark.parametrize("sync", ["statistics", "both"])
def test_a_bundle_without_a_worker_is_that_of_a_run_that_revoked_it(tmp_path, where, moment, sync):
    _, events, ledger = run_world(crowd(4, has_histograms=True), depth=1, where=where, router_sync=sync, min_workers=4)
    half = MemoryLedger()
    half.append(events[: max(30, int(moment * len(events)))], 0.0)
    for event in half.events():
        for blob in named(event):
            half.put_blob(ledger.get_blob(blob))
    campaign = fold(half.events())
    assert campaign is not None and campaign.router.version
    without = _bytes(campaign, half, tmp_path, without="w2")
    assert fold(half.events()) == campaign  # the ledger was left alone
    changes = {"depth": 1, "where": where, "router_sync": sync}
    planned = ((0.0, order(1, "revoke", worker="w2")), (0.0, order(2, "finish")))
    after, _, _, _ = run_with(*planned, n=4, ledger=half, **changes)
    assert _bytes(after, half, tmp_path) == without
    assert b'"w2"' not in without


@pytest.mark.parametrize("at_s", [8.0, 14.0, 22.0])
def test_an_erased_worker_leaves_no_blob(at_s):
    campaign, events, ledger, desk = run_with((at_s, order(1, "erase", worker="w1")), n=4, depth=1, probes=2)
    (erased,) = only(events, WorkerErased)
    assert desk.outcomes["o1"].startswith("erased worker w1")
    brought = {event.blob for event in only(events, UpdateAccepted) if event.worker == "w1"}
    others = {event.blob for event in only(events, UpdateAccepted) if event.worker != "w1"}
    others |= {blob for event in events[events.index(erased) :] for blob in named(event)}  # those count steps alike
    assert isinstance(ledger, MemoryLedger)
    assert not (brought - others) & ledger._blobs.keys()
    assert brought - others <= set(erased.blobs)
    made_of_it = {e.blob for e in only(events, NodeAveraged) if "w1" in e.contributors}
    assert not (made_of_it - others) & ledger._blobs.keys()
    assert campaign.workers["w1"].standing == "erased"
    assert_counted_once(campaign, ledger)  # what the others do from here on needs nothing of it
    assert make_bundle(campaign, ledger).contributors == ("w0", "w2", "w3")


def test_what_others_brought_too_is_theirs():
    _, events, _ = run_world(crowd(4), depth=1, min_workers=4)
    own = owned(events, "w1")
    assert own and not own & {event.blob for event in only(events, UpdateAccepted) if event.worker != "w1"}


# --- routing capture, and claims of much text ------------------------------------------------------------------------


def test_a_leaf_that_draws_everybodys_text_costs_its_holder_its_place():
    workers = []
    for worker in crowd(6):
        assert isinstance(worker.runner, FakeRunner)
        shares = {"00": 0.95, "01": 0.05}
        workers.append(replace(worker, runner=replace(worker.runner, mass=shares)))
    campaign, events, ledger = run_world(workers, depth=2, min_workers=6, probes=3)
    (quarantined, *others) = only(events, WorkerQuarantined)
    assert quarantined.code == "routing_capture" and "95%" in quarantined.reason
    state = fold(events[: events.index(quarantined)])
    assert state is not None and state.workers[quarantined.worker].node == "00"
    solved = next(e for e in events[events.index(quarantined) :] if isinstance(e, GatesSolved))
    assert solved.reason == "new statistics"
    assert all(event.code == "routing_capture" for event in others)
    assert campaign.finished == "every leaf has had its steps"
    assert_counted_once(campaign, ledger)


def test_honest_shares_and_few_voices_cost_nobody_anything():
    for n, shares in ((6, {"00": 0.7, "01": 0.3}), (3, {"00": 0.99})):
        workers = []
        for worker in crowd(n):
            assert isinstance(worker.runner, FakeRunner)
            workers.append(replace(worker, runner=replace(worker.runner, mass=shares)))
        _, events, _ = run_world(workers, depth=2, min_workers=n, probes=3)
        assert not only(events, WorkerQuarantined)


def test_much_text_counts_for_at_most_some_medians():
    assert capped_shares({"a": 10.0, "b": 12.0, "c": 500.0}, 10.0) == {"c": pytest.approx(120 / 500)}
    assert capped_shares({"a": 10.0, "b": 12.0, "c": 100.0}, 10.0) == {}
    assert capped_shares({}, 10.0) == {}


def test_a_claim_of_endless_text_moves_a_shared_leaf_by_a_bound():
    """One of three on a leaf claims a million rows far away; it counts for ten medians."""

    class Boaster(FakeRunner):
        @property
        def sums(self):
            return cloud((50.0, 0, 0, 0), seed="boast") * 1e4

    workers = crowd(6)
    boaster = SimulatedWorker("w2", runner=Boaster("w2", (4.0, 0, 0, 0), shard_tokens=10**7), seconds_per_step=1.0)
    campaign, _, ledger = run_world([*workers[:2], boaster, *workers[3:]], min_workers=6, **HERE)
    leaf = campaign.workers["w2"].node
    own = {
        w.name: w.runner.sums for w in [*workers[:2], boaster, *workers[3:]]
        if isinstance(w.runner, FakeRunner) and campaign.workers[w.name].node == leaf
    }  # fmt: skip
    assert len(own) == 3
    from tinylora.federation.routers import leaf_statistics

    found = leaf_statistics(campaign, Blobs(ledger, TorchNumerics()))[leaf or ""]
    assert found["w2"].n == pytest.approx(10 * 60)
    for name, sums in own.items():
        if name != "w2":
            assert found[name].n == sums.n
            assert np.array_equal(found[name].total, sums.total)
    np.testing.assert_allclose(found["w2"].mean(), own["w2"].mean(), rtol=1e-12)
    assert found["w2"].dim == DIM


# --- numbers that a few cannot pull far ------------------------------------------------------------------------------


def test_one_replica_of_five_cannot_pull_a_leaf_far():
    def push(unit, made):
        return {name: tensor + 0.01 if name.endswith("B") else tensor for name, tensor in made.items()}

    def level(clip: float, *, is_pushed: bool) -> float:
        workers = crowd(5)
        if is_pushed:
            assert isinstance(workers[4].runner, FakeRunner)
            workers[4] = replace(workers[4], runner=replace(workers[4].runner, spoil=push))
        campaign, _, ledger = run_world(workers, depth=0, min_workers=5, clip=clip)
        found = tensors.from_bytes(ledger.get_blob(campaign.nodes[""].blob))
        return float(torch.cat([t.flatten() for n, t in found.items() if n.endswith("B")]).mean())

    honest = level(0.0, is_pushed=False)
    assert level(2.0, is_pushed=False) == honest
    plain, robust = level(0.0, is_pushed=True), level(2.0, is_pushed=True)
    assert plain - honest > 4 * 0.01 / 5 * 0.9
    assert robust - honest < (plain - honest) / 3

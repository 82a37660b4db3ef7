"""Probes: an update counts once others have scored it; who is asked, what the votes decide, that nobody waits."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.federation.facts import SETTINGS
from tests.federation.world import FakeRunner, answer, assert_counted_once, crowd, only, run_world, with_spoil
from tinylora.errors import DataError, ProtocolError
from tinylora.federation.campaign import fold
from tinylora.federation.events import (
    NodeAveraged,
    UnitLeased,
    UpdateAccepted,
    UpdateProbed,
    UpdateRejected,
    WorkerLost,
    WorkerQuarantined,
)
from tinylora.federation.probing import CREEP_FACTOR, usual_tolerance, verdict
from tinylora.federation.state import Vote
from tinylora.protocol.documents import ProbeResult, WorkUnit
from tinylora.simulate import Fault, FaultPlan, SimulatedWorker
from tinylora.tensors import Tensors

PROBED: dict[str, Any] = {"probes": 3, "depth": 2, "min_workers": 4}


def probed(**changes: Any) -> dict[str, Any]:
    """Settings of these runs with some changes."""
    return PROBED | changes


def _flip(unit: WorkUnit, made: Tensors) -> Tensors:
    """Ten times the honest way, backwards."""
    return {name: -10 * tensor if name.endswith("lora_B") else tensor for name, tensor in made.items()}


def _probes(events, kind: type = UnitLeased) -> list:
    return [event for event in only(events, kind) if event.kind == "probe"]


def test_every_update_is_scored_before_it_counts():
    campaign, events, ledger = run_world(crowd(4), **PROBED)
    trained = [event for event in only(events, UpdateAccepted) if event.kind == "train"]
    probed = only(events, UpdateProbed)
    assert all(event.is_pending for event in trained)
    assert [event.unit_id for event in probed] and {e.unit_id for e in probed} == {e.unit_id for e in trained}
    assert all(event.is_kept and event.n_votes == 3 for event in probed)
    assert all(event.change is not None and event.change < 0 for event in probed)
    assert_counted_once(campaign, ledger)
    assert campaign.finished == "every leaf has had its steps"
    assert not campaign.pending


def test_nobody_judges_its_own_work_and_nobody_twice():
    _, events, _ = run_world(crowd(6), **probed(min_workers=6))
    author = {event.unit_id: event.worker for event in only(events, UnitLeased)}
    asked = [(lease.subject, lease.worker) for lease in _probes(events)]
    assert len(asked) == len(set(asked))
    assert all(author[subject] != worker for subject, worker in asked)


def test_those_nearest_in_the_tree_are_asked_first():
    campaign, events, _ = run_world(crowd(6), **probed(min_workers=6, probes=1))
    shared = [lease for lease in _probes(events) if len(campaign.holders(lease.node)) > 1]
    author = {event.unit_id: event.worker for event in only(events, UnitLeased)}
    assert shared and any(campaign.workers[lease.worker].node == lease.node for lease in shared)
    assert all(lease.worker != author[lease.subject] for lease in shared)


def test_a_harmful_update_is_dropped_and_its_author_ends_in_quarantine():
    workers = crowd(4)
    campaign, events, ledger = run_world([*workers[:3], with_spoil(workers[3], _flip)], **PROBED)
    dropped = [event for event in only(events, UpdateProbed) if not event.is_kept]
    assert {event.worker for event in dropped} == {"w3"}
    assert len(dropped) == 3
    assert "nats per token more" in dropped[0].reason
    (quarantined,) = only(events, WorkerQuarantined)
    assert (quarantined.worker, quarantined.code) == ("w3", "strikes")
    assert_counted_once(campaign, ledger)  # the others adopt the leaf


def test_alone_one_is_believed():
    campaign, events, ledger = run_world(crowd(1), probes=3, depth=1, min_workers=1)
    assert {(event.is_kept, event.n_votes) for event in only(events, UpdateProbed)} == {(True, 0)}
    assert_counted_once(campaign, ledger)


def test_two_have_one_vote_each():
    campaign, events, ledger = run_world(crowd(2), probes=3)
    assert {(event.is_kept, event.n_votes) for event in only(events, UpdateProbed)} == {(True, 1)}
    assert_counted_once(campaign, ledger)


class _Dumb(FakeRunner):
    """Knows nothing of probes; `is_final`: has no text for any."""

    is_final = False

    def run(self, unit, payload):
        if unit.kind == "probe":
            raise DataError("no held-out text") if self.is_final else ProtocolError("unknown kind")
        return super().run(unit, payload)


@pytest.mark.parametrize("is_final", [False, True])
def test_workers_that_cannot_score_are_done_without(is_final):
    workers = crowd(4)
    dumb = []
    for worker in workers[2:]:
        assert isinstance(worker.runner, FakeRunner)
        runner = _Dumb(worker.name, worker.runner.centre)
        runner.is_final = is_final
        dumb.append(replace(worker, runner=runner))
    campaign, events, ledger = run_world([*workers[:2], *dumb], **PROBED)
    assert_counted_once(campaign, ledger)
    assert not any(worker.refusal for worker in campaign.workers.values())
    assert max(event.n_votes for event in only(events, UpdateProbed)) <= 2
    if is_final:  # each said so once, and was not asked again
        assert len(only(events, UpdateRejected)) == 2


def test_voters_that_vanish_or_fall_silent_are_replaced():
    faults = FaultPlan({("w1", 2): Fault("kill"), ("w2", 2): Fault("silent"), ("w3", 2): Fault("silent")})
    campaign, events, ledger = run_world(crowd(6), **probed(min_workers=6), faults=faults)
    assert only(events, WorkerLost)
    assert campaign.finished == "every leaf has had its steps"
    assert_counted_once(campaign, ledger)


@settings(max_examples=8)
@given(st.integers(0, 2**32))
def test_no_schedule_of_losses_ends_in_waiting(seed):
    campaign, _, ledger = run_world(crowd(4), **probed(leaf_steps=10, seed=seed), faults=FaultPlan(drop=0.3))
    assert campaign.finished == "every leaf has had its steps"
    assert_counted_once(campaign, ledger)


def test_those_who_share_a_token_are_one_voice():
    tokens = {"w0": "a", "w1": "a", "w2": "b", "w3": "b", "w4": "c"}
    workers = [replace(worker, token=tokens[worker.name]) for worker in crowd(5)]
    campaign, events, _ = run_world(workers, **probed(min_workers=5))
    voters: dict[str, set[str]] = {}
    for lease in _probes(events):
        voters.setdefault(lease.subject, set()).add(tokens[lease.worker])
    author = {event.unit_id: event.worker for event in only(events, UnitLeased)}
    for subject, names in voters.items():
        assert len(names) == len([lease for lease in _probes(events) if lease.subject == subject])
        assert tokens[author[subject]] not in names
    assert max(event.n_votes for event in only(events, UpdateProbed)) == 2
    assert campaign.workers["w0"].token == "a"


def test_replicas_are_averaged_when_all_of_them_are_scored():
    campaign, events, ledger = run_world(crowd(4), **probed(depth=1))
    assert all(len(event.contributors) == 2 for event in only(events, NodeAveraged))
    assert_counted_once(campaign, ledger)


@pytest.mark.parametrize("where", ["leaves", "path"])
@pytest.mark.parametrize("replicas", ["mean", "alternate"])
def test_trunks_subtrees_and_single_factors_are_scored_whole(where, replicas):
    changes = probed(where=where, replicas=replicas, min_workers=3, leaf_steps=12)
    campaign, events, _ = run_world(crowd(3), **changes)
    assert campaign.finished == "every leaf has had its steps"
    assert all(event.is_kept for event in only(events, UpdateProbed))
    assert fold(events) == campaign


# --- the verdict -----------------------------------------------------------------------------------------------------


def _vote(name: str, *, current: float = 3.0, candidate: float = 3.0, parent: float = 4.0) -> Vote:
    tokens = 1000
    result = ProbeResult(
        tokens=tokens, nll_parent=parent * tokens, nll_current=current * tokens, nll_candidate=candidate * tokens
    )
    return Vote(name, result)


TOLERANCE = SETTINGS.probe_tolerance


@pytest.mark.parametrize(
    ("changes", "is_kept"),
    [
        ((0.9, 0.9, -0.9), False),
        ((0.9, -0.9, -0.9), True),
        ((TOLERANCE * 0.99,) * 3, True),
        ((TOLERANCE * 1.01,) * 3, False),
        ((0.9, 0.9, -5.0, -5.0, 0.9), False),
    ],
)
def test_the_median_voter_decides(changes, is_kept):
    votes = [_vote(f"w{i}", candidate=3.0 + change) for i, change in enumerate(changes)]
    found = verdict(votes, SETTINGS)
    assert (found.is_kept, found.n_votes) == (is_kept, len(changes))


def test_slow_creep_ends_above_the_parent():
    far = 4.0 + CREEP_FACTOR * TOLERANCE + 0.01
    assert not verdict([_vote("w0", current=far - 0.01, candidate=far)], SETTINGS).is_kept
    assert verdict([_vote("w0", current=far + 0.01, candidate=far)], SETTINGS).is_kept  # on its way back


# --- votes that are refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": 0},
        {"tokens": 10**6},
        {"nll_candidate": -1.0},
        {"nll_current": 1e9},
        {"mass": {"0": 0.7, "1": 0.7}},
        {"mass": {"0101": 0.5}},
    ],
)
def test_impossible_votes_are_refused(wrong):
    class Liar(FakeRunner):
        def run(self, unit, payload):
            update, data = super().run(unit, payload)
            if update.probe is None:
                return update, data
            return update.model_copy(update={"probe": update.probe.model_copy(update=wrong)}), data

    liar = SimulatedWorker("w9", runner=Liar("w9", (9.0, 0, 0, 0)), seconds_per_step=1.0)
    campaign, events, _ = run_world([*crowd(3), liar], **probed(depth=1))
    assert {event.code for event in only(events, UpdateRejected)} == {"bad_probe"}
    assert {event.worker for event in only(events, UpdateRejected)} == {"w9"}
    assert campaign.finished == "every leaf has had its steps"


def test_a_vote_that_nobody_asked_for_is_refused():
    class Eager(FakeRunner):
        def run(self, unit, payload):
            update, data = super().run(unit, payload)
            return update.model_copy(update={"probe": _vote("w").result}), data

    eager = SimulatedWorker("w1", runner=Eager("w1", (2.0, 0, 0, 0)), seconds_per_step=1.0)
    _, events, _ = run_world([*crowd(1), eager], min_workers=1)
    assert {event.code for event in only(events, UpdateRejected)} == {"bad_probe"}


def test_a_probe_brings_no_adapters():
    class Smuggler(FakeRunner):
        def run(self, unit, payload):
            if unit.kind != "probe":
                return super().run(unit, payload)
            update, _ = super().run(unit, payload)
            other, data = answer(unit, {"node.0.proj.lora_A": torch.zeros(2, 2, 3)}, worker=self.worker)
            fields = {"manifest": other.manifest, "payload_sha256": other.payload_sha256}
            return update.model_copy(update=fields), data

    smuggler = SimulatedWorker("w9", runner=Smuggler("w9", (9.0, 0, 0, 0)), seconds_per_step=1.0)
    _, events, _ = run_world([*crowd(3), smuggler], **probed(depth=1))
    assert {event.code for event in only(events, UpdateRejected)} == {"bad_manifest.unexpected"}


def test_the_tolerance_follows_what_is_usual_within_bounds() -> None:
    most = SETTINGS.probe_tolerance
    quiet, loud = [0.001 * number for number in range(-5, 6)], [0.05 * number for number in range(-5, 6)]
    assert usual_tolerance(SETTINGS, quiet[:7]) == most
    assert usual_tolerance(SETTINGS, quiet) == pytest.approx(max(0.25 * most, 0.018))
    assert usual_tolerance(SETTINGS, loud) == most
    assert usual_tolerance(SETTINGS, [0.0] * 20) == pytest.approx(0.25 * most)


def test_three_tenths_of_gross_changes_do_not_widen_the_tolerance() -> None:
    honest = [0.001 * number for number in range(-7, 7)]
    alone, beside = (usual_tolerance(SETTINGS, changes) for changes in (honest, honest + [5.0] * 6))
    assert beside <= max(2.5 * alone, 0.25 * SETTINGS.probe_tolerance) and beside < SETTINGS.probe_tolerance


def test_an_update_within_the_set_tolerance_is_refused_where_all_others_are_far_below() -> None:
    votes = [_vote(f"w{number}", current=4.0, candidate=4.05) for number in range(3)]
    assert verdict(votes, SETTINGS).is_kept
    assert not verdict(votes, SETTINGS, [0.0] * 20).is_kept

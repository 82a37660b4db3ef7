"""Attacks in small: every gross one is caught, and what a hostile leaf says reaches nobody who is routed elsewhere."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks import attackers
from benchmarks.attackers import GROSS, Attacker, Collusion, Watched, sly_capture
from tests.federation.facts import FACTS
from tests.federation.world import FakeRunner, assert_counted_once, crowd, only, run_world
from tests.helpers import tiny_base_model
from tests.simulate.test_simulate import SETTINGS, _shard
from tinylora import tensors
from tinylora.bundle import Bundle
from tinylora.federation.events import UpdateAccepted, UpdateProbed, UpdateRejected, WorkerQuarantined
from tinylora.model import TreeModel
from tinylora.protocol.documents import ProbeResult, Update, WorkUnit
from tinylora.simulate import SimulatedWorker, simulate
from tinylora.tensors import Tensors

N_HONEST, HOSTILE = 5, ("w5", "w6")


class Sharp(FakeRunner):
    """Tells noise from training: the wider the numbers of B are spread, the worse."""

    def run(self, unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
        update, data = super().run(unit, payload)
        if update.probe is None:
            return update, data
        given, tokens = tensors.from_bytes(payload), update.probe.tokens
        nats = {f"nll_{side}": _nats(given, prefix) * tokens for side, prefix in SIDES.items()}
        return update.model_copy(update={"probe": update.probe.model_copy(update=nats)}), data


SIDES = {"current": "node.", "candidate": "candidate."}


def _nats(given: Tensors, prefix: str) -> float:
    found = [tensor for name, tensor in given.items() if name.startswith(prefix) and name.endswith("B")]
    whole = torch.cat([tensor.flatten() for tensor in found]) if found else torch.zeros(2)
    return float(5.0 - 100 * whole.mean() + 200 * whole.std())


def _workers(attack, known: Collusion) -> list[SimulatedWorker]:
    found = []
    for worker in crowd(N_HONEST + len(HOSTILE)):
        assert isinstance(worker.runner, FakeRunner)
        runner = Sharp(worker.name, worker.runner.centre, has_histograms=attack in (GROSS["capture"], sly_capture))
        is_hostile = worker.name in HOSTILE
        spoilt = Attacker(runner, FACTS, attack, worker=worker.name, known=known)
        watched = Watched(runner, FACTS, known, worker=worker.name)
        found.append(replace(worker, runner=spoilt if is_hostile else watched))
    return found


@pytest.mark.parametrize("name", GROSS)
def test_a_gross_attack_is_caught_and_costs_the_honest_nothing(name):
    settings: dict[str, Any] = {"probes": 3, "depth": 1, "min_workers": N_HONEST, "leaf_steps": 15}
    campaign, events, ledger = run_world(_workers(GROSS[name], Collusion()), **settings)
    stopped = {e.unit_id for e in only(events, UpdateRejected)}
    stopped |= {e.unit_id for e in only(events, UpdateProbed) if not e.is_kept}
    trained = {e.unit_id: e.worker for e in only(events, UpdateAccepted) if e.kind == "train"}
    assert {e.worker for e in only(events, WorkerQuarantined)} == set(HOSTILE)
    assert not [unit for unit, worker in trained.items() if worker in HOSTILE and unit not in stopped]
    assert not [unit for unit, worker in trained.items() if worker not in HOSTILE and unit in stopped]
    assert {e.worker for e in only(events, UpdateRejected)} <= set(HOSTILE)
    assert campaign.finished == "every leaf has had its steps"
    assert_counted_once(campaign, ledger)


def test_a_sly_captor_counts_for_no_more_than_the_cap():
    """Nothing that it says is impossible; its leaf's mean moves by a bound all the same."""
    settings: dict[str, Any] = {"probes": 0, "depth": 1, "min_workers": N_HONEST, "leaf_steps": 10}
    campaign, events, _ = run_world(_workers(sly_capture, Collusion()), **settings)
    assert campaign.finished == "every leaf has had its steps"
    assert not [e for e in only(events, UpdateRejected) if e.worker not in HOSTILE]


def test_lies_of_a_minority_of_voters_decide_nothing():
    def lying(worker: SimulatedWorker, lie) -> SimulatedWorker:
        assert worker.runner is not None
        return replace(worker, runner=Attacker(worker.runner, FACTS, None, worker=worker.name, lie=lie))

    for lie in (attackers.all_bad, attackers.all_good):
        honest, liar = crowd(5)[:4], crowd(5)[4]
        settings: dict[str, Any] = {"probes": 3, "depth": 1, "min_workers": 5, "leaf_steps": 10}
        campaign, events, ledger = run_world([*honest, lying(liar, lie)], **settings)
        assert all(event.is_kept for event in only(events, UpdateProbed))
        assert_counted_once(campaign, ledger)


def test_votes_of_liars_are_within_what_can_be():
    vote = ProbeResult(tokens=100, nll_parent=500.0, nll_current=400.0, nll_candidate=390.0)
    assert attackers.all_bad(vote).nll_candidate > vote.nll_current + 100
    assert attackers.all_good(vote).nll_candidate < vote.nll_current - 100


# --- isolation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", [10.0, -1e6])
def test_a_hostile_leaf_leaves_the_others_outputs_bit_identical(poison):
    """In one batch with text that goes to the hostile leaf, too; its numbers are far beyond what a run accepts."""
    base = tiny_base_model()
    settings = SETTINGS.model_copy(update={"min_workers": 2, "probes": 0})
    workers = [SimulatedWorker(f"w{number}", _shard(number)) for number in range(2)]
    sound = simulate(settings, workers, base).bundle
    leaves = {name: torch.full_like(tensor, poison) for name, tensor in sound.nodes["1"].items()}
    hostile = replace(sound, nodes=sound.nodes | {"1": leaves})
    texts = torch.stack([_text(number) for number in (0, 1, 0, 1)])
    expected, leaf = _losses(sound, base, texts)
    found, _ = _losses(hostile, base, texts)
    assert set(leaf) == {"0", "1"}
    for row, where in enumerate(leaf):
        assert torch.equal(found[row], expected[row]) == (where == "0"), (row, where)


def _text(number: int) -> torch.Tensor:
    tokens = torch.from_numpy(_shard(number).train[0].tokens[:48].astype("int64"))
    assert len(tokens) == 48
    return tokens


def _losses(bundle: Bundle, base, texts: torch.Tensor) -> tuple[torch.Tensor, list[str]]:
    """Losses of all tokens under hard routing, and the leaf of each text."""
    model = TreeModel.from_bundle(bundle, base, policy="hard@sequence:8")
    try:
        with torch.no_grad():
            nll, _ = model.token_nll(texts)
            assert model.router is not None
            means, _, _ = model.router.feature(texts)
            right = model.router.scores(means)[:, 7, 0] >= 0
    finally:
        model.detach_adapters()
    return nll[:, 8:], ["1" if is_right else "0" for is_right in right.tolist()]

"""Probes on a small real model: the sums are those of the plain model, and a spoiled update stands out."""

import numpy as np
import pytest
import torch

from tests.helpers import WINDOW_TOKENS
from tests.learning.units import TOPOLOGY, base, shard, unit
from tinylora.adapters.lora import init_adapter
from tinylora.adapters.spec import AdapterSpec
from tinylora.errors import DataError, ShapeMismatch
from tinylora.model import TreeModel
from tinylora.numerics import TorchNumerics
from tinylora.routing.gates import Gate, Gates, solve_gates
from tinylora.routing.sketch import collect
from tinylora.tensors import Tensors, from_bytes, strip_prefix, to_bytes, with_prefix
from tinylora.training import UnitRunner
from tinylora.training.probing import features_of, shares
from tinylora.training.runner import heldout_rows
from tinylora.tree import Topology

LORA = AdapterSpec("lora", 2)
PROBE = {"n_steps": 0, "subject": "u0", "probe_windows": 4}


def _runner(kind: str = "letters", worker: str = "w1") -> UnitRunner:
    return UnitRunner(base(), shard(kind, n=24), worker=worker)


def _trained(steps: int = 20) -> Tensors:
    """Leaf 0 after some steps on letters."""
    given = unit(n_steps=steps, total_steps=steps)
    return {n: t for n, t in from_bytes(_runner(worker="w0").run(*given)[1]).items() if n.startswith("node.")}


def _solved_gates() -> Tensors:
    feature = base().routing_feature
    sums = {
        leaf: collect(feature, [document.tokens for document in shard(kind).train])
        for leaf, kind in zip(TOPOLOGY, ("letters", "digits", "signs"), strict=True)
    }
    arrays = solve_gates(sums, Topology(TOPOLOGY)).to_arrays()
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


def _probe(candidate: Tensors, current: Tensors | None = None, **changes):
    """A unit that has leaf 0 scored, as the coordinator puts it together."""
    numerics = TorchNumerics()
    begun = to_bytes(current) if current else numerics.initial(base().facts, LORA, 3, ("0",))
    proposed = from_bytes(numerics.candidate(to_bytes(candidate), begun))
    payload = {**(current or {}), **proposed, **_solved_gates()}
    fields = {**PROBE, "nodes": ("0",), "leaves": ("0",), "node_version": int(bool(current)), **changes}
    return unit("probe", payload=payload, **fields)


def _flipped(trained: Tensors, factor: float) -> Tensors:
    return {name: factor * tensor if name.endswith("lora_B") else tensor for name, tensor in trained.items()}


def _plain(one: UnitRunner, state: Tensors | None) -> float:
    """The same windows through a plain model, with the slow and obvious sum."""
    rows = heldout_rows(one.shard.heldout, WINDOW_TOKENS, 4)
    assert rows is not None
    model = TreeModel(base(), nodes=("0",), spec=LORA, scale=2.0)
    try:
        if state is not None:
            model.load_node("0", strip_prefix(state, "node.0."))
        return float(model.token_nll(rows.ids, documents=rows.documents)[0].double().sum())
    finally:
        model.detach_adapters()


def _like_all(one: UnitRunner, monkeypatch) -> None:
    """Every document is near enough, so that the windows are those of the whole held-out text."""
    monkeypatch.setattr("tinylora.training.split.nearest", lambda documents, *_, **__: tuple(documents))


def test_the_sums_are_those_of_the_plain_model(monkeypatch):
    one, trained = _runner(), _trained()
    _like_all(one, monkeypatch)
    update, _ = one.run(*_probe(_flipped(trained, -1.0), trained))
    result = update.probe
    assert result is not None
    assert result.tokens == 4 * (WINDOW_TOKENS - 1)
    assert result.nll_parent == pytest.approx(_plain(one, None), abs=1e-4)
    assert result.nll_current == pytest.approx(_plain(one, trained), abs=1e-4)
    assert result.nll_candidate == pytest.approx(_plain(one, _flipped(trained, -1.0)), abs=1e-4)


def test_a_node_without_a_version_is_its_parent():
    update, _ = _runner().run(*_probe(_trained()))
    assert update.probe is not None
    assert update.probe.nll_current == update.probe.nll_parent
    assert update.probe.nll_candidate < update.probe.nll_parent


def test_honest_training_is_told_from_harm():
    trained = _trained()
    changes = {}
    for name, candidate in (("more", _trained(40)), ("flipped", _flipped(trained, -10.0))):
        result = _runner().run(*_probe(candidate, trained))[0].probe
        assert result is not None
        changes[name] = (result.nll_candidate - result.nll_current) / result.tokens
    assert changes["more"] < 0.05
    assert changes["flipped"] > 0.1


def test_a_probe_is_a_function_of_unit_and_shard_and_leaves_nothing_behind():
    one, trained = _runner(), _trained()
    first, again = (one.run(*_probe(trained)) for _ in range(2))
    assert first[0].probe == again[0].probe
    assert first[1] == again[1]
    given = unit(n_steps=3)
    assert one.run(*given)[1] == _runner().run(*given)[1]


def test_the_rest_of_an_adapter_is_as_it_was():
    """Half an update, of one factor or of its first rows, is scored in the place that it has in the whole."""
    numerics, trained = TorchNumerics(), _trained()
    only_b = {name: 2 * tensor for name, tensor in trained.items() if name.endswith("lora_B")}
    whole = from_bytes(numerics.candidate(to_bytes(only_b), to_bytes(trained)))
    assert {name.removeprefix("candidate.") for name in whole} == {name.removeprefix("node.") for name in trained}
    for name, tensor in trained.items():
        factor = 2 if name.endswith("lora_B") else 1
        assert torch.equal(whole[f"candidate.{name.removeprefix('node.')}"], factor * tensor)


def test_shares_are_counts_of_hard_decisions():
    feature = base().routing_feature
    topology, gates = Topology(TOPOLOGY), _gates()
    features = features_of(feature, shard("digits").heldout)
    counts = dict.fromkeys(TOPOLOGY, 0)
    for row in features:
        node = ""
        while node not in TOPOLOGY:
            node += "1" if row @ gates.nodes[node].w + gates.nodes[node].b > 0 else "0"
        counts[node] += 1
    found = shares(features, gates, topology)
    assert found == {leaf: pytest.approx(count / len(features)) for leaf, count in counts.items()}
    assert sum(found.values()) == pytest.approx(1)
    blank = Gates({node: Gate(np.zeros(feature.dim), 0.0, 1.0) for node in topology.inner}, feature.dim)
    assert shares(features, blank, topology) == {"0": 0.5, "10": 0.25, "11": 0.25}
    assert shares(features[:0], gates, topology) == {}


def _gates() -> Gates:
    return Gates.from_arrays({name: tensor.numpy() for name, tensor in _solved_gates().items()})


def test_scores_of_own_text_on_the_way_home():
    update, payload = _runner("digits").run(*_probe(_trained(), home="10"))
    found = from_bytes(payload)
    assert set(found) == {"histogram.", "histogram.1"}
    assert found["histogram."][0].sum() == 0  # all of its text belongs to the right
    assert found["histogram.1"][1].sum() == 0
    assert update.probe is not None and sum(update.probe.mass.values()) == pytest.approx(1)
    assert from_bytes(_runner().run(*_probe(_trained(), home=None))[1]) == {}


def test_a_subtree_is_scored_through_its_gates():
    states = {
        leaf: with_prefix(init_adapter(base().facts, LORA, seed=1, path=leaf), f"node.{leaf}.") for leaf in ("10", "11")
    }
    trained = {name: tensor + 0.05 for state in states.values() for name, tensor in state.items()}
    begun = {name: tensor for state in states.values() for name, tensor in state.items()}
    proposed = from_bytes(TorchNumerics().candidate(to_bytes(trained), to_bytes(begun)))
    payload = {**begun, **proposed, **_solved_gates()}
    fields = {**PROBE, "nodes": ("10", "11"), "leaves": ("10", "11"), "node_version": 1}
    update, _ = _runner().run(*unit("probe", node="1", payload=payload, **fields))
    assert update.probe is not None
    assert update.probe.nll_current == pytest.approx(update.probe.nll_parent)  # zero B adds nothing
    assert update.probe.nll_candidate != update.probe.nll_current


def test_ancestors_belong_to_the_parent_path():
    trained = _trained()
    root = {name.replace("node.0.", "node.."): tensor for name, tensor in trained.items()}
    given = _probe(trained, trained)
    payload = {**from_bytes(given[1]), **root}
    fields = {**PROBE, "nodes": ("0",), "leaves": ("0",), "frozen": ("",), "node_version": 1}
    with_root, _ = _runner().run(*unit("probe", payload=payload, **fields))
    without, _ = _runner().run(*given)
    assert with_root.probe is not None and without.probe is not None
    assert with_root.probe.nll_parent == pytest.approx(without.probe.nll_current)


def test_what_cannot_be_scored():
    empty = shard("letters")
    without = UnitRunner(base(), type(empty)(**{**vars(empty), "heldout": ()}), worker="w1")
    with pytest.raises(DataError, match="no held-out text"):
        without.run(*_probe(_trained()))
    _, payload = _probe(_trained())
    found = {name: tensor for name, tensor in from_bytes(payload).items() if not name.startswith("candidate.")}
    fields = {**PROBE, "nodes": ("0",), "leaves": ("0",)}
    with pytest.raises(ShapeMismatch, match="is missing"):
        _runner().run(*unit("probe", payload=found, **fields))

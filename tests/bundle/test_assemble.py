"""A bundle on its base is the model that the run had, and an untrained leaf is the base."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers import tiny_base_model
from tinylora.adapters.lora import init_adapter
from tinylora.adapters.spec import AdapterSpec
from tinylora.base_model import LoadedBase
from tinylora.bundle import Bundle, read_bundle, summarise, write_bundle
from tinylora.errors import BaseModelError, SettingError
from tinylora.model import TreeModel
from tinylora.routing.gates import Gate, Gates, solve_gates
from tinylora.routing.policy import Policy, Router
from tinylora.routing.statistics import PREFIXES, RouterStatistics, statistics_of
from tinylora.tensors import Tensors
from tinylora.tree import Topology

LORA = AdapterSpec("lora", 4)

TREE = Topology(("0", "10", "11"))
IDS = torch.arange(3, 27).reshape(2, 12)


@pytest.fixture(scope="module")
def base() -> LoadedBase:
    return tiny_base_model()


def trained(base: LoadedBase, path: str) -> Tensors:
    """An adapter that does something, in the precision that the file keeps."""
    generator = torch.Generator().manual_seed(len(path))
    state = init_adapter(base.facts, LORA, seed=1, path=path)
    return {
        name: (torch.randn(tensor.shape, generator=generator) / 8 if name.endswith("B") else tensor).bfloat16()
        for name, tensor in state.items()
    }


def make(base: LoadedBase, *paths: str) -> Bundle:
    dim = base.facts.feature_dim
    generator = np.random.default_rng(0)
    gates = Gates({node: Gate(generator.normal(size=dim), 0.1, 0.5) for node in TREE.inner}, dim)
    nodes = {path: trained(base, path) for path in paths}
    return Bundle(
        run="run", topology=TREE, base=base.facts, spec=LORA, scale=2.0, nodes=nodes, gates=gates, policy="hard",
        projection=base.routing_feature.projection,
    )  # fmt: skip


@torch.no_grad()
def logits(model: TreeModel, path: str | None = None) -> torch.Tensor:
    model.route_to(path)
    return model(IDS).logits


def base_logits(base: LoadedBase) -> torch.Tensor:
    with torch.no_grad():
        return base.model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("policy", ["soft", "hard", "top2", "elastic"])
def test_a_file_and_its_base_are_the_model_that_was_trained(base, tmp_path: Path, policy):
    bundle = make(base, *TREE.leaves)
    router = Router(base.routing_feature, bundle.gates, TREE, TREE.leaves)
    direct = TreeModel(base, nodes=TREE.leaves, spec=LORA, scale=2.0, router=router, policy=Policy.parse(policy))
    for path, state in bundle.nodes.items():
        direct.load_node(path, state)
    expected = logits(direct)
    direct.detach_adapters()
    write_bundle(bundle, tmp_path / "bundle.safetensors")
    model = TreeModel.from_bundle(read_bundle(tmp_path / "bundle.safetensors"), base, policy)
    assert torch.equal(logits(model), expected)
    model.detach_adapters()
    assert not torch.equal(base_logits(base), expected)


def test_the_policy_is_the_bundles_unless_one_is_named(base):
    for wanted, policy in ((None, "hard"), ("soft", "soft"), (Policy.parse("top2"), "top2")):
        model = TreeModel.from_bundle(make(base), base, wanted)
        assert str(model.policy) == policy
        model.detach_adapters()


def test_leaves_that_nobody_trained_are_the_base(base):
    expected = base_logits(base)
    model = TreeModel.from_bundle(make(base, "10"), base)
    assert model.nodes == TREE.leaves
    assert torch.equal(logits(model, "0"), expected)
    assert torch.equal(logits(model, "11"), expected)
    assert not torch.equal(logits(model, "10"), expected)
    model.detach_adapters()
    nothing = TreeModel.from_bundle(make(base), base, "soft")
    assert torch.equal(logits(nothing), expected)
    nothing.detach_adapters()


def test_another_base_is_refused_and_left_alone(base):
    other = tiny_base_model(seed=1)
    with pytest.raises(BaseModelError, match=r"the bundle of run run needs the base"):
        TreeModel.from_bundle(make(base, "0"), other)
    TreeModel(other, nodes=(), spec=LORA, scale=1.0).detach_adapters()


def test_an_unknown_policy_leaves_the_base_alone(base):
    with pytest.raises(SettingError, match="sideways"):
        TreeModel.from_bundle(make(base, "0"), base, "sideways")
    TreeModel(base, nodes=(), spec=LORA, scale=1.0).detach_adapters()


# --- what a bundle keeps of the router's sums ------------------------------------------------------------------------


def as_sums(count: float, mean: np.ndarray, covariance: np.ndarray) -> RouterStatistics:
    """Sums with this count, mean and covariance, all of them at one prefix length."""
    zero = RouterStatistics.zero(len(mean))
    zero.count[0], zero.total[0] = count, count * mean
    second = count * (covariance + np.outer(mean, mean))
    return RouterStatistics(zero.count, zero.total, second[np.triu_indices(len(mean))])


def test_what_a_bundle_keeps_is_enough_to_solve_its_gates_anew():
    generator = np.random.default_rng(3)
    lengths = np.array([PREFIXES[index % len(PREFIXES)] for index in range(40)])
    statistics = {
        leaf: statistics_of(generator.normal(size=(40, 5)) @ generator.normal(size=(5, 5)) + index, lengths)
        for index, leaf in enumerate(TREE.leaves)
    }
    kept = summarise(statistics | {"nobody": RouterStatistics.zero(5)})
    assert kept is not None
    assert kept.counts == dict.fromkeys(TREE.leaves, 40.0)
    assert all(np.array_equal(kept.covariance_of(leaf), statistics[leaf].covariance()) for leaf in TREE.leaves)
    assert kept.kind == "leaf"
    pooled = summarise(statistics, pooled=True)
    assert pooled is not None and pooled.kind == "pooled"
    assert np.array_equal(pooled.covariance, kept.covariance)
    again = solve_gates(
        {leaf: as_sums(kept.counts[leaf], kept.means[leaf], kept.covariance) for leaf in kept.counts}, TREE
    )
    for node, gate in solve_gates(statistics, TREE).nodes.items():
        np.testing.assert_allclose(again.nodes[node].w, gate.w, rtol=1e-9)
        np.testing.assert_allclose(again.nodes[node].b, gate.b, rtol=1e-9)


def test_no_rows_are_no_statistics():
    assert summarise({}) is None
    assert summarise({"0": RouterStatistics.zero(3)}) is None

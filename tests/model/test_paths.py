"""Several nodes on one path: their updates add up, and each of them can be trained while the others are frozen."""

import pytest
import torch

from tests.model.families import base_logits, family_base, fill_randomly, some_ids
from tests.model.test_routed_model import random_gates
from tinylora.adapters.spec import AdapterSpec
from tinylora.base_model import LoadedBase
from tinylora.errors import SettingError
from tinylora.mixture import Impl
from tinylora.model import TreeModel
from tinylora.routing.policy import Policy, Router
from tinylora.tree import Topology

LORA = AdapterSpec("lora", 2, {"mlp.up_proj": 1})
PATH = ("", "0", "01")
TREE = Topology(("00", "01", "1"))


@pytest.fixture
def base() -> LoadedBase:
    return family_base("llama")


def path_model(base: LoadedBase, nodes: tuple[str, ...] = PATH, impl: Impl = "auto", seed: int = 0) -> TreeModel:
    model = TreeModel(base, nodes=nodes, spec=LORA, scale=0.7, impl=impl)
    fill_randomly(model, seed)
    return model


def merged_logits(base: LoadedBase, states: list[dict[str, torch.Tensor]], ids: torch.Tensor) -> torch.Tensor:
    """The slow way: every node's update added to the base's weights."""
    with torch.no_grad():
        for projection, names in base.linears.items():
            for layer, name in enumerate(names):
                for state in states:
                    lora_a, lora_b = state[f"{projection}.lora_A"][layer], state[f"{projection}.lora_B"][layer]
                    base.model.get_submodule(name).weight += 0.7 * lora_b @ lora_a
    return base_logits(base, ids)


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_a_path_is_the_sum_of_its_parts(base: LoadedBase, impl: Impl) -> None:
    model, ids = path_model(base, impl=impl), some_ids(base)
    logits, states = model(ids).logits, [model.node_state(path) for path in PATH]
    model.detach_adapters()
    assert torch.allclose(logits, merged_logits(base, states, ids), atol=1e-4)


def test_one_lora_of_the_summed_rank_is_the_same_function(base: LoadedBase) -> None:
    model, ids = path_model(base), some_ids(base)
    expected, states = model(ids).logits, [model.node_state(path) for path in PATH]
    model.detach_adapters()
    joined = {
        name: torch.cat([state[name] for state in states], dim=1 if name.endswith("A") else 2) for name in states[0]
    }
    wide = TreeModel(base, nodes=("",), spec=AdapterSpec("lora", 6, {"mlp.up_proj": 3}), scale=0.7)
    wide.load_node("", joined)
    assert torch.allclose(wide(ids).logits, expected, atol=1e-5)


def test_frozen_ancestors_get_no_gradient_and_keep_every_bit(base: LoadedBase) -> None:
    model, ids = path_model(base), some_ids(base, batch=4)
    before = {path: model.node_state(path) for path in PATH}
    trained = model.adapter_parameters(nodes=("01",))
    assert sum(parameter.numel() for parameter in trained) == sum(t.numel() for t in before["01"].values())
    optimizer = torch.optim.AdamW(trained, lr=0.02)
    losses = []
    for _ in range(10):
        loss = model.loss(ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is None for p in model.parameters() if not any(p is each for each in trained))
    for path in ("", "0"):
        assert all(torch.equal(tensor, before[path][name]) for name, tensor in model.node_state(path).items())
    assert not any(torch.equal(tensor, before["01"][name]) for name, tensor in model.node_state("01").items())


def test_gradients_of_a_leaf_do_not_depend_on_what_else_is_trained(base: LoadedBase) -> None:
    model, ids = path_model(base), some_ids(base)
    chosen = [p for a in model.adapters.values() for each in a for p in each.pairs[2].factors().values()]
    expected = torch.autograd.grad(model.loss(ids), chosen)
    assert all(left is right for left, right in zip(model.adapter_parameters(nodes=["01"]), chosen, strict=True))
    for left, right in zip(torch.autograd.grad(model.loss(ids), chosen), expected, strict=True):
        assert torch.equal(left, right)


def test_factors_are_trained_in_turn(base: LoadedBase) -> None:
    model, ids = path_model(base), some_ids(base)
    everything = model.adapter_parameters()
    trained = model.adapter_parameters(nodes=("01",), factors=("lora_B",))
    assert model.adapter_parameters() == trained
    model.loss(ids).backward()
    assert {id(parameter) for parameter in everything if parameter.grad is not None} == {id(p) for p in trained}
    last_b = [adapter.pairs[2].lora_b for adapters in model.adapters.values() for adapter in adapters]
    assert {id(parameter) for parameter in trained} == {id(parameter) for parameter in last_b}
    assert len(model.adapter_parameters(nodes=PATH)) == len(everything)


def test_what_is_not_there_cannot_be_trained(base: LoadedBase) -> None:
    model = path_model(base)
    with pytest.raises(SettingError, match="node '1': expected one of"):
        model.adapter_parameters(nodes=("1",))
    with pytest.raises(SettingError, match="factor 'lora_C': expected one of lora_A, lora_B"):
        model.adapter_parameters(factors=("lora_C",))
    assert len(model.adapter_parameters()) == 2 * 2 * 7 * 3


@pytest.mark.parametrize("nodes", [("0", "1"), ("01", "0"), ("0", "0"), ("", "00", "01")])
def test_without_a_router_nodes_lie_on_one_path(base: LoadedBase, nodes: tuple[str, ...]) -> None:
    with pytest.raises(SettingError, match=r"need a router .* one path, the upper ones first"):
        TreeModel(base, nodes=nodes, spec=LORA, scale=1.0)


def test_an_oracle_takes_the_ancestors_along(base: LoadedBase) -> None:
    """Whatever the router does with inner nodes, one-hot routing and `route_to` agree."""
    feature, ids, nodes = base.routing_feature, some_ids(base), ("", "0", "1", "00", "01")
    router = Router(feature, random_gates(feature.dim, TREE), TREE, nodes)
    model = TreeModel(base, nodes=nodes, spec=LORA, scale=0.7, router=router, policy=Policy.parse("hard"))
    fill_randomly(model)
    states = {path: model.node_state(path) for path in nodes}
    routed = model(ids).logits
    first = router(ids, policy=model.policy)[0].dense()
    oracle = {}
    for leaf in TREE.leaves:
        model.route_to(leaf)
        oracle[leaf] = model(ids).logits
        for row in range(len(ids)):
            if all(bool(token[nodes.index(leaf)]) for token in first[row]):
                assert torch.allclose(oracle[leaf][row], routed[row], atol=1e-5)
    model.route_to("0")
    upper = model(ids).logits
    model.detach_adapters()
    for path, expected in {**oracle, "0": upper}.items():
        chain = tuple(node for node in nodes if path.startswith(node))
        alone = TreeModel(base, nodes=chain, spec=LORA, scale=0.7)
        for node in chain:
            alone.load_node(node, states[node])
        assert torch.equal(alone(ids).logits, expected)
        alone.route_to(chain[0])
        assert not torch.allclose(alone(ids).logits, expected, atol=1e-3) or len(chain) == 1
        alone.route_to(None)
        assert torch.equal(alone(ids).logits, expected)
        alone.detach_adapters()

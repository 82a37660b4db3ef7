"""`TreeModel` with a router: what no policy may break."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.model.families import base_logits, family_base, fill_randomly, some_ids
from tinylora.adapters.spec import AdapterSpec
from tinylora.base_model import LoadedBase
from tinylora.errors import SettingError
from tinylora.mixture import Fixed, Impl, Routing
from tinylora.model import TreeModel
from tinylora.routing.gates import Gate, Gates
from tinylora.routing.policy import Policy, Router
from tinylora.tree import Topology

LORA = AdapterSpec("lora", 2)

TREE = Topology(("00", "01", "1"))
POLICIES = [
    f"{decision}{granularity}"
    for decision in ("soft", "top2", "hard", "elastic")
    for granularity in ("", "@window:3", "@sequence:4")
]
IMPLS: tuple[Impl, ...] = ("reference", "torch")

every_policy = pytest.mark.parametrize("policy", POLICIES)


@pytest.fixture
def base() -> LoadedBase:
    return family_base("llama")


def random_gates(dim: int, topology: Topology, tau: float = 1.0) -> Gates:
    """Gates that turn now left, now right, on random text."""
    draw = np.random.default_rng(0)
    return Gates({node: Gate(3 * draw.standard_normal(dim), 0.0, tau) for node in topology.inner}, dim)


def tree(base: LoadedBase, policy: str = "soft", impl: Impl = "auto", tau: float = 1.0, **router) -> TreeModel:
    feature = base.routing_feature
    routes = Router(feature, random_gates(feature.dim, TREE, tau), TREE, TREE.leaves, **router)
    model = TreeModel(
        base,
        nodes=TREE.leaves,
        spec=LORA,
        scale=0.7,
        router=routes,
        policy=Policy.parse(policy),
        impl=impl,
    )
    fill_randomly(model)
    return model


def weights(model: TreeModel, ids: torch.Tensor) -> torch.Tensor:
    assert model.router is not None
    routing, _ = model.router(ids, policy=model.policy)
    return dense(routing)


def dense(routing: Routing) -> torch.Tensor:
    """A weight for every node; a router never says `Fixed`."""
    assert not isinstance(routing, Fixed)
    return routing.dense()


@every_policy
def test_tokens_of_the_tests_go_different_ways(base: LoadedBase, policy: str) -> None:
    """Otherwise the tests below would say little."""
    found = weights(tree(base, policy), some_ids(base, batch=4))
    assert len(found[:, 4:].flatten(0, 1).unique(dim=0)) > 1


@every_policy
@pytest.mark.parametrize("impl", IMPLS)
def test_the_future_changes_not_one_bit(base: LoadedBase, policy: str, impl: Impl) -> None:
    model, ids = tree(base, policy, impl), some_ids(base)
    expected = model(ids).logits
    for cut in (1, 4, 9):
        other = torch.cat([ids[:, :cut], some_ids(base, seed=1)[:, cut:]], dim=1)
        logits = model(other).logits
        assert torch.equal(logits[:, :cut], expected[:, :cut])
        assert not torch.allclose(logits[:, cut:], expected[:, cut:], atol=1e-3)


@every_policy
@pytest.mark.parametrize("cuts", [(5,), tuple(range(1, 12))])
def test_the_cache_changes_nothing(base: LoadedBase, policy: str, cuts: tuple[int, ...]) -> None:
    model, ids = tree(base, policy), some_ids(base)
    cache, state, logits = None, None, []
    for start, end in zip((0, *cuts), (*cuts, 12), strict=True):
        output = model(ids[:, start:end], past_key_values=cache, state=state, use_cache=True)
        cache, state = output.past_key_values, output.state
        logits.append(output.logits)
    assert torch.allclose(torch.cat(logits, dim=1), model(ids).logits, atol=1e-5)


@every_policy
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(base: LoadedBase, policy: str, side: str) -> None:
    model, ids = tree(base, policy), some_ids(base)
    padding = torch.full((2, 3), 2)
    parts = [padding, ids] if side == "left" else [ids, padding]
    mask = torch.cat([torch.full_like(part, int(part is ids)) for part in parts], dim=1)
    logits = model(torch.cat(parts, dim=1), attention_mask=mask).logits
    own = logits[:, 3:] if side == "left" else logits[:, :-3]
    assert torch.allclose(own, model(ids).logits, atol=1e-5)
    assert torch.allclose(model.loss(torch.cat(parts, dim=1), mask=mask), model.loss(ids), atol=1e-5)


@every_policy
def test_reference_and_torch_agree_in_value_and_gradient(base: LoadedBase, policy: str) -> None:
    ids = some_ids(base)
    logits, losses, gradients = [], [], []
    for impl in IMPLS:
        model = tree(base, policy, impl, trainable=True)
        assert model.router is not None
        loss = model.loss(ids)
        wanted = [*model.adapter_parameters(), *model.router.parameters()]
        gradients.append(torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True))
        logits.append(model(ids).logits)
        losses.append(loss)
        model.detach_adapters()
    assert torch.allclose(*logits, atol=1e-5)
    assert torch.allclose(*losses, atol=1e-6)
    for left, right in zip(*gradients, strict=True):
        assert torch.allclose(left, right, atol=1e-6, rtol=1e-3)
    gates_learn = any(bool(gradient.any()) for gradient in gradients[0][-2:])
    assert gates_learn == policy.startswith(("soft", "top2"))


@every_policy
def test_zero_b_is_the_base_bit_by_bit(base: LoadedBase, policy: str) -> None:
    ids = some_ids(base)
    expected = base_logits(base, ids)
    model = tree(base, policy)
    for path in model.nodes:
        state = model.node_state(path)
        model.load_node(path, {name: t if name.endswith("A") else t * 0 for name, t in state.items()})
    assert torch.equal(model(ids).logits, expected)


def test_soft_with_infinite_temperature_is_hard(base: LoadedBase) -> None:
    ids = some_ids(base)
    model = tree(base, "soft", tau=1e9)
    soft = model(ids).logits
    model.policy = Policy.parse("hard")
    assert torch.equal(soft, model(ids).logits)


@pytest.mark.parametrize("policy", [p for p in POLICIES if "@" not in p and "elastic" not in p])
def test_a_tree_of_equal_leaves_is_its_parent(base: LoadedBase, policy: str) -> None:
    ids = some_ids(base)
    model = tree(base, policy)
    state = model.node_state("00")
    for path in model.nodes:
        model.load_node(path, state)
    logits = model(ids).logits
    model.detach_adapters()
    parent = TreeModel(base, nodes=("",), spec=LORA, scale=0.7)
    parent.load_node("", state)
    expected = parent(ids).logits
    assert (logits - expected).abs().max() < 1e-6 * expected.abs().max()


def test_weights_are_those_of_the_router(base: LoadedBase) -> None:
    """By hand: each token's own mixture of the three adapters, merged, in the first layer's first linear."""
    model, ids = tree(base), some_ids(base)
    adapter = model.adapters["self_attn.q_proj"][0]
    x = torch.randn(2, 12, adapter.in_features)
    model(ids)
    lora_a, lora_b = (torch.stack(factors) for factors in zip(*(pair.product() for pair in adapter.pairs), strict=True))
    mixture = torch.einsum("btn,nor,nri->btoi", weights(model, ids), lora_b, lora_a)
    expected = adapter.base(x) + 0.7 * torch.einsum("btoi,bti->bto", mixture, x)
    assert torch.allclose(adapter(x), expected, atol=1e-5)


def test_an_oracle_sends_every_token_to_one_node(base: LoadedBase) -> None:
    model, ids = tree(base), some_ids(base)
    routed = model(ids)
    oracle = {}
    for path in model.nodes:
        model.route_to(path)
        oracle[path] = model(ids).logits
    with pytest.raises(SettingError, match="node '0': expected one of"):
        model.route_to("0")
    model.route_to(None)
    assert torch.equal(model(ids).logits, routed.logits)
    states = {path: model.node_state(path) for path in model.nodes}
    model.detach_adapters()
    for path, expected in oracle.items():
        single = TreeModel(base, nodes=(path,), spec=LORA, scale=0.7)
        single.load_node(path, states[path])
        assert torch.equal(single(ids).logits, expected)
        single.detach_adapters()


def test_a_router_over_other_nodes_is_refused(base: LoadedBase) -> None:
    router = tree(base).router
    other = replace(base)
    with pytest.raises(SettingError, match="expected the adapters' nodes"):
        TreeModel(other, nodes=("1", "00", "01"), spec=LORA, scale=1.0, router=router)


@every_policy
def test_a_document_is_scored_in_windows_as_it_is_routed_whole(base: LoadedBase, policy: str) -> None:
    """One adapter in all leaves but another weight per token: only routing could tell the windows apart."""
    model, ids = tree(base, policy), some_ids(base, tokens=13)
    whole = weights(model, ids)
    state, nll, seen = None, [], []
    for start in range(0, 12, 4):
        values, state = model.token_nll(ids[:, start : start + 5], state=state)
        nll.append(values)
        seen.append(dense(model._shared.routing))
    assert torch.cat(nll, dim=1).shape == (2, 12)
    assert torch.allclose(torch.cat(seen, dim=1), whole[:, :12], atol=1e-6)
    first = F.cross_entropy(model(ids[:, :5]).logits[:, :-1].transpose(1, 2), ids[:, 1:5], reduction="none")
    assert torch.allclose(nll[0], first, atol=1e-5)


@every_policy
def test_packed_documents_are_routed_apart(base: LoadedBase, policy: str) -> None:
    model, ids = tree(base, policy), some_ids(base)
    documents = torch.tensor([[0] * 5 + [1] * 7, [3] * 8 + [9] * 4])
    model(ids, documents=documents)
    packed = dense(model._shared.routing)
    parts = [(0, 0, 5), (0, 5, 12), (1, 0, 8), (1, 8, 12)]
    for row, start, end in parts:
        assert torch.allclose(packed[row, start:end], weights(model, ids[row : row + 1, start:end])[0], atol=1e-6)
    assert torch.isfinite(model.loss(ids, documents=documents))


def test_only_what_is_trained_gets_a_gradient(base: LoadedBase) -> None:
    model = tree(base, trainable=True)
    assert model.router is not None
    model.loss(some_ids(base)).backward()
    trained = {id(parameter) for parameter in (*model.adapter_parameters(), *model.router.parameters())}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained), name


def test_leaves_and_gates_learn_together(base: LoadedBase) -> None:
    model, ids = tree(base, trainable=True), some_ids(base, batch=4)
    assert model.router is not None
    optimizer = torch.optim.AdamW([*model.adapter_parameters(), *model.router.parameters()], lr=0.01)
    losses = []
    for _ in range(20):
        loss = model.loss(ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]

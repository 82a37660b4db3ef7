"""Parameters of nodes of their own, in one tensor."""

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model.families import family_base, fill_randomly, some_ids
from tests.model.test_routed_model import LORA, TREE, random_gates
from tinylora.adapters.lora import AdapterLinear
from tinylora.model import TreeModel
from tinylora.routing.policy import Policy, Router


def tree(policy: str = "hard", dtype: torch.dtype = torch.float32) -> TreeModel:
    base = family_base("llama")
    base.model.to(dtype)
    router = Router(base.routing_feature, random_gates(base.routing_feature.dim, TREE), TREE, TREE.leaves)
    model = TreeModel(base, nodes=TREE.leaves, spec=LORA, scale=0.7, router=router, policy=Policy.parse(policy))
    fill_randomly(model)
    return model


def linear_of(model: TreeModel) -> AdapterLinear:
    return model.adapters["mlp.up_proj"][1]


def is_one_memory(adapter: AdapterLinear) -> bool:
    """Whether every parameter lies in the stack, whose numbers it has."""
    with torch.no_grad():
        stacks = adapter._stack.of(adapter.pairs[0].lora_a.dtype)
    return all(
        parameter.data_ptr() == stack[node].data_ptr() and torch.equal(parameter, stack[node])
        for node, pair in enumerate(adapter.pairs)
        for parameter, stack in zip(pair.product(), stacks, strict=True)
    )


def test_parameters_are_views_into_the_stack() -> None:
    model = tree()
    assert all(is_one_memory(adapter) for adapters in model.adapters.values() for adapter in adapters)


@pytest.mark.parametrize(
    "move", [lambda m: m.double(), lambda m: m.to("cpu"), lambda m: m.double().float(), copy.deepcopy]
)
def test_a_moved_or_copied_model_is_the_same_function(move) -> None:
    model = tree()
    ids = some_ids(model.base)
    parameters, expected = model.adapter_parameters(), model(ids).logits
    moved = move(model)
    if moved is model:
        assert all(left is right for left, right in zip(model.adapter_parameters(), parameters, strict=True))
    for adapter in (module for module in moved.modules() if isinstance(module, AdapterLinear)):
        assert is_one_memory(adapter)
    with torch.no_grad():
        assert torch.allclose(moved(ids).logits.float(), expected, atol=1e-5)
        next(iter(moved.adapter_parameters())).add_(1.0)
        assert not torch.allclose(moved(ids).logits.float(), expected, atol=1e-3)


@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize("is_moved", [True, False])
def test_a_cast_is_kept_until_the_numbers_change(is_fused: bool, is_moved: bool) -> None:
    model = tree(dtype=torch.bfloat16)
    if is_moved:  # parameters of a moved model count their changes on their own
        for pair in linear_of(model).pairs:
            pair.double().float()
        linear_of(model)._apply(lambda tensor: tensor)
    stack, ids = linear_of(model)._stack, some_ids(model.base)
    with torch.no_grad():
        model(ids)
        first = stack.of(torch.bfloat16)[0]
        assert stack.of(torch.bfloat16)[0] is first and first.dtype == torch.bfloat16
        linear_of(model).pairs[1].lora_a.mul_(2.0)
        second = stack.of(torch.bfloat16)[0]
    assert torch.equal(second[1], 2 * first[1]) and torch.equal(second[0], first[0])
    parameter = linear_of(model).pairs[2].lora_a
    parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW([parameter], lr=1.0, fused=is_fused).step()
    with torch.no_grad():
        third = stack.of(torch.bfloat16)[0]
    assert torch.equal(third[2], parameter.bfloat16()) and not torch.equal(third[2], second[2])


@pytest.mark.parametrize("policy", ["hard", "soft", "top2", "hard@sequence:2"])
def test_one_leaf_is_trained_and_the_others_keep_every_bit(policy: str) -> None:
    model = tree(policy)
    ids = some_ids(model.base, batch=4)
    every = torch.autograd.grad(model.loss(ids), model.adapter_parameters(), allow_unused=True, materialize_grads=True)
    of_leaf = dict(zip((id(parameter) for parameter in model.adapter_parameters()), every, strict=True))
    before = {path: model.node_state(path) for path in model.nodes}
    trained = model.adapter_parameters(nodes=("01",))
    model.loss(ids).backward()
    for parameter in trained:
        assert parameter.grad is not None and torch.equal(parameter.grad, of_leaf[id(parameter)])
        assert parameter.grad.untyped_storage().nbytes() == parameter.nbytes
    torch.optim.AdamW(trained, lr=0.1, fused=True).step()
    for path in model.nodes:
        same = [torch.equal(tensor, before[path][name]) for name, tensor in model.node_state(path).items()]
        assert not any(same) if path == "01" else all(same)


@pytest.mark.parametrize("policy", ["hard", "hard@window:3", "hard@sequence:2", "top2", "elastic"])
def test_training_goes_as_through_the_reference(policy: str) -> None:
    """The same losses step by step, all leaves trained under the policy that will be used."""
    losses = []
    for impl in ("auto", "reference"):
        model = tree(policy)
        model._shared.impl = impl
        ids = some_ids(model.base, batch=4)
        optimiser = torch.optim.AdamW(model.adapter_parameters(), lr=0.02, fused=True)
        losses.append([])
        for _ in range(6):
            loss = model.loss(ids)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], abs=2e-5) and losses[0][-1] < losses[0][0]


def test_an_oracle_by_row_is_each_row_s_own() -> None:
    model = tree()
    ids, paths = some_ids(model.base, batch=4), ["1", "00", "01", "00"]
    model.route_to(paths)
    together = model(ids)
    one_more = model(ids[:, :1]).logits
    for row, path in enumerate(paths):
        model.route_to(path)
        assert torch.allclose(model(ids[row : row + 1]).logits[0], together.logits[row], atol=1e-5)
        assert torch.allclose(model(ids[row : row + 1, :1]).logits[0], one_more[row], atol=1e-5)


# --- rows' adapters that are kept from step to step ------------------------------------------------------------------

WAYS = ("1", "00", "01")


def step(model: TreeModel, ways: Sequence[str], n_kept: int | None = None) -> torch.Tensor:
    """One token for each row, each row at its own leaf."""
    before = model._shared.n_kept
    model._shared.n_kept = before if n_kept is None else n_kept
    model.route_to(ways)
    with torch.no_grad():
        logits = model(some_ids(model.base, batch=len(ways), tokens=1)).logits
    model._shared.n_kept = before
    return logits


def kept(model: TreeModel) -> torch.Tensor | None:
    found = linear_of(model)._stack._kept
    return None if found is None else found[2][0]


def optimiser_step(model: TreeModel) -> None:
    parameter = linear_of(model).pairs[0].lora_a
    parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW([parameter], lr=1.0, fused=True).step()


CHANGES: dict[str, Callable[[TreeModel], object]] = {
    "a parameter in place": lambda m: fill_randomly(m, seed=5),
    "a step of a fused optimiser": optimiser_step,
    "a node is loaded": lambda m: m.load_node("1", m.node_state("00")),
    "other dtype": lambda m: m.double(),
    "and back": lambda m: m.double().float(),
    "a rank": lambda m: m.use_rank(1),
    "a plan": lambda m: m.limit_ranks({"mlp.up_proj": (1,) * len(m.adapters["mlp.up_proj"])}),
    "taken off and on": lambda m: (m.detach_adapters(), m.attach_adapters()),
}


def test_rows_that_go_on_keep_what_was_gathered() -> None:
    model = tree()
    first, held = step(model, WAYS), kept(model)
    assert held is not None and torch.equal(first, step(model, WAYS)) and kept(model) is held
    assert torch.equal(first, step(model, WAYS, n_kept=0)) and kept(model) is None


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_kept_is_gathered_anew_when_numbers_change(change: str) -> None:
    model = tree()
    before = step(model, WAYS)
    CHANGES[change](model)
    after = step(model, WAYS)
    assert torch.allclose(after, step(model, WAYS, n_kept=0), atol=1e-6)
    assert change in ("and back", "taken off and on", "other dtype") or not torch.allclose(after, before, atol=1e-3)


@given(st.lists(st.lists(st.sampled_from(WAYS), min_size=1, max_size=3), min_size=2, max_size=8))
@settings(max_examples=8)
def test_rows_that_change_their_leaf_come_and_leave(ways: list[list[str]]) -> None:
    model = tree()
    assert all(torch.equal(step(model, now), step(copied(model), now, n_kept=0)) for now in ways)


def test_one_row_that_changes_alone_is_written_where_it_was() -> None:
    model = tree()
    step(model, WAYS)
    held = kept(model)
    found = step(model, ("1", "01", "01"))
    assert kept(model) is held and torch.equal(found, step(copied(model), ("1", "01", "01"), n_kept=0))
    assert torch.equal(step(model, WAYS), step(copied(model), WAYS, n_kept=0))


def test_a_copy_and_its_model_keep_rows_of_their_own() -> None:
    model = tree()
    first = step(model, WAYS)
    other = copied(model)
    fill_randomly(other, seed=5)
    assert not torch.allclose(step(other, WAYS), first, atol=1e-3)
    assert torch.equal(step(model, WAYS), first)


def test_more_rows_than_may_be_kept_and_passes_with_gradients() -> None:
    model = tree()
    many = [*WAYS, *WAYS]
    step(model, many)
    assert kept(model) is None
    step(model, WAYS)
    assert kept(model) is not None
    model.loss(some_ids(model.base, batch=3)).backward()
    assert kept(model) is None
    step(model, WAYS)
    with torch.inference_mode():
        model(some_ids(model.base, batch=3, tokens=1))
    assert torch.equal(step(model, ("1", "01", "01")), step(model, ("1", "01", "01"), n_kept=0))


def copied(model: TreeModel) -> TreeModel:
    return copy.deepcopy(model)

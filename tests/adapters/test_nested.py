"""Nested adapters: prefixes in the model, ranks drawn by step, and states cut and padded."""

import functools
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from tests.model.families import family_base, fill_randomly, some_ids
from tinylora.adapters.lora import init_adapter
from tinylora.adapters.nested import cut, nested_loss, pad, sample_rank
from tinylora.adapters.shapes import adapter_shapes
from tinylora.adapters.spec import AdapterSpec
from tinylora.base_model import LoadedBase
from tinylora.errors import SettingError
from tinylora.model import TreeModel

RANKS = {"mlp.up_proj": 2, "self_attn.k_proj": 1}
NESTED = AdapterSpec("nested", 4, RANKS)
FROZEN = AdapterSpec("nested", 4, RANKS, is_lower_frozen=True)


@pytest.fixture
def base() -> LoadedBase:
    return family_base("llama")


def nested(base: LoadedBase, spec: AdapterSpec = NESTED) -> TreeModel:
    model = TreeModel(base, nodes=("0",), spec=spec, scale=0.5)
    fill_randomly(model)
    return model


def lower(base: LoadedBase, rank: int) -> dict[str, int]:
    return {name: min(rank, NESTED.rank_of(name)) for name in base.facts.projections}


# --- the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_a_prefix_is_the_adapter_that_is_cut_to_it(base: LoadedBase, rank: int) -> None:
    model, ids = nested(base), some_ids(base)
    whole, state = model(ids).logits, model.node_state("0")
    model.use_rank(rank)
    used = model(ids).logits
    assert torch.equal(used, whole) == (rank == 4)
    model.use_rank(None)
    assert torch.equal(model(ids).logits, whole)
    model.detach_adapters()
    ranks = lower(base, rank)
    small = TreeModel(base, nodes=("0",), spec=AdapterSpec("lora", 4, ranks), scale=0.5)
    small.load_node("0", cut(state, NESTED, ranks))
    assert torch.allclose(small(ids).logits, used, atol=1e-6)
    small.detach_adapters()
    wide = TreeModel(base, nodes=("0",), spec=NESTED, scale=0.5)
    wide.load_node("0", pad(cut(state, NESTED, ranks), lower(base, 4)))
    assert torch.allclose(wide(ids).logits, used, atol=1e-6)


@pytest.mark.parametrize("rank", [0, 5, -1])
def test_a_rank_that_is_not_there_is_refused(base: LoadedBase, rank: int) -> None:
    with pytest.raises(SettingError, match=f"rank {rank}: expected 1 to 4"):
        nested(base).use_rank(rank)


def gradients(model: TreeModel, rank: int | None) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Of A and B transposed in layer 0: rows are ranks in both."""
    for parameter in model.parameters():
        parameter.grad = None
    model.use_rank(rank)
    model.loss(some_ids(model.base)).backward()
    found = {}
    for projection, adapters in model.adapters.items():
        pair = adapters[0].pairs[0]
        empty = torch.zeros_like(pair.lora_a), torch.zeros_like(pair.lora_b)
        a, b = (p.grad if p.grad is not None else e for p, e in zip((pair.lora_a, pair.lora_b), empty, strict=True))
        found[projection] = (a, b.t())
    return found


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_a_step_trains_the_rows_of_its_prefix(base: LoadedBase, rank: int) -> None:
    for projection, factors in gradients(nested(base), rank).items():
        for gradient in factors:
            expected = [row < min(rank, NESTED.rank_of(projection)) for row in range(len(gradient))]
            assert [bool(row.any()) for row in gradient] == expected


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_with_lower_rows_frozen_the_last_row_alone_learns(base: LoadedBase, rank: int) -> None:
    model = nested(base, FROZEN)
    frozen = gradients(model, rank)
    for factors in frozen.values():
        for gradient in factors:
            assert [bool(row.any()) for row in gradient] == [row == rank - 1 for row in range(len(gradient))]
    model.detach_adapters()
    for projection, factors in gradients(nested(base), rank).items():
        for full, own in zip(factors, frozen[projection], strict=True):
            assert torch.equal(full[rank - 1 : rank], own[rank - 1 : rank])


def test_without_a_rank_all_rows_learn_even_if_frozen_below(base: LoadedBase) -> None:
    assert all(row.any() for factors in gradients(nested(base, FROZEN), None).values() for g in factors for row in g)


def test_the_rank_of_a_pass_holds_for_its_backward(base: LoadedBase) -> None:
    """Checkpointed blocks run again during backward, when the model has already been told another rank."""
    model = nested(base)
    plain = gradients(model, 2)
    for parameter in model.adapter_parameters():
        parameter.grad = None
    for layer in base.model.model.layers:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    loss = model.loss(some_ids(base))
    model.use_rank(None)
    loss.backward()
    for projection, (lora_a, _) in plain.items():
        own = model.adapters[projection][0].pairs[0].lora_a.grad
        assert own is not None and torch.equal(own, lora_a)


# --- training ---------------------------------------------------------------------------------------------------------


def test_ranks_are_drawn_evenly_and_by_step_and_seed_alone() -> None:
    drawn = [sample_rank(step, 7, 4) for step in range(2000)]
    assert drawn == [sample_rank(step, 7, 4) for step in range(2000)]
    assert drawn != [sample_rank(step, 8, 4) for step in range(2000)]
    assert all(abs(count - 500) < 80 for count in Counter(drawn).values())
    assert sorted(Counter(drawn)) == [1, 2, 3, 4]
    assert {sample_rank(step, 7, 8, (1, 4, 8)) for step in range(50)} == {1, 4, 8}
    assert [sample_rank(step, 0, 1) for step in range(3)] == [1, 1, 1]
    with pytest.raises(SettingError, match=r"expected numbers from 1 to 4, got \[1, 8\]"):
        sample_rank(0, 0, 4, (1, 8))


def test_the_loss_of_a_step_is_that_of_its_rank_and_passes_between_see_all(base: LoadedBase) -> None:
    model, ids = nested(base), some_ids(base)
    documents, whole = torch.zeros_like(ids), model.loss(ids)
    loss_of = nested_loss(model, NESTED, seed=3, first_step=10)
    for index in range(4):
        objective, nll = loss_of(ids, documents, index)
        assert torch.equal(objective, nll) and not nll.requires_grad
        assert torch.equal(model.loss(ids), whole)
        model.use_rank(sample_rank(10 + index, 3, 4))
        assert torch.equal(model.loss(ids), nll)
        model.use_rank(None)


def test_ranks_above_every_projection_are_not_drawn(base: LoadedBase) -> None:
    spec = AdapterSpec("nested", 4, dict.fromkeys(base.facts.projections, 2))
    model = TreeModel(base, nodes=("0",), spec=spec, scale=1.0)
    used: list[int | None] = []
    model.use_rank = used.append  # pyright: ignore[reportAttributeAccessIssue]
    ids = some_ids(base)
    for index in range(12):
        nested_loss(model, spec, 0, 0)(ids, ids, index)
    assert set(used) == {1, 2, None}


def test_training_nested_makes_short_prefixes_better(base: LoadedBase) -> None:
    """Against plain training with the same steps: nested prefixes are used, not just carried along."""
    ids = some_ids(base, batch=4)
    found = {}
    for kind in ("lora", "nested"):
        spec = AdapterSpec.parse(kind, 4)
        model = TreeModel(base, nodes=("0",), spec=spec, scale=1.0)
        model.load_node("0", init_adapter(base.facts, spec, seed=0, path="0"))
        optimizer = torch.optim.AdamW(model.adapter_parameters(), lr=0.02)
        loss_of = nested_loss(model, spec, 0, 0)
        for index in range(15):
            loss = loss_of(ids, ids, index)[0] if kind == "nested" else model.loss(ids)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.use_rank(1)
        found[kind] = model.loss(ids).item()
        model.detach_adapters()
    assert found["nested"] < found["lora"]


# --- states -----------------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.integers(1, 4), st.integers(1, 4))
def test_cutting_twice_is_cutting_to_the_lower_rank(first: int, second: int) -> None:
    base = family_base("llama")
    state = init_adapter(base.facts, NESTED, seed=0, path="0")
    state = {name: torch.randn_like(tensor) for name, tensor in state.items()}
    once = cut(state, NESTED, lower(base, min(first, second)))
    spec = AdapterSpec("nested", 4, lower(base, first))
    twice = cut(cut(state, NESTED, lower(base, first)), spec, lower(base, min(first, second)))
    assert all(torch.equal(once[name], twice[name]) for name in state)
    shapes = adapter_shapes(base.facts, AdapterSpec("nested", 4, lower(base, min(first, second))))
    assert {name: tuple(tensor.shape) for name, tensor in once.items()} == shapes
    back = cut(pad(once, lower(base, 4)), NESTED, lower(base, min(first, second)))
    assert all(torch.equal(once[name], back[name]) for name in state)


def test_what_cannot_be_cut_or_padded_is_refused(base: LoadedBase) -> None:
    state = init_adapter(base.facts, NESTED, seed=0, path="0")
    for ranks, message in (
        ({"mlp.up_proj": 3}, "mlp.up_proj: expected a rank from 1 to 2, got 3"),
        ({"mlp.up_proj": 0}, "expected a rank from 1 to 2, got 0"),
        ({"head": 1}, "head: the adapter has no such projection"),
    ):
        with pytest.raises(SettingError, match=message):
            cut(state, NESTED, ranks)
    with pytest.raises(SettingError, match="kind tied:A have no usable prefixes"):
        cut({}, AdapterSpec("tied", 4, trained=("A",)), {})
    with pytest.raises(SettingError, match=r"mlp.up_proj: expected rank 1 at most, got 2"):
        pad(state, {"mlp.up_proj": 1})

"""Mixing adapters, compared with the dense updates that the code never forms."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylora.adapters.mixing import compress, concatenate, factorise, uniform_merge
from tinylora.errors import SettingError, ShapeMismatch
from tinylora.tensors import Tensors

SHAPES = {"up": (2, 7, 5), "down": (1, 3, 9)}
"""Layers, in, out."""


def adapter(rank: int, seed: int, shapes: dict[str, tuple[int, int, int]] = SHAPES) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    state: Tensors = {}
    for name, (n_layers, n_in, n_out) in shapes.items():
        state[f"{name}.lora_A"] = torch.randn(n_layers, rank, n_in, generator=generator)
        state[f"{name}.lora_B"] = torch.randn(n_layers, n_out, rank, generator=generator)
    return state


def dense(state: Tensors) -> Tensors:
    """Each projection's updates B A, (layer, out, in)."""
    names = sorted({name.rpartition(".")[0] for name in state})
    return {name: state[f"{name}.lora_B"].double() @ state[f"{name}.lora_A"].double() for name in names}


many = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@given(many, st.data())
@settings(max_examples=30)
def test_concatenation_is_the_weighted_sum(ranks: list[int], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.floats(-2, 2), min_size=len(ranks), max_size=len(ranks)))
    states = [adapter(rank, seed) for seed, rank in enumerate(ranks)]
    mixed = concatenate(states, weights)
    assert mixed["up.lora_A"].shape == (2, sum(ranks), 7)
    for name, update in dense(mixed).items():
        expected = sum(weight * dense(state)[name] for weight, state in zip(weights, states, strict=True))
        torch.testing.assert_close(update, expected, atol=1e-5, rtol=1e-5)


@given(many)
@settings(max_examples=20)
def test_the_uniform_merge_is_the_mean_of_the_updates_and_not_of_the_factors(ranks: list[int]) -> None:
    states = [adapter(rank, seed) for seed, rank in enumerate(ranks)]
    for name, update in dense(uniform_merge(states)).items():
        expected = torch.stack([dense(state)[name] for state in states]).mean(dim=0)
        torch.testing.assert_close(update, expected, atol=1e-5, rtol=1e-5)
    twins = [adapter(2, 1), adapter(2, 2)]
    factors = {name: (twins[0][name] + twins[1][name]) / 2 for name in twins[0]}
    assert not torch.allclose(dense(factors)["up"], dense(uniform_merge(twins))["up"], atol=0.1)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 9))
@settings(max_examples=40)
def test_compression_is_the_best_that_the_rank_allows(wide: int, rank: int, seed: int) -> None:
    state = adapter(wide, seed)
    found = compress(state, rank)
    lost, whole = 0.0, 0.0
    for name, update in dense(state).items():
        u, s, vt = torch.linalg.svd(update, full_matrices=False)
        best = (u[..., :rank] * s[..., None, :rank]) @ vt[..., :rank, :]
        torch.testing.assert_close(dense(found.state)[name], best, atol=1e-4, rtol=1e-4)
        assert found.state[f"{name}.lora_A"].shape[1] == min(rank, wide)
        lost, whole = lost + float((update - best).square().sum()), whole + float(update.square().sum())
    assert found.relative_error == pytest.approx(math.sqrt(lost / whole), abs=1e-6)
    a, b = found.state["up.lora_A"], found.state["up.lora_B"]
    used = min(rank, wide, 5)
    torch.testing.assert_close(a[:, :used].norm(dim=2), b[:, :, :used].norm(dim=1), rtol=1e-4, atol=1e-4)
    largest = a.gather(-1, a.abs().argmax(dim=-1, keepdim=True))
    assert (largest >= 0).all()


def test_equal_adapters_concatenated_compress_to_themselves() -> None:
    state = adapter(3, 0)
    twice = concatenate([state, state], [0.5, 0.5])
    found = compress(twice, 3)
    assert found.relative_error < 1e-6
    for name, update in dense(state).items():
        torch.testing.assert_close(dense(found.state)[name], update, atol=1e-5, rtol=1e-5)
    flipped = {name: -tensor for name, tensor in state.items()}  # the same update by other factors
    left, right = compress(state, 3).state, compress(flipped, 3).state
    assert all(torch.allclose(left[name], right[name], atol=1e-5) for name in state)


def test_nothing_compresses_to_nothing_that_can_still_be_trained() -> None:
    zero = {name: torch.zeros_like(tensor) for name, tensor in adapter(3, 0).items()}
    found = compress(zero, 2)
    assert found.relative_error == 0.0
    assert not found.state["up.lora_B"].any()
    torch.testing.assert_close(found.state["up.lora_A"].norm(dim=2), torch.ones(2, 2))


def test_no_update_is_formed() -> None:
    """A projection of 60,000 x 60,000 numbers would take 29 GB in float64."""
    wide = factorise(torch.randn(1, 4, 60_000).double(), torch.randn(1, 60_000, 4).double(), 2)
    assert wide.lora_b.shape == (1, 60_000, 2)
    assert 0 < wide.lost < wide.whole


def test_what_cannot_be_mixed_is_refused() -> None:
    with pytest.raises(SettingError, match=r"expected a finite weight for each, got \[\] for 0"):
        concatenate([])
    with pytest.raises(SettingError, match="a finite weight for each"):
        uniform_merge([])
    for weights in ([1.0], [1.0, float("nan")]):
        with pytest.raises(SettingError, match="a finite weight for each"):
            concatenate([adapter(1, 0), adapter(1, 1)], weights)
    with pytest.raises(ShapeMismatch, match=r"up: expected \(layers, in, out\) \(2, 7, 5\), got \(2, 7, 6\)"):
        concatenate([adapter(1, 0), adapter(1, 0, SHAPES | {"up": (2, 7, 6)})])
    with pytest.raises(ShapeMismatch, match=r"expected down.lora_A, .*, got up.lora_A, up.lora_B"):
        concatenate([adapter(1, 0), adapter(1, 0, {"up": (2, 7, 5)})])
    with pytest.raises(ShapeMismatch, match=r"expected pairs lora_A and lora_B, got up.lora_A$"):
        concatenate([{"up.lora_A": torch.zeros(1, 1, 1)}])
    with pytest.raises(ShapeMismatch, match=r"A \(1, 4\) and B \(4, 1\) are no pair"):
        compress({"up.lora_A": torch.zeros(1, 4), "up.lora_B": torch.zeros(4, 1)}, 1)
    with pytest.raises(SettingError, match="rank 0"):
        compress(adapter(1, 0), 0)

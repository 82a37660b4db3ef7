"""Averages of replicas: arithmetic one can do on paper, order independence, pass-through, and refusals."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylora.aggregation import average_nodes, average_prefixes, average_products, cut, join, mismatch, outer_step
from tinylora.errors import ProtocolError, ShapeMismatch


def _update(*values: float) -> dict[str, torch.Tensor]:
    return {"node.0.q.lora_A": torch.tensor(values, dtype=torch.float32)}


def test_mean_of_two_is_halfway():
    mean = average_nodes({"b": _update(1.0, 3.0), "a": _update(3.0, 7.0)})
    assert torch.equal(mean["node.0.q.lora_A"], torch.tensor([2.0, 5.0]))


def test_weights_are_relative():
    updates = {"a": _update(0.0), "b": _update(4.0)}
    mean = average_nodes(updates, {"a": 30.0, "b": 10.0})
    assert torch.equal(mean["node.0.q.lora_A"], torch.tensor([1.0]))


def test_single_contributor_passes_bit_by_bit():
    update = _update(0.1, -0.0, 1e-45)
    mean = average_nodes({"w": update}, {"w": 3.0})
    assert mean["node.0.q.lora_A"].numpy().tobytes() == update["node.0.q.lora_A"].numpy().tobytes()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4))
def test_any_order_gives_the_same_bits(values):
    names = ["w1", "w2", "w3", "w4"]
    updates = {name: _update(value, value / 3) for name, value in zip(names, values, strict=True)}
    results = {
        average_nodes({name: updates[name] for name in order})["node.0.q.lora_A"].numpy().tobytes()
        for order in itertools.permutations(names)
    }
    assert len(results) == 1


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(0, 10_000))
def test_equals_the_float64_mean(n_workers, seed):
    random = np.random.default_rng(seed)
    values = {f"w{index}": random.normal(size=(2, 3)).astype(np.float32) for index in range(n_workers)}
    mean = average_nodes({worker: {"x": torch.from_numpy(value)} for worker, value in values.items()})
    expected = np.mean([value.astype(np.float64) for value in values.values()], axis=0).astype(np.float32)
    np.testing.assert_allclose(mean["x"].numpy(), expected, rtol=1e-7, atol=1e-12)


def test_shape_mismatch_names_tensor_and_worker():
    with pytest.raises(ShapeMismatch, match=r"lora_A of worker zed: expected float32 \(2,\).*got float32 \(3,\)"):
        average_nodes({"ann": _update(1, 2), "zed": _update(1, 2, 3)})


def test_missing_tensor_is_named():
    with pytest.raises(ShapeMismatch, match=r"worker zed lacks tensor node\.0\.q\.lora_A"):
        average_nodes({"ann": _update(1), "zed": {}})


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_useless_weight_is_refused(weight):
    with pytest.raises(ProtocolError, match="worker b: expected a positive weight"):
        average_nodes({"a": _update(1), "b": _update(2)}, {"a": 1.0, "b": weight})


def test_no_updates_is_refused():
    with pytest.raises(ProtocolError, match="at least one"):
        average_nodes({})


# --- prefixes --------------------------------------------------------------------------------------------------------


def _pair(rank: int, *, seed: int = 0, n_in: int = 5, n_out: int = 6, n_layers: int = 2) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "q.lora_A": torch.randn(n_layers, rank, n_in, generator=draw),
        "q.lora_B": torch.randn(n_layers, n_out, rank, generator=draw),
    }


def _products(updates, shares=None):
    """The obvious way: every worker's dense update, then their mean."""
    shares = shares or dict.fromkeys(updates, 1.0)
    dense = [shares[w] * (state["q.lora_B"].double() @ state["q.lora_A"].double()) for w, state in updates.items()]
    return torch.stack(dense).sum(dim=0) / sum(shares.values())


def test_prefixes_of_equal_rank_are_the_plain_mean_bit_by_bit():
    updates = {f"w{seed}": _pair(3, seed=seed) for seed in range(3)}
    plain, prefixes = average_nodes(updates), average_prefixes(updates)
    assert all(torch.equal(plain[name], prefixes[name]) for name in plain)


def test_each_row_is_averaged_over_those_who_trained_it():
    updates = {"small": _pair(1, seed=1), "middle": _pair(2, seed=2), "large": _pair(4, seed=3)}
    mean = average_prefixes(updates)
    assert mean["q.lora_A"].shape == (2, 4, 5)
    for row, holders in enumerate((("small", "middle", "large"), ("middle", "large"), ("large",), ("large",))):
        a = torch.stack([updates[worker]["q.lora_A"][:, row] for worker in holders]).double().mean(dim=0)
        b = torch.stack([updates[worker]["q.lora_B"][..., row] for worker in holders]).double().mean(dim=0)
        torch.testing.assert_close(mean["q.lora_A"][:, row], a.float(), rtol=0, atol=1e-7)
        torch.testing.assert_close(mean["q.lora_B"][..., row], b.float(), rtol=0, atol=1e-7)
    assert torch.equal(mean["q.lora_A"][:, 3], updates["large"]["q.lora_A"][:, 3])


def test_ranks_that_do_not_nest_are_refused():
    crooked = {"q.lora_A": torch.zeros(2, 3, 5), "q.lora_B": torch.zeros(2, 6, 2)}
    with pytest.raises(ShapeMismatch, match=r"worker b, q: ranks do not nest: lora_A is float32 \(2, 3, 5\)"):
        average_prefixes({"a": _pair(2), "b": crooked})


def test_prefixes_of_other_widths_are_refused():
    with pytest.raises(ShapeMismatch, match=r"tensor q\.lora_A of worker b"):
        average_prefixes({"a": _pair(2), "b": _pair(2, n_in=7)})


def test_join_puts_what_was_trained_in_its_place():
    whole, part = _pair(4, seed=1), _pair(2, seed=2)
    joined = join(whole, part)
    assert torch.equal(joined["q.lora_A"], torch.cat([part["q.lora_A"], whole["q.lora_A"][:, 2:]], dim=1))
    assert torch.equal(joined["q.lora_B"], torch.cat([part["q.lora_B"], whole["q.lora_B"][..., 2:]], dim=2))
    only_b = join(whole, {"q.lora_B": part["q.lora_B"]})
    assert only_b["q.lora_A"] is whole["q.lora_A"]
    assert all(torch.equal(tensor, part[name]) for name, tensor in cut(joined, part).items())
    assert all(torch.equal(tensor, part[name]) for name, tensor in join(part, part).items())
    for stranger in (_pair(5), {"k.lora_A": torch.zeros(2, 1, 5)}):
        with pytest.raises(ShapeMismatch, match="lora_A: expected"):
            join(whole, stranger)


# --- products --------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 4), st.integers(1, 4), st.integers(0, 1000))
def test_mean_of_products_is_the_best_of_its_rank(n_workers, rank, seed):
    updates = {f"w{i}": _pair(rank, seed=seed + i) for i in range(n_workers)}
    found = average_products(updates)
    dense = _products(updates)
    u, s, vt = torch.linalg.svd(dense, full_matrices=False)
    best = u[..., :rank] * s[..., None, :rank] @ vt[..., :rank, :]
    torch.testing.assert_close(_products({"w": found}), best, rtol=1e-5, atol=1e-5)
    norms = found["q.lora_A"].norm(dim=2), found["q.lora_B"].norm(dim=1)
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-4, atol=1e-5)


def test_products_of_common_factors_are_kept_exactly():
    """Replicas that share A span one row space, so the mean product has the rank of one of them."""
    common = _pair(2)
    updates = {f"w{i}": common | {"q.lora_B": _pair(2, seed=i)["q.lora_B"]} for i in range(3)}
    torch.testing.assert_close(_products({"w": average_products(updates)}), _products(updates), rtol=1e-5, atol=1e-6)


def test_products_in_any_order_give_the_same_bits_and_sums_have_a_sign():
    updates = {f"w{i}": _pair(2, seed=i) for i in range(3)}
    one, other = average_products(updates), average_products(dict(reversed(updates.items())))
    assert all(torch.equal(one[name], other[name]) for name in one)
    a = one["q.lora_A"]
    assert (a.gather(2, a.abs().argmax(dim=2, keepdim=True)) > 0).all()


def test_directions_without_weight_stay_trainable():
    """All B zero, as at the start: A keeps rows of length 1, or nothing would ever move again."""
    updates = {f"w{i}": _pair(3) | {"q.lora_B": torch.zeros(2, 6, 3)} for i in range(2)}
    found = average_products(updates)
    assert not found["q.lora_B"].any()
    torch.testing.assert_close(found["q.lora_A"].norm(dim=2), torch.ones(2, 3))


def test_a_rank_above_the_width_is_filled_up():
    updates = {f"w{i}": _pair(4, seed=i, n_in=3) for i in range(2)}
    found = average_products(updates)
    assert found["q.lora_A"].shape == (2, 4, 3)
    torch.testing.assert_close(_products({"w": found}), _products(updates), rtol=1e-5, atol=1e-5)


def test_one_pair_passes_through():
    update = _pair(2)
    assert all(torch.equal(tensor, update[name]) for name, tensor in average_products({"w": update}).items())


def test_mismatch_is_that_of_the_dense_matrices():
    updates, shares = {f"w{i}": _pair(2, seed=i) for i in range(3)}, {"w0": 1.0, "w1": 2.0, "w2": 5.0}
    for weights in (None, shares):
        apart, whole = mismatch(updates, weights)
        dense = _products(updates, weights)
        off = dense - _products(
            {"w": average_nodes({w: {n: t.double() for n, t in s.items()} for w, s in updates.items()}, weights)}
        )
        assert apart == pytest.approx(float((off**2).sum()))
        assert whole == pytest.approx(float((dense**2).sum()))


def test_mismatch_is_zero_where_one_factor_is_common():
    common = _pair(2)
    for part in ("lora_A", "lora_B"):
        updates = {f"w{i}": common | {f"q.{part}": _pair(2, seed=i)[f"q.{part}"]} for i in range(3)}
        assert mismatch(updates)[0] == 0.0


def test_products_of_something_else_are_refused():
    for call in (average_products, mismatch):
        with pytest.raises(ShapeMismatch, match=r"expected pairs lora_A and lora_B, got q\.u"):
            call({"a": {"q.u": torch.zeros(1)}, "b": {"q.u": torch.zeros(1)}})


# --- the outer step --------------------------------------------------------------------------------------------------


def test_outer_step_at_rate_one_is_the_mean_itself():
    start, mean = _pair(2, seed=1), _pair(2, seed=2)
    moved, velocity = outer_step(start, mean, {}, rate=1.0, momentum=0.0)
    assert all(moved[name] is mean[name] for name in mean)
    assert velocity == {}


def test_outer_steps_are_those_of_torch():
    """The same path as torch's SGD takes when its gradient is start - mean."""
    node = {"x": torch.tensor([1.0, -2.0, 3.0])}
    reference = torch.nn.Parameter(node["x"].double().clone())
    sgd = torch.optim.SGD([reference], lr=0.7, momentum=0.9, nesterov=True)
    velocity: dict[str, torch.Tensor] = {}
    for number in range(5):
        mean = {"x": node["x"] * 0.9 + 0.01 * number}
        reference.grad = (node["x"] - mean["x"]).double()
        sgd.step()
        node, velocity = outer_step(node, mean, velocity, rate=0.7, momentum=0.9)
        torch.testing.assert_close(node["x"], reference.detach().float(), rtol=1e-6, atol=1e-6)


def test_outer_rate_alone_keeps_a_share_of_the_way():
    moved, _ = outer_step({"x": torch.zeros(2)}, {"x": torch.ones(2)}, {}, rate=0.5, momentum=0.0)
    assert moved["x"].tolist() == [0.5, 0.5]

"""Averages of replicas: arithmetic one can do on paper, order independence, pass-through, and refusals."""

import itertools
import weakref
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.routing.test_clipping import all_at_once
from tinylora.aggregation import (
    MOST_COMPARED,
    MOST_STACKED,
    Streamed,
    average_nodes,
    average_prefixes,
    average_products,
    clip_updates,
    cut,
    join,
    mismatch,
    outer_step,
)
from tinylora.errors import ProtocolError, ShapeMismatch
from tinylora.tensors import Tensors


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


# --- one worker at a time --------------------------------------------------------------------------------------------


class _Crowd:
    """Workers whose updates are made when asked for; remembers how many were alive at once, and how often it gave."""

    def __init__(self, n: int, spread: float = 0.1, hostile: int = 0) -> None:
        self.updates = {f"w{i:03d}": self._make(i, spread, i < hostile) for i in range(n)}
        self.alive: set[int] = set()
        self.most_alive = 0
        self.n_given = 0

    @staticmethod
    def _make(number: int, spread: float, is_hostile: bool) -> Tensors:
        noise = _pair(2, seed=number + 1)
        factor = -10.0 if is_hostile else 1.0
        return {name: tensor + factor * (1 + spread * noise[name]) for name, tensor in _pair(2).items()}

    def streamed(self) -> Streamed:
        return Streamed(self.updates, self._give)

    def _give(self, worker: str) -> Tensors:
        given = {name: tensor.clone() for name, tensor in self.updates[worker].items()}
        self.n_given += 1
        first = next(iter(given.values()))
        self.alive.add(id(first))
        weakref.finalize(first, self.alive.discard, id(first))
        self.most_alive = max(self.most_alive, len(self.alive))
        return given


def _bytes(state: Tensors) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in sorted(state.items())}


def _summed_at_once(updates: Mapping[str, Tensors]) -> Tensors:
    """The mean over those who trained each row, with all updates in memory and row by row: the slow reference."""
    found = {}
    for name in sorted(next(iter(updates.values()))):
        axis = -2 if name.endswith("A") else -1
        rows = []
        for row in range(max(state[name].shape[axis] for state in updates.values())):
            held = [s[name].select(axis, row) for _, s in sorted(updates.items()) if row < s[name].shape[axis]]
            total = torch.zeros(held[0].shape, dtype=torch.float64)
            for tensor in held:
                total += tensor.double()
            rows.append(held[0] if len(held) == 1 else (total / len(held)).float())
        found[name] = torch.stack(rows, dim=axis)
    return found


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(0, 1000), st.floats(0.0, 1.0))
def test_means_have_the_bits_of_sums_over_all_at_once(ranks, seed, share_of_zeros):
    """Signs of zeros included."""
    updates = {}
    for number, rank in enumerate(ranks):
        draw = torch.Generator().manual_seed(seed + number)
        pair = _pair(rank, seed=seed + number)
        updates[f"w{number}"] = {
            name: t * torch.where(torch.rand(t.shape, generator=draw) < share_of_zeros, -0.0, 1.0)
            for name, t in pair.items()
        }
    assert _bytes(average_prefixes(updates)) == _bytes(_summed_at_once(updates))


def _clipped_at_once(updates: Mapping[str, Tensors], start: Tensors, previous: Tensors, clip: float) -> Tensors:
    """The mean of the clipped updates, all ways in one matrix: the slow reference."""

    def flat(state: Tensors) -> np.ndarray:
        return np.concatenate([state[name].double().flatten().numpy() for name in sorted(state)])

    moves = np.stack([flat(join(start, state)) - flat(start) for _, state in sorted(updates.items())])
    centre = flat(start) - flat(previous) if previous else np.zeros(moves.shape[1])
    drawn = all_at_once(moves, centre, clip)
    ways = torch.from_numpy(flat(start) + (moves if drawn is None else drawn)).float().double().mean(dim=0).float()
    parts = ways.split([start[name].numel() for name in sorted(start)])
    return {name: part.reshape(start[name].shape) for name, part in zip(sorted(start), parts, strict=True)}


@pytest.mark.parametrize("hostile", [1, 3])
@pytest.mark.parametrize("has_history", [True, False])
def test_clipped_means_are_those_of_the_matrix(hostile, has_history):
    """To rounding: sums of float64, cut to float32, so a last bit at most."""
    crowd, start = _Crowd(10, hostile=hostile), _pair(2)
    previous = {name: tensor - 0.5 for name, tensor in start.items()} if has_history else {}
    found = average_prefixes(clip_updates(crowd.streamed(), start, previous, 2.0))
    expected = _clipped_at_once(crowd.updates, start, previous, 2.0)
    plain = average_prefixes(crowd.updates)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=2.0**-22, atol=1e-7)
        assert not torch.allclose(tensor, plain[name], atol=0.1)


def test_who_is_not_far_off_keeps_its_bits():
    crowd, start = _Crowd(10), _pair(2)
    assert _bytes(average_prefixes(clip_updates(crowd.streamed(), start, {}, 3.0))) == _bytes(
        average_prefixes(crowd.updates)
    )
    hostile = _Crowd(10, hostile=1)
    drawn = clip_updates(hostile.streamed(), start, {}, 3.0)
    kept = [worker for worker in sorted(drawn) if _bytes(drawn[worker]) == _bytes(hostile.updates[worker])]
    assert kept == sorted(hostile.updates)[1:]


def test_of_updates_of_different_rank_the_lengths_alone_are_clipped():
    start = _pair(2)
    updates = {f"w{seed}": cut(start, _pair(1 + seed % 2)) for seed in range(5)}
    updates = {worker: {name: t + 0.1 for name, t in state.items()} for worker, state in updates.items()}
    updates["w0"] = {name: tensor + 1e6 for name, tensor in updates["w0"].items()}
    previous = {name: tensor + 7.0 for name, tensor in start.items()}
    with_history, without = (clip_updates(updates, start, given, 2.0) for given in (previous, {}))
    for worker in updates:
        assert _bytes(with_history[worker]) == _bytes(without[worker])
    assert float(with_history["w0"]["q.lora_A"].abs().max()) < 10


@pytest.mark.parametrize("n", [3, 40])
def test_two_updates_are_in_memory_at_most_and_passes_are_linear(n):
    for hostile in (0, n // 3):
        crowd, start = _Crowd(n, hostile=hostile), _pair(2)
        average_prefixes(clip_updates(crowd.streamed(), start, {}, 2.0))
        assert crowd.most_alive <= 2
        assert crowd.n_given <= 10 * n
    for made, most in ((average_products, 2), (mismatch, MOST_COMPARED)):
        crowd = _Crowd(n)
        made(crowd.streamed())
        assert crowd.most_alive <= most
        assert crowd.n_given <= n + MOST_COMPARED


def test_products_of_many_are_folded_in_and_near_the_best():
    """What is lost when the stack is narrowed are singular values beyond four times the rank."""
    crowd = _Crowd(5 * MOST_STACKED, spread=0.02)
    found, dense = average_products(crowd.streamed()), _products(crowd.updates)
    u, s, vt = torch.linalg.svd(dense, full_matrices=False)
    best = u[..., :2] * s[..., None, :2] @ vt[..., :2, :]
    error = (_products({"w": found}) - best).norm() / best.norm()
    assert error < 1e-4


def test_a_streamed_mapping_asks_for_what_it_has_alone():
    asked: list[str] = []
    updates = Streamed(["b", "a"], lambda worker: asked.append(worker) or {})
    assert list(updates) == ["a", "b"]
    assert "c" not in updates
    assert updates.get("c") is None
    with pytest.raises(KeyError):
        _ = updates["c"]
    assert (len(updates), asked) == (2, [])

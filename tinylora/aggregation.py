"""Many updates of one node become one: means in float64, summed in a fixed order.

Floating-point sums depend on their order. Contributors are therefore sorted by name before anything is added, so that
the same updates give the same bytes whichever of them arrived first. Nothing is ever folded into the base.

Rules for workers that start a round from the same state:

* `average_nodes`: the mean of A and the mean of B. Their product is not the mean of the products; `mismatch` says how
  far off it is. Where only one of the two factors was trained it is exact, which alternating rounds make use of;
* `average_prefixes`: the same for adapters of different rank, each row over those who trained it;
* `average_products`: what the rank allows of the mean product, by QR and a small SVD.

`clip_updates` comes before any of them, where workers are not to be trusted: it draws in what is far from the others.

`outer_step` then takes a mean as a step of the node, with momentum from one round to the next (DiLoCo).
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from tinylora.adapters.mixing import factorise
from tinylora.errors import ProtocolError, ShapeMismatch
from tinylora.routing.clipping import clipped
from tinylora.tensors import Tensors

_RANK_AXIS = {"lora_A": -2, "lora_B": -1}
"""Which axis of a stacked factor counts its rank: A is (layer, rank, in), B is (layer, out, rank)."""


# --- means -----------------------------------------------------------------------------------------------------------


def average_nodes(updates: Mapping[str, Tensors], weights: Mapping[str, float] | None = None) -> Tensors:
    """The mean of what several workers made of one node, in the dtype they sent.

    A single contributor is passed through bit by bit, so that a leaf with one owner never changes by being "averaged".

    Args:
        updates: Worker to its tensors. All have the same names, dtypes and shapes.
        weights: Worker to its share, any positive scale; None counts each worker once.

    Raises:
        ShapeMismatch: A worker's tensors differ from the first one's in names, dtype or shape.
        ProtocolError: No update at all, or a weight is missing, not positive or not finite.
    """
    workers = _contributors(updates)
    for worker in workers[1:]:
        _check_like(updates[worker], updates[workers[0]], worker=worker, first=workers[0])
    shares = _shares(workers, weights)
    if len(workers) == 1:
        return dict(updates[workers[0]])
    return {name: _mean(name, workers, updates, shares) for name in sorted(updates[workers[0]])}


def average_prefixes(updates: Mapping[str, Tensors], weights: Mapping[str, float] | None = None) -> Tensors:
    """The mean of adapters of different rank: each row of A and column of B over the workers that trained it.

    Where all ranks are equal this is `average_nodes`, bit by bit. The result has the largest of the ranks.

    Args:
        updates: Worker to its tensors, the first so many rows and columns of the node's.
        weights: Worker to its share, any positive scale; None counts each worker once.

    Raises:
        ShapeMismatch: Names, dtypes, or shapes differ in more than the rank, or a worker's A and B do in their rank.
        ProtocolError: No update at all, or a weight is missing, not positive or not finite.

    Source:
        Valipour et al. 2022, DyLoRA, arXiv:2210.07558: every prefix of the rank is an adapter.
    """
    workers = _contributors(updates)
    for worker in workers:
        _check_names(updates[worker], updates[workers[0]], worker=worker, first=workers[0])
        _check_nests(updates[worker], worker=worker)
    return {name: _mean_of_prefixes(name, updates, weights) for name in sorted(updates[workers[0]])}


def _mean_of_prefixes(name: str, updates: Mapping[str, Tensors], weights: Mapping[str, float] | None) -> Tensor:
    """One tensor, band by band: all rows between two neighbouring ranks were trained by the same workers."""
    ranks = {worker: _rank(name, state[name]) for worker, state in updates.items()}
    bands = []
    for low, high in itertools.pairwise([0, *sorted(set(ranks.values()))]):
        held = {
            worker: {name: _rows(name, updates[worker][name], low, high)}
            for worker, rank in ranks.items()
            if rank >= high
        }
        bands.append(average_nodes(held, weights)[name])
    return bands[0] if len(bands) == 1 else torch.cat(bands, dim=_axis(name))


def _shares(workers: list[str], weights: Mapping[str, float] | None) -> list[float]:
    if weights is None:
        return [1.0] * len(workers)
    for worker in workers:
        weight = weights.get(worker)
        if weight is None or not (math.isfinite(weight) and weight > 0):
            raise ProtocolError(f"average of a node: worker {worker}: expected a positive weight, got {weight}")
    return [float(weights[worker]) for worker in workers]


def _mean(name: str, workers: list[str], updates: Mapping[str, Tensors], shares: list[float]) -> Tensor:
    first = updates[workers[0]][name]
    total = torch.zeros(first.shape, dtype=torch.float64)
    for worker, share in zip(workers, shares, strict=True):
        total += updates[worker][name].to(torch.float64) * share
    return (total / math.fsum(shares)).to(first.dtype)


# --- means that a few cannot pull far ---------------------------------------------------------------------------------


def clip_updates(
    updates: Mapping[str, Tensors], start: Tensors, previous: Tensors, clip: float
) -> Mapping[str, Tensors]:
    """Updates of one node, drawn in where they are far from the others', so that their mean is a robust one.

    See `routing.clipping.clipped`; the centre is the way from the version before to the start of the round. Where
    nobody is far off, and for a single contributor, they are the updates as they came. Of updates of different rank
    only the lengths are clipped.

    Args:
        updates: Worker to its tensors; the first so many rows and columns of the node's.
        start: What the round began with, whole.
        previous: The version before that, whole; empty where there is none, or its directions are others.
        clip: In medians over the updates; 0 leaves all as they are.

    Raises:
        ShapeMismatch: Names, dtypes or shapes do not fit each other or the node.
    """
    workers = _contributors(updates)
    if not clip or len(workers) == 1:
        return updates
    for worker in workers[1:]:
        _check_names(updates[worker], updates[workers[0]], worker=worker, first=workers[0])
    if len({_shapes(state) for state in updates.values()}) > 1:
        previous = {}
    wholes = {worker: join(start, state) for worker, state in updates.items()}
    names = sorted(updates[workers[0]])
    moves = np.stack([_way(start, wholes[worker], names) for worker in workers])
    centre = _way(previous, start, names) if previous else np.zeros(moves.shape[1])
    drawn = clipped(moves, centre, clip)
    if drawn is None:
        return updates
    return {worker: cut(_went(start, way, names), updates[worker]) for worker, way in zip(workers, drawn, strict=True)}


def _shapes(state: Tensors) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(state[name].shape) for name in sorted(state))


def _way(before: Tensors, after: Tensors, names: Sequence[str]) -> np.ndarray:
    """From one state to another, all tensors in a row, float64."""
    return np.concatenate([(after[name].double() - before[name].double()).flatten().numpy() for name in names])


def _went(start: Tensors, way: np.ndarray, names: Sequence[str]) -> Tensors:
    """The state at the end of a way, in float64."""
    ends = np.cumsum([start[name].numel() for name in names])
    return {
        name: start[name].double() + torch.from_numpy(part).reshape(start[name].shape)
        for name, part in zip(names, np.split(way, ends[:-1]), strict=True)
    }


# --- a part of a node ------------------------------------------------------------------------------------------------


def join(whole: Tensors, part: Tensors) -> Tensors:
    """A node's state with what was trained of it in place of its own: some of its tensors, or their first rows.

    Args:
        whole: All tensors of the node, at its full rank.
        part: What was trained.

    Raises:
        ShapeMismatch: `part` has a tensor that the node has not, or a larger one.
    """
    joined = dict(whole)
    for name, tensor in part.items():
        if name not in whole or any(got > had for got, had in zip(tensor.shape, whole[name].shape, strict=True)):
            expected = f"at most {_describe(whole[name])}" if name in whole else "no such tensor"
            raise ShapeMismatch(f"tensor {name}: expected {expected}, got {_describe(tensor)}")
        rest = _rows(name, whole[name], _rank(name, tensor), _rank(name, whole[name]))
        joined[name] = torch.cat([tensor, rest.to(tensor.dtype)], dim=_axis(name)) if rest.numel() else tensor
    return joined


def cut(whole: Tensors, part: Tensors) -> Tensors:
    """What a node's state has in the places of `part`: the same tensors, as many rows of each."""
    return {name: _rows(name, whole[name], 0, _rank(name, tensor)) for name, tensor in part.items()}


def shorten(named: Tensors, rank: int) -> Tensors:
    """Every factor among these tensors cut to its first `rank` rows or columns, or as it is where it has no more."""
    return {
        name: _rows(name, tensor, 0, min(rank, _rank(name, tensor))) if name.endswith(tuple(_RANK_AXIS)) else tensor
        for name, tensor in named.items()
    }


def _axis(name: str) -> int:
    return _RANK_AXIS.get(name.rpartition(".")[2], 0)


def _rank(name: str, tensor: Tensor) -> int:
    return tensor.shape[_axis(name)]


def _rows(name: str, tensor: Tensor, low: int, high: int) -> Tensor:
    return tensor.narrow(_axis(name), low, high - low)


# --- products --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stack:
    """The pairs of several workers on one projection, side by side: their weighted products sum up to `b @ a`."""

    a: Float64[Tensor, "layer stacked in"]
    b: Float64[Tensor, "layer out stacked"]

    def squared_norm(self) -> float:
        """Squared Frobenius norm of b a over all layers: tr(bᵀb aaᵀ), so that no (out, in) matrix is ever made."""
        return float((self.b.mT @ self.b * (self.a @ self.a.mT)).sum().clamp(min=0))


def average_products(updates: Mapping[str, Tensors], weights: Mapping[str, float] | None = None) -> Tensors:
    """Factors of the best approximation that the rank allows of the mean of the products B A.

    The two factors share the singular values evenly, and the largest number in each row of A is positive. A direction
    without weight gets a row of A of length 1 and a zero column of B, as a new adapter has: with both zero it could
    never be trained again. A single contributor is passed through bit by bit.

    Args:
        updates: Worker to its pairs `<projection>.lora_A` and `.lora_B`, all of the same shapes.
        weights: Worker to its share, any positive scale; None counts each worker once.

    Raises:
        ShapeMismatch: A worker's tensors differ from the first one's, or are no pairs.
        ProtocolError: No update at all, or a weight is missing, not positive or not finite.

    Source:
        Bai et al. 2024, FlexLoRA, arXiv:2402.11505: mean of products, truncated SVD; by the stacked factors' QR.
    """
    if len(updates) == 1:
        return average_nodes(updates, weights)
    found: Tensors = {}
    for projection in _projections(updates):
        a, b = (next(iter(updates.values()))[f"{projection}.lora_{part}"] for part in "AB")
        stack = _stack(projection, updates, weights)
        mean = factorise(stack.a, stack.b, a.shape[1])
        found |= {f"{projection}.lora_A": mean.lora_a.to(a.dtype), f"{projection}.lora_B": mean.lora_b.to(b.dtype)}
    return found


def mismatch(updates: Mapping[str, Tensors], weights: Mapping[str, float] | None = None) -> tuple[float, float]:
    """Squared norms of mean(B A) - mean(B) mean(A) and of mean(B A), summed over projections and layers.

    The root of their quotient says how far the averaged factors are off the averaged function. The difference is the
    covariance of the factors, mean((B - mean B)(A - mean A)): exactly zero where all workers have one of them in
    common.

    Args:
        updates: Worker to its pairs, all of the same shapes.
        weights: Worker to its share.

    Raises:
        ShapeMismatch: A worker's tensors differ from the first one's, or are no pairs.
        ProtocolError: No update at all, or a weight is missing, not positive or not finite.
    """
    apart, whole = 0.0, 0.0
    for projection in _projections(updates):
        apart += _stack(projection, updates, weights, is_centred=True).squared_norm()
        whole += _stack(projection, updates, weights).squared_norm()
    return apart, whole


def _projections(updates: Mapping[str, Tensors]) -> list[str]:
    """Names of the projections, after a look at whether all workers have the same pairs."""
    workers = _contributors(updates)
    for worker in workers:
        _check_like(updates[worker], updates[workers[0]], worker=worker, first=workers[0])
    names = sorted(updates[workers[0]])
    projections = sorted({name.rpartition(".")[0] for name in names})
    if names != sorted(f"{projection}.lora_{part}" for projection in projections for part in "AB"):
        raise ShapeMismatch(f"products of a node: expected pairs lora_A and lora_B, got {', '.join(names)}")
    return projections


def _stack(
    projection: str, updates: Mapping[str, Tensors], weights: Mapping[str, float] | None, *, is_centred: bool = False
) -> _Stack:
    workers = sorted(updates)
    shares = _shares(workers, weights)
    pairs = [
        tuple(updates[worker][f"{projection}.lora_{part}"].to(torch.float64) for part in "AB") for worker in workers
    ]
    a, b = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    if is_centred:
        a, b = _centred(a, shares), _centred(b, shares)
    total = math.fsum(shares)
    weighted = [factor * (share / total) for factor, share in zip(b, shares, strict=True)]
    return _Stack(torch.cat(a, dim=-2), torch.cat(weighted, dim=-1))


def _centred(factors: Sequence[Tensor], shares: Sequence[float]) -> list[Tensor]:
    mean = sum((factor * share for factor, share in zip(factors, shares, strict=True)), torch.zeros(()).double())
    mean = mean / math.fsum(shares)
    return [factor - mean for factor in factors]


# --- the outer step --------------------------------------------------------------------------------------------------


def outer_step(
    start: Tensors, mean: Tensors, velocity: Tensors, *, rate: float, momentum: float
) -> tuple[Tensors, Tensors]:
    """A node after a round, and its velocity: a Nesterov step down the difference between its start and the mean.

    At rate 1 without momentum the node is the mean itself, bit by bit. Without momentum there is no velocity.

    Args:
        start: What the round began with.
        mean: What its workers made of it; the same tensors.
        velocity: From the round before; a tensor that is missing stands still.
        rate: Of the outer step, dimensionless.
        momentum: Share of the velocity that is kept from one round to the next.

    Source:
        Douillard et al. 2023, DiLoCo, arXiv:2311.08105, algorithm 1; Nesterov momentum as Sutskever et al. 2013.
    """
    if rate == 1.0 and momentum == 0.0:
        return dict(mean), {}
    moved: Tensors = {}
    kept: Tensors = {}
    for name, tensor in sorted(mean.items()):
        before = start[name].to(torch.float64)
        downhill = before - tensor.to(torch.float64)
        speed = downhill + momentum * velocity[name].to(torch.float64) if name in velocity else downhill
        moved[name] = (before - rate * (downhill + momentum * speed)).to(tensor.dtype)
        kept[name] = speed.to(tensor.dtype)
    return moved, kept if momentum else {}


# --- checks ----------------------------------------------------------------------------------------------------------


def _contributors(updates: Mapping[str, Tensors]) -> list[str]:
    if not updates:
        raise ProtocolError("average of a node: expected at least one update, got none")
    return sorted(updates)


def _check_like(tensors: Tensors, reference: Tensors, *, worker: str, first: str) -> None:
    _check_names(tensors, reference, worker=worker, first=first)
    for name in sorted(reference):
        expected, got = reference[name], tensors[name]
        if (expected.shape, expected.dtype) != (got.shape, got.dtype):
            raise ShapeMismatch(
                f"tensor {name} of worker {worker}: expected {_describe(expected)} as from worker {first}, "
                f"got {_describe(got)}; both must train the node at the rank of the run"
            )


def _check_names(tensors: Iterable[str], reference: Tensors, *, worker: str, first: str) -> None:
    strangers = sorted(set(tensors) ^ reference.keys())
    if strangers:
        side = "lacks" if strangers[0] in reference else "has the unexpected"
        raise ShapeMismatch(f"worker {worker} {side} tensor {strangers[0]}; expected the names of worker {first}")


def _check_nests(state: Tensors, *, worker: str) -> None:
    """Both factors of a pair must be cut at one rank, or their rows and columns belong to different directions."""
    for name in sorted(state):
        projection, _, part = name.rpartition(".")
        other = f"{projection}.lora_B"
        if part == "lora_A" and other in state and _rank(name, state[name]) != _rank(other, state[other]):
            raise ShapeMismatch(
                f"worker {worker}, {projection}: ranks do not nest: lora_A is {_describe(state[name])} and lora_B "
                f"{_describe(state[other])}; both must be cut to the same rank"
            )


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"

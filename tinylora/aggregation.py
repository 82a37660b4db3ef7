"""Many updates of one node become one: means in float64, summed in a fixed order.

Floating-point sums depend on their order. Contributors are therefore sorted by name before anything is added, so that
the same updates give the same bytes whichever of them arrived first. Nothing is ever folded into the base.

The updates are a mapping, and each function asks it for one worker's tensors at a time, again in every pass over them,
and keeps none: given a `Streamed` mapping it needs no more memory for a thousand workers than for two. Exceptions say
so.

Rules for workers that start a round from the same state:

* `average_nodes`: the mean of A and the mean of B. Their product is not the mean of the products; `mismatch` says how
  far off it is. Where only one of the two factors was trained it is exact, which alternating rounds make use of;
* `average_prefixes`: the same for adapters of different rank, each row over those who trained it;
* `average_products`: what the rank allows of the mean product, by QR and a small SVD.

`clip_updates` comes before any of them, where workers are not to be trusted: it draws in what is far from the others.

`outer_step` then takes a mean as a step of the node, with momentum from one round to the next (DiLoCo).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from tinylora.adapters.mixing import factorise
from tinylora.errors import ProtocolError, ShapeMismatch
from tinylora.routing.clipping import Draw, draw_in
from tinylora.tensors import Tensors

_RANK_AXIS = {"lora_A": -2, "lora_B": -1}
"""Which axis of a stacked factor counts its rank: A is (layer, rank, in), B is (layer, out, rank)."""
MOST_COMPARED = 8
"""Workers whose factors are held side by side to tell the mismatch."""
MOST_STACKED = 8
"""Pairs that are stacked before the stack is made as narrow as half of them, to have room for the next."""


class Streamed(Mapping[str, Tensors]):
    """Updates by worker, each made when it is asked for and kept by nobody.

    Args:
        workers: Their names.
        make: The tensors of one of them.
    """

    def __init__(self, workers: Iterable[str], make: Callable[[str], Tensors]) -> None:
        self._workers = dict.fromkeys(sorted(workers))
        self._make = make

    def __getitem__(self, worker: str) -> Tensors:
        if worker not in self._workers:
            raise KeyError(worker)
        return self._make(worker)

    def __contains__(self, worker: object) -> bool:
        return worker in self._workers

    def __iter__(self) -> Iterator[str]:
        return iter(self._workers)

    def __len__(self) -> int:
        return len(self._workers)


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
    return _added_up(updates, weights, _check_like, lambda name: 0)


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
    return _added_up(updates, weights, _check_prefixes, _axis)


def _added_up(
    updates: Mapping[str, Tensors],
    weights: Mapping[str, float] | None,
    check: Callable[..., None],
    axis_of: Callable[[str], int],
) -> Tensors:
    """The mean of each tensor, in one pass; of each row over those who trained it."""
    workers = _contributors(updates)
    shares = _shares(workers, weights)
    if len(workers) == 1:
        return dict(updates[workers[0]])
    means, reference = dict[str, _Mean](), _outline(updates[workers[0]])
    for worker, share in zip(workers, shares, strict=True):
        state = updates[worker]
        check(state, reference, worker=worker, first=workers[0])
        for name, tensor in state.items():
            if name in means:
                means[name].add(tensor, share)
            else:
                means[name] = _Mean(axis_of(name), tensor, share)
    return {name: means[name].value() for name in sorted(means)}


class _Mean:
    """One tensor's mean in the making: sums in float64, and the weight of those who trained each row."""

    def __init__(self, axis: int, tensor: Tensor, share: float) -> None:
        self._axis, self._dtype = axis, tensor.dtype
        self._total = tensor.to(torch.float64, copy=True).mul_(share)
        self._weight = torch.full((tensor.shape[axis],), share, dtype=torch.float64)
        self._n_shared = 0

    def add(self, tensor: Tensor, share: float) -> None:
        """One more worker's."""
        had, rank = len(self._weight), tensor.shape[self._axis]
        both = min(had, rank)
        self._total.narrow(self._axis, 0, both).add_(tensor.narrow(self._axis, 0, both), alpha=share)
        self._weight[:both] += share
        self._n_shared = max(self._n_shared, both)
        if rank > had:
            fresh = _Mean(self._axis, tensor.narrow(self._axis, had, rank - had), share)
            self._total = torch.cat([self._total, fresh._total], dim=self._axis)
            self._weight = torch.cat([self._weight, fresh._weight])

    def value(self) -> Tensor:
        """In the dtype that was sent. A row that one worker trained has its bits, the sign of a zero included."""
        self._total.narrow(self._axis, 0, self._n_shared).add_(0.0)
        shape = [1] * self._total.ndim
        shape[self._axis] = -1
        return self._total.div_(self._weight.reshape(shape)).to(self._dtype)


def _shares(workers: list[str], weights: Mapping[str, float] | None) -> list[float]:
    if weights is None:
        return [1.0] * len(workers)
    for worker in workers:
        weight = weights.get(worker)
        if weight is None or not (math.isfinite(weight) and weight > 0):
            raise ProtocolError(f"average of a node: worker {worker}: expected a positive weight, got {weight}")
    return [float(weights[worker]) for worker in workers]


# --- means that a few cannot pull far ---------------------------------------------------------------------------------


def clip_updates(
    updates: Mapping[str, Tensors], start: Tensors, previous: Tensors, clip: float
) -> Mapping[str, Tensors]:
    """Updates of one node, drawn in where they are far from the others', so that their mean is a robust one.

    See `routing.clipping.draw_in`; the centre is the way from the version before to the start of the round. Where
    nobody is far off, and for a single contributor, they are the updates as they came, and so is every single one that
    is not drawn in itself. Of updates of different rank only the lengths are clipped.

    Args:
        updates: Worker to its tensors; the first so many rows and columns of the node's.
        start: What the round began with, whole.
        previous: The version before that, whole; empty where there is none, or its directions are others.
        clip: In medians over the updates; 0 leaves all as they are.

    Returns:
        The updates in the dtype they came in, made one at a time when asked for.

    Raises:
        ShapeMismatch: Names, dtypes or shapes do not fit each other or the node.
    """
    workers = _contributors(updates)
    if not clip or len(workers) == 1:
        return updates
    ways = _Ways(updates, start)
    still = np.zeros_like(ways.start)
    centre = ways.start - ways.flat(previous) if previous else still
    draw = draw_in(ways, centre, clip)
    if previous and len(ways.shapes) > 1:
        draw = draw_in(ways, still, clip)
    if draw is None:
        return updates
    places = {worker: place for place, worker in enumerate(workers)}
    return Streamed(workers, lambda worker: _drawn(ways, draw, places[worker], updates[worker]))


class _Ways:
    """How far each worker went from the start, one at a time: all tensors in a row, float64."""

    def __init__(self, updates: Mapping[str, Tensors], start: Tensors) -> None:
        first = updates[min(updates)]
        join(start, first)  # refuses what the node has not
        self._updates, self._whole, self._reference = updates, start, _outline(first)
        self._names = sorted(first)
        self.start = self.flat(start)
        self.shapes: set[tuple[tuple[int, ...], ...]] = set()
        """Of the updates that have passed by."""

    def __iter__(self) -> Iterator[np.ndarray]:
        first, *_ = workers = sorted(self._updates)
        for worker in workers:
            state = self._updates[worker]
            _check_names(state, self._reference, worker=worker, first=first)
            self.shapes.add(tuple(tuple(state[name].shape) for name in self._names))
            yield self.of(state)

    def of(self, state: Tensors) -> np.ndarray:
        """From the start to a worker's tensors; none where it trained nothing."""
        way = self.flat(join(self._whole, state))
        way -= self.start
        return way

    def flat(self, state: Tensors) -> np.ndarray:
        """The numbers of the tensors that are trained in this round, one after the other."""
        found = torch.empty(sum(state[name].numel() for name in self._names), dtype=torch.float64)
        sizes = [state[name].numel() for name in self._names]
        for name, place in zip(self._names, found.split(sizes), strict=True):
            place.copy_(state[name].flatten())
        return found.numpy()

    def end(self, way: np.ndarray, like: Tensors) -> Tensors:
        """Where a way leads: the tensors that a worker sent, in their dtypes."""
        parts = torch.from_numpy(self.start + way).split([self._whole[name].numel() for name in self._names])
        whole = {name: part.reshape(self._whole[name].shape) for name, part in zip(self._names, parts, strict=True)}
        return {name: tensor.to(like[name].dtype) for name, tensor in cut(whole, like).items()}


def _drawn(ways: _Ways, draw: Draw, number: int, state: Tensors) -> Tensors:
    return ways.end(draw.of(number, ways.of(state)), state) if draw.changes(number) else state


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


@dataclass
class _Stack:
    """The pairs of several workers on one projection, side by side: their weighted products sum up to `b @ a`."""

    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Each A (layer, rank, in) and weighted B (layer, out, rank), float64."""

    @property
    def a(self) -> Float64[Tensor, "layer stacked in"]:
        """All A, below each other."""
        return torch.cat([a for a, _ in self.pairs], dim=-2)

    @property
    def b(self) -> Float64[Tensor, "layer out stacked"]:
        """All weighted B, beside each other."""
        return torch.cat([b for _, b in self.pairs], dim=-1)

    def push(self, a: Tensor, b: Tensor, share: float) -> None:
        """One more; the first ones become a narrower stack when there are too many."""
        if sum(known.shape[-2] for known, _ in self.pairs) >= MOST_STACKED * a.shape[-2]:
            nearest = factorise(self.a, self.b, MOST_STACKED // 2 * a.shape[-2])
            self.pairs = [(nearest.lora_a, nearest.lora_b)]
        self.pairs.append((a, b * share))

    def squared_norm(self) -> float:
        """Squared Frobenius norm of b a over all layers: tr(bᵀb aaᵀ), so that no (out, in) matrix is ever made."""
        a, b = self.a, self.b
        return float((b.mT @ b * (a @ a.mT)).sum().clamp(min=0))


def _pair(state: Tensors, projection: str) -> tuple[Tensor, Tensor]:
    return state[f"{projection}.lora_A"].double(), state[f"{projection}.lora_B"].double()


def average_products(updates: Mapping[str, Tensors], weights: Mapping[str, float] | None = None) -> Tensors:
    """Factors of the best approximation that the rank allows of the mean of the products B A.

    The two factors share the singular values evenly, and the largest number in each row of A is positive. A direction
    without weight gets a row of A of length 1 and a zero column of B, as a new adapter has: with both zero it could
    never be trained again. A single contributor is passed through bit by bit.

    Pairs are stacked, up to `MOST_STACKED` of them. With more workers the stack is made as narrow as half of that, the
    best approximation again, before the next ones come: what is lost are the singular values beyond four times the
    rank, and at most `MOST_STACKED` pairs are in memory, in float64.

    Args:
        updates: Worker to its pairs `<projection>.lora_A` and `.lora_B`, all of the same shapes.
        weights: Worker to its share, any positive scale; None counts each worker once.

    Raises:
        ShapeMismatch: A worker's tensors differ from the first one's, or are no pairs.
        ProtocolError: No update at all, or a weight is missing, not positive or not finite.

    Source:
        Bai et al. 2024, FlexLoRA, arXiv:2402.11505: mean of products, truncated SVD; by the stacked factors' QR.
    """
    workers = _contributors(updates)
    if len(workers) == 1:
        return dict(updates[workers[0]])
    shares = _shares(workers, weights)
    reference, total = _outline(updates[workers[0]]), math.fsum(shares)
    stacks = {projection: _Stack() for projection in _projections(reference)}
    for worker, share in zip(workers, shares, strict=True):
        state = updates[worker]
        _check_like(state, reference, worker=worker, first=workers[0])
        for projection, stack in stacks.items():
            stack.push(*_pair(state, projection), share / total)
    found: Tensors = {}
    for projection, stack in stacks.items():
        a, b = (reference[f"{projection}.lora_{part}"] for part in "AB")
        mean = factorise(stack.a, stack.b, a.shape[1])
        found |= {f"{projection}.lora_A": mean.lora_a.to(a.dtype), f"{projection}.lora_B": mean.lora_b.to(b.dtype)}
    return found


def mismatch(updates: Mapping[str, Tensors], weights: Mapping[str, float] | None = None) -> tuple[float, float]:
    """Squared norms of mean(B A) - mean(B) mean(A) and of mean(B A), summed over projections and layers.

    The root of their quotient says how far the averaged factors are off the averaged function. It is a number to log,
    and of more than `MOST_COMPARED` workers it is that of the first by name, whose factors are held side by side. The
    difference is the covariance of the factors, mean((B - mean B)(A - mean A)): exactly zero where all workers have one
    of them in common.

    Args:
        updates: Worker to its pairs, all of the same shapes.
        weights: Worker to its share.

    Raises:
        ShapeMismatch: A worker's tensors differ from the first one's, or are no pairs.
        ProtocolError: No update at all, or a weight is missing, not positive or not finite.
    """
    workers = _contributors(updates)[:MOST_COMPARED]
    shares = _shares(workers, weights)
    states = {worker: updates[worker] for worker in workers}
    for worker in workers:
        _check_like(states[worker], states[workers[0]], worker=worker, first=workers[0])
    apart, whole = 0.0, 0.0
    for projection in _projections(states[workers[0]]):
        pairs = [_pair(state, projection) for state in states.values()]
        a, b = _centred([a for a, _ in pairs], shares), _centred([b for _, b in pairs], shares)
        apart += _stacked(zip(a, b, strict=True), shares).squared_norm()
        whole += _stacked(pairs, shares).squared_norm()
    return apart, whole


def _projections(state: Tensors) -> list[str]:
    """Names of the projections, after a look at whether all tensors are pairs."""
    names = sorted(state)
    projections = sorted({name.rpartition(".")[0] for name in names})
    if names != sorted(f"{projection}.lora_{part}" for projection in projections for part in "AB"):
        raise ShapeMismatch(f"products of a node: expected pairs lora_A and lora_B, got {', '.join(names)}")
    return projections


def _stacked(pairs: Iterable[tuple[Tensor, Tensor]], shares: Sequence[float]) -> _Stack:
    total = math.fsum(shares)
    return _Stack([(a, b * (share / total)) for (a, b), share in zip(pairs, shares, strict=True)])


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


def _outline(state: Tensors) -> Tensors:
    """Names, dtypes and shapes without the numbers."""
    return {name: tensor.to("meta") for name, tensor in state.items()}


def _check_prefixes(state: Tensors, reference: Tensors, *, worker: str, first: str) -> None:
    """The same names, and the same shapes in all but the rank, which is one for both factors of a pair."""
    _check_names(state, reference, worker=worker, first=first)
    _check_nests(state, worker=worker)
    for name in sorted(reference):
        rank = min(_rank(name, state[name]), _rank(name, reference[name]))
        rows, expected = (_rows(name, tensor, 0, rank) for tensor in (state[name], reference[name]))
        _check_like({name: rows}, {name: expected}, worker=worker, first=first)


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

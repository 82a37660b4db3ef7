"""Many updates of one node become one: a mean in float64, summed in a fixed order.

Floating-point sums depend on their order. Contributors are therefore sorted by name before anything is added, so that
the same updates give the same bytes whichever of them arrived first. Workers start a round from the same state, which
is what makes the mean of A and the mean of B a fair stand-in for the mean of B A (measured: 3 to 18 % apart after the
first round, under 5 % later); nothing is ever folded into the base.
"""

import math
from collections.abc import Mapping

import torch

from tinylora.errors import ProtocolError, ShapeMismatch
from tinylora.tensors import Tensors


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
    workers = sorted(updates)
    if not workers:
        raise ProtocolError("average of a node: expected at least one update, got none")
    for worker in workers[1:]:
        _check_like(updates[worker], updates[workers[0]], worker=worker, first=workers[0])
    shares = _shares(workers, weights)
    if len(workers) == 1:
        return dict(updates[workers[0]])
    return {name: _mean(name, workers, updates, shares) for name in sorted(updates[workers[0]])}


def _shares(workers: list[str], weights: Mapping[str, float] | None) -> list[float]:
    if weights is None:
        return [1.0] * len(workers)
    for worker in workers:
        weight = weights.get(worker)
        if weight is None or not (math.isfinite(weight) and weight > 0):
            raise ProtocolError(f"average of a node: worker {worker}: expected a positive weight, got {weight}")
    return [float(weights[worker]) for worker in workers]


def _mean(name: str, workers: list[str], updates: Mapping[str, Tensors], shares: list[float]) -> torch.Tensor:
    first = updates[workers[0]][name]
    total = torch.zeros(first.shape, dtype=torch.float64)
    for worker, share in zip(workers, shares, strict=True):
        total += updates[worker][name].to(torch.float64) * share
    return (total / math.fsum(shares)).to(first.dtype)


def _check_like(tensors: Tensors, reference: Tensors, *, worker: str, first: str) -> None:
    strangers = sorted(tensors.keys() ^ reference.keys())
    if strangers:
        side = "lacks" if strangers[0] in reference else "has the unexpected"
        raise ShapeMismatch(f"worker {worker} {side} tensor {strangers[0]}; expected the names of worker {first}")
    for name in sorted(reference):
        expected, got = reference[name], tensors[name]
        if (expected.shape, expected.dtype) != (got.shape, got.dtype):
            raise ShapeMismatch(
                f"tensor {name} of worker {worker}: expected {_describe(expected)} as from worker {first}, "
                f"got {_describe(got)}; both must train the node at the rank of the run"
            )


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"

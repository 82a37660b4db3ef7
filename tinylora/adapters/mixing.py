"""Many adapters become one: exactly, by laying their ranks side by side, or nearly, at a rank that one can afford.

All functions take plain LoRA states (`<projection>.lora_A` (n_layers, rank, in), `.lora_B` (n_layers, out, rank)),
compute in float64, and give float32. The updates B A themselves, out x in, are never formed.

| function         | gives                                        | rank                |
| ---------------- | -------------------------------------------- | ------------------- |
| `concatenate`    | Σ weight_i · B_i A_i, exactly                | the sum of all      |
| `uniform_merge`  | their mean, exactly                          | the sum of all      |
| `compress`       | the nearest update of a lower rank           | as asked            |

The mean of the factors, (mean B)(mean A), is another thing, and no mean of functions: see `aggregation.mismatch`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from tinylora.errors import SettingError, ShapeMismatch
from tinylora.tensors import Tensors

_EMPTY = 1e-12
"""Singular values below this share of the largest are rounding errors."""


@dataclass(frozen=True)
class Compressed:
    """An adapter of lower rank, and what was lost on the way."""

    state: Tensors
    relative_error: float
    """Frobenius norm of the lost part of all updates together over that of all updates; 0 where there was none."""


@dataclass(frozen=True)
class Factorised:
    """The best approximation of the updates of one projection, layer by layer."""

    lora_a: Float64[Tensor, "layer rank in"]
    lora_b: Float64[Tensor, "layer out rank"]
    lost: float
    """Squared Frobenius norm of what is missing, over all layers."""
    whole: float
    """Squared Frobenius norm of the updates."""


def concatenate(states: Sequence[Tensors], weights: Sequence[float] | None = None) -> Tensors:
    """One adapter whose update is the weighted sum of all: n adapters of rank k make one of rank n · k.

    The weights go into B.

    Args:
        states: Adapters of the same projections; their ranks may differ.
        weights: One for each; None is 1 each.

    Raises:
        SettingError: No adapter at all, or another number of weights, or one that is not finite.
        ShapeMismatch: Two adapters are not for the same linears, or one is no plain LoRA.
    """
    shares = [1.0] * len(states) if weights is None else [float(weight) for weight in weights]
    if not states or len(shares) != len(states) or not all(map(math.isfinite, shares)):
        raise SettingError(f"adapters to mix: expected a finite weight for each, got {shares} for {len(states)}")
    joined: Tensors = {}
    for projection in _projections(states):
        lora_a = [state[f"{projection}.lora_A"].double() for state in states]
        lora_b = [state[f"{projection}.lora_B"].double() * share for state, share in zip(states, shares, strict=True)]
        joined[f"{projection}.lora_A"] = torch.cat(lora_a, dim=1).float()
        joined[f"{projection}.lora_B"] = torch.cat(lora_b, dim=2).float()
    return joined


def uniform_merge(states: Sequence[Tensors]) -> Tensors:
    """One adapter whose update is the mean of all, exactly: their concatenation with weight 1 / n.

    Raises:
        SettingError: No adapter.
        ShapeMismatch: Two adapters are not for the same linears, or one is no plain LoRA.
    """
    return concatenate(states, [1 / max(1, len(states))] * len(states))


def compress(state: Tensors, rank: int) -> Compressed:
    """The nearest adapter of at most this rank, each layer of each projection on its own; see `factorise`.

    Raises:
        SettingError: The rank is below 1.
        ShapeMismatch: It is no plain LoRA.
    """
    if rank < 1:
        raise SettingError(f"rank {rank}: expected at least 1")
    found, lost, whole = dict[str, Tensor](), 0.0, 0.0
    for projection in _projections([state]):
        lora_a, lora_b = (state[f"{projection}.lora_{part}"].double() for part in "AB")
        nearest = factorise(lora_a, lora_b, min(rank, lora_a.shape[1]))
        found[f"{projection}.lora_A"], found[f"{projection}.lora_B"] = nearest.lora_a.float(), nearest.lora_b.float()
        lost, whole = lost + nearest.lost, whole + nearest.whole
    return Compressed(found, math.sqrt(lost / whole) if whole else 0.0)


def factorise(
    lora_a: Float64[Tensor, "layer wide in"], lora_b: Float64[Tensor, "layer out wide"], rank: int
) -> Factorised:
    """Factors of the best approximation of rank `rank` to each layer's B A, in the Frobenius norm.

    QR of B and of A transposed leave a core of wide x wide numbers, and the SVD of that is the SVD of B A. The factors
    share the singular values evenly, and the largest number in each row of A is positive, so equal input gives equal
    factors. A direction without weight gets a row of A of length 1 and a zero column of B, as a new adapter has: with
    both zero it could never be trained again.

    Source:
        Bai et al. 2024, FlexLoRA, arXiv:2402.11505, section 3, for the truncated SVD; Eckart and Young 1936 for why.
    """
    left, core_left = torch.linalg.qr(lora_b)
    right, core_right = torch.linalg.qr(lora_a.mT)
    u, s, vt = torch.linalg.svd(core_left @ core_right.mT, full_matrices=False)
    squares = s.square()
    u, s, vt = u[..., :rank], s[..., :rank], vt[..., :rank, :]
    is_empty = s <= s[..., :1] * _EMPTY
    root = s.sqrt()
    b = (left @ u) * root.masked_fill(is_empty, 0.0).unsqueeze(-2)
    a = (vt @ right.mT) * root.masked_fill(is_empty, 1.0).unsqueeze(-1)
    largest = a.gather(-1, a.abs().argmax(dim=-1, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0).to(a.dtype)
    return Factorised(
        lora_a=_padded(a * signs, rank, -2),
        lora_b=_padded(b * signs.mT, rank, -1),
        lost=float(squares[..., rank:].sum()),
        whole=float(squares.sum()),
    )


def _padded(factor: Tensor, rank: int, axis: int) -> Tensor:
    """With rows of zeros up to `rank`, which is larger only where the projection is narrower than that."""
    missing = list(factor.shape)
    missing[axis] = rank - factor.shape[axis]
    return torch.cat([factor, factor.new_zeros(missing)], dim=axis)


def _projections(states: Sequence[Tensors]) -> list[str]:
    """Names of the projections, after a look at whether all states are plain LoRAs for the same linears."""
    names = sorted(states[0])
    projections = sorted({name.rpartition(".")[0] for name in names})
    if names != sorted(f"{projection}.lora_{part}" for projection in projections for part in "AB"):
        raise ShapeMismatch(f"adapters to mix: expected pairs lora_A and lora_B, got {', '.join(names)}")
    first = {projection: _linear(states[0], projection) for projection in projections}
    for state in states[1:]:
        if sorted(state) != names:
            raise ShapeMismatch(f"adapters to mix: expected {', '.join(names)}, got {', '.join(sorted(state))}")
        for projection in projections:
            if _linear(state, projection) != first[projection]:
                reason = f"expected (layers, in, out) {first[projection]}, got {_linear(state, projection)}"
                raise ShapeMismatch(f"adapters to mix, {projection}: {reason}")
    return projections


def _linear(state: Tensors, projection: str) -> tuple[int, int, int]:
    """Layers, in and out of what a pair is for."""
    a, b = (tuple(state[f"{projection}.lora_{part}"].shape) for part in "AB")
    if len(a) != 3 or len(b) != 3 or (a[0], a[1]) != (b[0], b[2]):
        raise ShapeMismatch(f"adapters to mix, {projection}: A {a} and B {b} are no pair stacked over layers")
    return a[0], a[2], b[1]

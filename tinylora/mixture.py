"""Many adapters in one batch: `leaf_lora` adds to a linear's output what each token's nodes contribute.

    y = base(x) + scale · Σ over nodes n of  weight_n(token) · B_n A_n x

A `Routing` is made once per forward pass and shared by all linears. Two implementations of the same sum: `reference`, a
loop over nodes that is slow and obvious (the oracle of the tests), and `soft`, one wide GEMM down, the weights, one
wide GEMM up. Where the same nodes take every token, no weights are multiplied at all: the cost is that of one plain
LoRA of their ranks together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from tinylora.errors import ShapeMismatch

Impl: TypeAlias = Literal["auto", "reference", "soft"]


@dataclass(frozen=True)
class Routing:
    """How much each node contributes at each token of a batch."""

    weights: Float[Tensor, "batch token node"] | None
    """None: the nodes numbered `nodes` take every token with weight 1, so that their updates add up."""
    nodes: tuple[int, ...] = (0,)
    """Which nodes those are, such as a leaf and its ancestors; without meaning where `weights` are given."""


def leaf_lora(
    x: Float[Tensor, "*rows in"],
    base_out: Float[Tensor, "*rows out"],
    lora_a: Sequence[Float[Tensor, "rank in"]],
    lora_b: Sequence[Float[Tensor, "out rank"]],
    routing: Routing,
    scale: float,
    impl: Impl = "auto",
) -> Float[Tensor, "*rows out"]:
    """The base's output plus the low-rank update of every node, each weighted per token.

    A new tensor; `base_out` is left as it was. The sum is taken in the dtype of `x`, whatever dtype the adapters are
    kept in, so fp32 adapters train on a bf16 base. With all B zero the result is `base_out` bit by bit.

    Args:
        x: Input of the linear. Blocks that fold batch and token into one axis are fine.
        base_out: What the frozen linear made of `x`.
        lora_a: Down-projections, node by node; all of one rank.
        lora_b: Up-projections, likewise.
        routing: Which nodes, and how much.
        scale: alpha / rank, dimensionless.
        impl: "auto" is "soft"; "reference" is for tests.

    Raises:
        ShapeMismatch: `x` holds another number of tokens than `routing`, so its rows cannot be told apart.

    Source:
        Hu et al. 2021, arXiv:2106.09685, section 4.1, equation 3.
    """
    nodes = routing.nodes if routing.weights is None else range(len(lora_a))
    chosen_a, chosen_b = [lora_a[node] for node in nodes], [lora_b[node] for node in nodes]
    weights = None if routing.weights is None else _rows_of(routing.weights.to(x.dtype), x)
    mix = _reference if impl == "reference" else _soft
    return mix(x, base_out, chosen_a, chosen_b, weights, scale)


def _reference(
    x: Tensor, base_out: Tensor, lora_a: list[Tensor], lora_b: list[Tensor], weights: Tensor | None, scale: float
) -> Tensor:
    out = base_out
    for node, (down, up) in enumerate(zip(lora_a, lora_b, strict=True)):
        share = 1.0 if weights is None else weights[..., node, None]
        out = out + share * scale * F.linear(F.linear(x, down.to(x.dtype)), up.to(x.dtype))
    return out


def _soft(
    x: Tensor, base_out: Tensor, lora_a: list[Tensor], lora_b: list[Tensor], weights: Tensor | None, scale: float
) -> Tensor:
    down, up = (lora_a[0], lora_b[0]) if len(lora_a) == 1 else (torch.cat(lora_a), torch.cat(lora_b, dim=1))
    hidden, up = F.linear(x, down.to(x.dtype)), up.to(x.dtype)
    if weights is not None:
        hidden = (hidden.unflatten(-1, (len(lora_a), -1)) * weights.unsqueeze(-1)).flatten(-2)
    # base_out + scale · hidden @ up in one GEMM, which spares the product a tensor of its own
    flat = torch.addmm(base_out.flatten(0, -2), hidden.flatten(0, -2), up.t(), alpha=scale)
    return flat.view(base_out.shape)


def _rows_of(weights: Tensor, x: Tensor) -> Tensor:
    n_rows, n_tokens = x.shape[:-1].numel(), weights.shape[:-1].numel()
    if n_rows != n_tokens:
        raise ShapeMismatch(
            f"adapter input: expected {n_tokens} tokens as in the routing, got {n_rows}; this base hands some of its "
            "tokens alone to a linear, as experts do, and routing cannot tell which: use one node, without a router"
        )
    return weights.reshape(*x.shape[:-1], weights.shape[-1])

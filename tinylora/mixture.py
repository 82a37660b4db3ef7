"""Many adapters in one batch: `leaf_lora` adds to a linear's output what each token's nodes contribute.

    y = base(x) + scale · Σ over nodes n of  weight_n(token) · B_n A_n x

A `Routing` is made once per forward pass and shared by all linears. Two implementations of the same sum: `reference`, a
loop over nodes that is slow and obvious (the oracle of the tests), and `soft`, one wide GEMM down, the weights, one
wide GEMM up. Where a single node takes every token, no weights are multiplied at all, and the cost is that of one plain
LoRA.
"""

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
    """None: the node number `node` takes every token with weight 1."""
    node: int = 0
    """Which of the stacked nodes that is; without meaning where `weights` are given."""


def leaf_lora(
    x: Float[Tensor, "*rows in"],
    base_out: Float[Tensor, "*rows out"],
    lora_a: Float[Tensor, "node rank in"],
    lora_b: Float[Tensor, "node out rank"],
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
        lora_a: Down-projections, stacked.
        lora_b: Up-projections, stacked.
        routing: Which nodes, and how much.
        scale: alpha / rank, dimensionless.
        impl: "auto" is "soft"; "reference" is for tests.

    Raises:
        ShapeMismatch: `x` holds another number of tokens than `routing`, so its rows cannot be told apart.

    Source:
        Hu et al. 2021, arXiv:2106.09685, section 4.1, equation 3.
    """
    lora_a, lora_b = lora_a.to(x.dtype), lora_b.to(x.dtype)
    if routing.weights is None:
        lora_a, lora_b = lora_a[routing.node], lora_b[routing.node]
        if impl == "reference":
            return base_out + scale * F.linear(F.linear(x, lora_a), lora_b)
        return _add_product(base_out, F.linear(x, lora_a), lora_b.t(), scale)
    weights = _rows_of(routing.weights.to(x.dtype), x)
    mix = _reference if impl == "reference" else _soft
    return mix(x, base_out, lora_a, lora_b, weights, scale)


def _reference(x: Tensor, base_out: Tensor, lora_a: Tensor, lora_b: Tensor, weights: Tensor, scale: float) -> Tensor:
    out = base_out
    for node in range(len(lora_a)):
        out = out + weights[..., node, None] * scale * F.linear(F.linear(x, lora_a[node]), lora_b[node])
    return out


def _soft(x: Tensor, base_out: Tensor, lora_a: Tensor, lora_b: Tensor, weights: Tensor, scale: float) -> Tensor:
    n_nodes, rank, n_in = lora_a.shape
    hidden = F.linear(x, lora_a.reshape(n_nodes * rank, n_in)).unflatten(-1, (n_nodes, rank))
    weighted = (hidden * weights.unsqueeze(-1)).flatten(-2)
    return _add_product(base_out, weighted, lora_b.transpose(1, 2).reshape(n_nodes * rank, -1), scale)


def _add_product(base_out: Tensor, hidden: Tensor, up: Tensor, scale: float) -> Tensor:
    """base_out + scale · hidden @ up in one GEMM, which spares the product a tensor of its own."""
    flat = torch.addmm(base_out.flatten(0, -2), hidden.flatten(0, -2), up, alpha=scale)
    return flat.view(base_out.shape)


def _rows_of(weights: Tensor, x: Tensor) -> Tensor:
    n_rows, n_tokens = x.shape[:-1].numel(), weights.shape[:-1].numel()
    if n_rows != n_tokens:
        raise ShapeMismatch(
            f"adapter input: expected {n_tokens} tokens as in the routing, got {n_rows}; this base hands some of its "
            "tokens alone to a linear, as experts do, and routing cannot tell which: use one node, without a router"
        )
    return weights.reshape(*x.shape[:-1], weights.shape[-1])

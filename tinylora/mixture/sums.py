"""`leaf_lora`: the base's output plus what each token's nodes add, whatever the routing."""

from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from tinylora.errors import ShapeMismatch
from tinylora.mixture.batched import add_rows, batched_lora
from tinylora.mixture.grouped import grouped_lora
from tinylora.mixture.routing import ByRow, ByToken, Fixed, Routing
from tinylora.mixture.thresholds import wide_rank

Impl: TypeAlias = Literal["auto", "reference", "torch"]


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
        lora_a: Down-projections of all nodes.
        lora_b: Up-projections, likewise.
        routing: Which nodes, and how much.
        scale: alpha / rank, dimensionless.
        impl: "auto" takes the fastest for device and dtype, which is "torch" so far; "reference" is for tests.

    Raises:
        ShapeMismatch: `x` holds another number of tokens than `routing`, so its rows cannot be told apart.

    Source:
        Hu et al. 2021, arXiv:2106.09685, section 4.1, equation 3.
    """
    if lora_a.dtype != x.dtype or lora_b.dtype != x.dtype:
        lora_a, lora_b = lora_a.to(x.dtype), lora_b.to(x.dtype)
    if impl == "reference":
        return _reference(x, base_out, lora_a, lora_b, routing, scale)
    if isinstance(routing, Fixed):
        return add_all(x, base_out, *_chosen(lora_a, lora_b, routing.nodes), scale)
    n_wide = lora_a.shape[0] * lora_a.shape[1]
    if isinstance(routing, ByRow):
        return _by_row(x, base_out, lora_a, lora_b, routing, scale)
    if isinstance(routing, ByToken) and n_wide > wide_rank(x.device) * routing.nodes.shape[-1]:
        return _by_token(x, base_out, lora_a, lora_b, routing, scale)
    return _wide(x, base_out, lora_a, lora_b, routing, scale)


def add_own(
    x: Float[Tensor, "*rows in"],
    base_out: Float[Tensor, "*rows out"],
    down: Float[Tensor, "row entries in"],
    up: Float[Tensor, "row out entries"],
    routing: ByRow,
    scale: float,
) -> Float[Tensor, "*rows out"]:
    """`leaf_lora` of rows whose adapters were gathered before, see `batched.rows_of`; without gradients.

    Raises:
        ShapeMismatch: As there.
    """
    n_rows = len(down)
    _check_tokens(x, n_rows * routing.n_tokens)
    gates = None if routing.gates is None else routing.gates.to(x.dtype)
    sizes = (n_rows, routing.n_tokens, -1)
    return add_rows(x.reshape(sizes), base_out.reshape(sizes), down, up, gates, scale).view(base_out.shape)


def add_all(
    x: Float[Tensor, "*rows in"],
    base_out: Float[Tensor, "*rows out"],
    lora_a: Float[Tensor, "node rank in"],
    lora_b: Float[Tensor, "node out rank"],
    scale: float,
) -> Float[Tensor, "*rows out"]:
    """The base's output plus the updates of all nodes, at the cost of one plain LoRA of their ranks together."""
    hidden = F.linear(x, lora_a.flatten(0, 1))
    return _add(base_out, hidden, _up(lora_b), scale)


def _chosen(lora_a: Tensor, lora_b: Tensor, nodes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The stacks of some nodes: slices where they lie side by side, else copies."""
    if nodes == tuple(range(nodes[0], nodes[-1] + 1)):
        return lora_a[nodes[0] : nodes[-1] + 1], lora_b[nodes[0] : nodes[-1] + 1]
    return torch.stack([lora_a[node] for node in nodes]), torch.stack([lora_b[node] for node in nodes])


def _reference(x: Tensor, base_out: Tensor, lora_a: Tensor, lora_b: Tensor, routing: Routing, scale: float) -> Tensor:
    """Node by node, each token by its weight."""
    out = base_out
    weights = None if isinstance(routing, Fixed) else _as_rows(routing.dense().to(x.dtype), x)
    for node in routing.nodes if isinstance(routing, Fixed) else range(len(lora_a)):
        share = 1.0 if weights is None else weights[..., node, None]
        out = out + share * scale * F.linear(F.linear(x, lora_a[node]), lora_b[node])
    return out


def _wide(x: Tensor, base_out: Tensor, lora_a: Tensor, lora_b: Tensor, routing: Any, scale: float) -> Tensor:
    """All nodes at once: one wide product down, the weights, one wide product up."""
    weights = _as_rows(routing.dense().to(x.dtype), x)
    hidden = F.linear(x, lora_a.flatten(0, 1))
    hidden = (hidden.unflatten(-1, lora_a.shape[:2]) * weights.unsqueeze(-1)).flatten(-2)
    return _add(base_out, hidden, _up(lora_b), scale)


def _up(lora_b: Tensor) -> Tensor:
    """All nodes' B side by side, transposed: (node · rank, out)."""
    return lora_b[0].t() if len(lora_b) == 1 else lora_b.mT.flatten(0, 1)


def _add(base_out: Tensor, hidden: Tensor, up: Tensor, scale: float) -> Tensor:
    """base_out + scale · hidden @ up in one GEMM, which spares the product a tensor of its own."""
    return torch.addmm(base_out.flatten(0, -2), hidden.flatten(0, -2), up, alpha=scale).view(base_out.shape)


def _by_row(x: Tensor, base_out: Tensor, lora_a: Tensor, lora_b: Tensor, routing: ByRow, scale: float) -> Tensor:
    """Each row with the matrices of its own nodes."""
    n_rows = len(routing.nodes)
    _check_tokens(x, n_rows * routing.n_tokens)
    gates = None if routing.gates is None else routing.gates.to(x.dtype)
    sizes = (n_rows, routing.n_tokens, -1)
    out = batched_lora(x.reshape(sizes), base_out.reshape(sizes), lora_a, lora_b, gates, routing.nodes, scale)
    return out.view(base_out.shape)


def _by_token(x: Tensor, base_out: Tensor, lora_a: Tensor, lora_b: Tensor, routing: ByToken, scale: float) -> Tensor:
    """Tokens sorted by node, and each node's with its own matrices."""
    _check_tokens(x, routing.nodes.shape[:-1].numel())
    gates = None if routing.gates is None else routing.gates.to(x.dtype).flatten()
    flat, rows = x.flatten(0, -2), base_out.flatten(0, -2)
    out = grouped_lora(flat, rows, lora_a, lora_b, gates, routing.gathered(x), routing.order, scale)
    return out.view(base_out.shape)


def _as_rows(weights: Tensor, x: Tensor) -> Tensor:
    _check_tokens(x, weights.shape[:-1].numel())
    return weights.reshape(*x.shape[:-1], weights.shape[-1])


def _check_tokens(x: Tensor, n_tokens: int) -> None:
    n_rows = x.shape[:-1].numel()
    if n_rows != n_tokens:
        raise ShapeMismatch(
            f"adapter input: expected {n_tokens} tokens as in the routing, got {n_rows}; this base hands some of its "
            "tokens alone to a linear, as experts do, and routing cannot tell which: use one node, without a router"
        )

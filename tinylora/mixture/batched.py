"""Each row of a batch with the matrices of its own nodes: two batched products."""

from typing import Any

import torch
from torch import Tensor


class BatchedLora(torch.autograd.Function):
    """base_out + scale · Σ gate · B A x over each row's list.

    The matrices are gathered again on the way back: kept, they would be an adapter for every row of the batch.
    """

    @staticmethod
    def forward(
        ctx: Any,
        base_out: Tensor,
        x: Tensor,
        lora_a: Tensor,
        lora_b: Tensor,
        gates: Tensor | None,
        nodes: Tensor,
        scale: float,
    ) -> Tensor:
        """`base_out` (row, token, out), `x` (row, token, in), stacks, gates (row, token or 1, width), nodes (entry)."""
        hidden = torch.bmm(x, _down(lora_a, nodes, len(x)).mT)
        ctx.save_for_backward(x, hidden, lora_a, lora_b, gates, nodes)
        ctx.scale = scale
        return torch.baddbmm(base_out, _gated(hidden, gates), _up(lora_b, nodes, len(x)).mT, alpha=scale)

    # torch's stub names the context otherwise and takes any gradients; these are tensors.
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Gradients of base_out, x, A, B and gates."""
        x, hidden, lora_a, lora_b, gates, nodes = ctx.saved_tensors
        gradient, needs, n_rows = gradients[0], ctx.needs_input_grad, len(x)
        through = torch.bmm(gradient, _up(lora_b, nodes, n_rows)).mul_(ctx.scale)
        of_a = of_b = of_x = of_gates = None
        if needs[3]:
            of_rows = torch.bmm(gradient.mT, _gated(hidden, gates) * ctx.scale)
            of_rows = of_rows.unflatten(2, (-1, lora_b.shape[2])).transpose(1, 2).flatten(0, 1)
            of_b = torch.zeros_like(lora_b).index_add_(0, nodes, of_rows)
        if needs[4]:
            of_gates = (through * hidden).unflatten(2, (gates.shape[2], -1)).sum(dim=-1).sum_to_size(gates.shape)
        through = _gated(through, gates)
        if needs[2]:
            of_rows = torch.bmm(through.mT, x).unflatten(1, (-1, lora_a.shape[1])).flatten(0, 1)
            of_a = torch.zeros_like(lora_a).index_add_(0, nodes, of_rows)
        if needs[1]:
            of_x = torch.bmm(through, _down(lora_a, nodes, n_rows))
        return gradient, of_x, of_a, of_b, of_gates, None, None


def batched_lora(
    x: Tensor, base_out: Tensor, lora_a: Tensor, lora_b: Tensor, gates: Tensor | None, nodes: Tensor, scale: float
) -> Tensor:
    """`BatchedLora`; one token of each row with several nodes is a sum over them.

    Args:
        x: (row, token, in).
        base_out: (row, token, out).
        lora_a: (node, rank, in).
        lora_b: (node, out, rank).
        gates: (row, token or 1, width) in the dtype of `x`, or None for 1.
        nodes: (row, width).
        scale: alpha / rank.
    """
    n_rows, width = nodes.shape
    flat = nodes.flatten()
    if torch.is_grad_enabled():
        return BatchedLora.apply(base_out, x, lora_a, lora_b, gates, flat, scale)
    hidden = _gated(torch.bmm(x, _down(lora_a, flat, n_rows).mT), gates)
    if width == 1 or x.shape[1] > 1:
        return torch.baddbmm(base_out, hidden, _up(lora_b, flat, n_rows).mT, alpha=scale)
    # One token: a sum over the list is less than laying its B side by side.
    added = torch.bmm(hidden.view(n_rows * width, 1, -1), lora_b.index_select(0, flat).mT)
    return torch.add(base_out, added.view(n_rows, width, -1).sum(dim=1, keepdim=True), alpha=scale)


def rows_of(lora_a: Tensor, lora_b: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """A and B of each row's list `nodes` (row, width): (row, width · rank, in) and (row, out, width · rank)."""
    flat = nodes.flatten()
    return _down(lora_a, flat, len(nodes)), _up(lora_b, flat, len(nodes))


def add_rows(x: Tensor, base_out: Tensor, down: Tensor, up: Tensor, gates: Tensor | None, scale: float) -> Tensor:
    """`batched_lora` with what `rows_of` gives, without gradients."""
    return torch.baddbmm(base_out, _gated(torch.bmm(x, down.mT), gates), up.mT, alpha=scale)


def _down(lora_a: Tensor, nodes: Tensor, n_rows: int) -> Tensor:
    """A of each row's nodes, one below the other: (row, width · rank, in)."""
    return lora_a.index_select(0, nodes).view(n_rows, -1, lora_a.shape[2])


def _up(lora_b: Tensor, nodes: Tensor, n_rows: int) -> Tensor:
    """B of each row's nodes, side by side: (row, out, width · rank)."""
    up = lora_b.index_select(0, nodes)
    return up if len(nodes) == n_rows else up.unflatten(0, (n_rows, -1)).transpose(1, 2).flatten(2)


def _gated(hidden: Tensor, gates: Tensor | None) -> Tensor:
    if gates is None:
        return hidden
    return (hidden.unflatten(2, (gates.shape[2], -1)) * gates.unsqueeze(-1)).flatten(2)

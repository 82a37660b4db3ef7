"""Products of sorted rows, each with the matrix of its own node, and the sum over a token's nodes made of them.

`torch.nn.functional.grouped_mm` does all nodes in one call where it can; elsewhere (float64, GPUs before SM80, other
dtypes than bf16 on a GPU, widths that are no multiple of 16 bytes) a loop over the nodes does. That loop asks a GPU for
numbers, once per pass; ranks are filled up with zeros.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tinylora.mixture.routing import Order

HALVES = (torch.bfloat16, torch.float16)
_ALIGNED_BYTES = 16


def can_group(dtype: torch.dtype, device: torch.device, *widths: int) -> bool:
    """Whether `grouped_mm` takes matrices of these widths there."""
    if any(width % aligned(dtype) for width in widths):
        return False
    if device.type == "cpu":
        return dtype in (torch.float32, *HALVES)
    return device.type == "cuda" and dtype == torch.bfloat16 and _capability(device.index) >= (8, 0)


def aligned(dtype: torch.dtype) -> int:
    """Numbers that strides must be a multiple of: 4 in fp32, 8 in half precision."""
    return _ALIGNED_BYTES // dtype.itemsize


@cache
def _capability(index: int | None) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def grouped(rows: Tensor, matrices: Tensor, order: Order, is_grouped: bool) -> Tensor:
    """(entry, k) times (node, k, n): (entry, n)."""
    if is_grouped:
        return F.grouped_mm(rows, matrices, offs=order.ends)
    parts = [rows[start:end] @ matrix for (start, end), matrix in zip(order.bounds, matrices, strict=True)]
    return torch.cat(parts)


def grouped_outer(left: Tensor, right: Tensor, order: Order, is_grouped: bool) -> Tensor:
    """(entry, m) and (entry, n) to (node, m, n), summed over each node's entries."""
    if is_grouped:
        return F.grouped_mm(left.t(), right, offs=order.ends)
    return torch.stack([left[start:end].t() @ right[start:end] for start, end in order.bounds])


def to_tokens(entries: Tensor, order: Order) -> Tensor:
    """Entries in their order to tokens, summed over a token's list; always new memory."""
    rows = entries.index_select(0, order.place)
    return rows if order.width == 1 else rows.unflatten(0, (-1, order.width)).sum(dim=1)


class GroupedLora(torch.autograd.Function):
    """base_out + scale · Σ gate · B A x over each token's list.

    It keeps the gathered rows, of which there is one copy for all linears of an input, and the hidden ones. `base_out`
    is the first argument and left as it is: its gradient is the incoming one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        base_out: Tensor,
        x: Tensor,
        lora_a: Tensor,
        lora_b: Tensor,
        gates: Tensor | None,
        gathered: Tensor,
        order: Order,
        scale: float,
    ) -> Tensor:
        """`base_out` (token, out), `x` (token, in), stacks, gates (token · width), `gathered` (entry, in)."""
        is_grouped = can_group(x.dtype, x.device, *lora_a.shape[1:], lora_b.shape[1])
        hidden = grouped(gathered, lora_a.mT, order, is_grouped)
        factor = scale if gates is None else (gates.index_select(0, order.entry) * scale).unsqueeze(1)
        ctx.save_for_backward(gathered, hidden, lora_a, lora_b, None if gates is None else factor)
        ctx.order, ctx.scale, ctx.is_grouped = order, scale, is_grouped
        return to_tokens(grouped(hidden * factor, lora_b.mT, order, is_grouped), order).add_(base_out)

    # torch's stub names the context otherwise and takes any gradients; these are tensors.
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Gradients of base_out, x, A, B and gates."""
        (gradient,) = gradients
        gathered, hidden, lora_a, lora_b, gates = ctx.saved_tensors
        order, is_grouped, needs = ctx.order, ctx.is_grouped, ctx.needs_input_grad
        factor = ctx.scale if gates is None else gates
        rows = gradient.index_select(0, order.token)
        through = grouped(rows, lora_b, order, is_grouped)
        of_b = grouped_outer(rows, hidden * factor, order, is_grouped) if needs[3] else None
        of_gates = None
        if needs[4]:
            of_gates = ((through * hidden).sum(dim=1) * ctx.scale).index_select(0, order.place)
        through = through * factor
        of_a = grouped_outer(through, gathered, order, is_grouped) if needs[2] else None
        of_x = to_tokens(grouped(through, lora_a, order, is_grouped), order) if needs[1] else None
        return gradient, of_x, of_a, of_b, of_gates, None, None, None


def grouped_lora(
    x: Tensor, base_out: Tensor, lora_a: Tensor, lora_b: Tensor, gates: Tensor | None, gathered: Tensor, order: Order,
    scale: float,
) -> Tensor:  # fmt: skip
    """`GroupedLora` on flat rows, with ranks filled up to what `grouped_mm` takes."""
    missing = -lora_a.shape[1] % aligned(x.dtype)
    if missing:
        lora_a, lora_b = F.pad(lora_a, (0, 0, 0, missing)), F.pad(lora_b, (0, missing))
    return GroupedLora.apply(base_out, x, lora_a, lora_b, gates, gathered, order, scale)

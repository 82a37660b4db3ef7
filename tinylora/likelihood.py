"""Next-token likelihood under a frozen head: which tokens are predicted, and their negative log-likelihood in nats."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IGNORED_LABEL = -100
"""Where nothing is to be predicted."""


def targets_of(labels: Tensor, mask: Tensor | None, is_target: Tensor | None = None) -> Tensor:
    """What is predicted at each place but the last: the next label, nothing from padding and nothing of it."""
    found = labels[:, 1:]
    if is_target is not None:
        found = found.masked_fill(~is_target[:, 1:], IGNORED_LABEL)
    if mask is None:
        return found
    is_real = mask.bool()
    return found.masked_fill(~(is_real[:, 1:] & is_real[:, :-1]), IGNORED_LABEL)


def nll(logits: Tensor, targets: Tensor, reduction: str) -> Tensor:
    """Cross entropy in at least single precision."""
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(exact, targets, ignore_index=IGNORED_LABEL, reduction=reduction)


def summed_nll(rows: Tensor, targets: Tensor, head: nn.Module, chunk_rows: int) -> Tensor:
    """Summed cross entropy of hidden rows under a head, at most `chunk_rows` rows of logits in memory at a time."""
    # torch's stub says that `apply` may return anything
    return _ChunkedNll.apply(rows, targets, head, chunk_rows)  # pyright: ignore[reportReturnType]


class _ChunkedNll(torch.autograd.Function):
    """Summed cross entropy under a frozen head, a few rows of logits at a time.

    The head has no gradient, so that of the rows can be taken chunk by chunk on the way forward, and the logits of a
    long batch over a large vocabulary are never in memory together.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, targets: Tensor, head: nn.Module, chunk_rows: int) -> Tensor:
        gradient = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        total = rows.new_zeros((), dtype=torch.promote_types(rows.dtype, torch.float32))
        for start in range(0, len(rows), chunk_rows):
            here = slice(start, start + chunk_rows)
            with torch.set_grad_enabled(gradient is not None):
                chunk = rows[here].detach().requires_grad_(gradient is not None)
                loss = nll(head(chunk), targets[here], "sum")
            if gradient is not None:
                (gradient[here],) = torch.autograd.grad(loss, chunk)
            total += loss.detach()
        ctx.gradient = gradient
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.gradient * grad_outputs[0], None, None, None

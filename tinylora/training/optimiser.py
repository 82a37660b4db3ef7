"""The learning-rate schedule, AdamW with moments that survive between units, and the step loop.

Nothing here knows what a work unit is: parameters, batches and a loss come in, losses go out.
"""

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

BETAS = (0.9, 0.95)  # units are short: with 0.999 the second moment would still be warming up when a leaf is done
FINAL_SHARE = 0.1
MAX_GRADIENT_NORM = 1.0

Moments: TypeAlias = dict[str, Any]
"""AdamW's state, detached from any optimiser object."""


@dataclass(frozen=True)
class Schedule:
    """Learning rate by the node's own step count, so that it does not depend on how steps are cut into units."""

    peak: float
    warmup_steps: int
    total_steps: int

    def at(self, step: int) -> float:
        """Learning rate of step `step` (from 0): a linear rise, then a cosine down to a tenth of the peak, then that.

        The rise never takes more than a quarter of all steps: a short run would otherwise end before it has begun.
        """
        warmup = min(self.warmup_steps, self.total_steps // 4)
        if step < warmup:
            return self.peak * (step + 1) / (warmup + 1)
        share = min(1.0, (step - warmup) / max(1, self.total_steps - warmup))
        return self.peak * (FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * share)))


class Optimiser:
    """AdamW without decay over a fixed list of parameters, gradients clipped to norm 1."""

    def __init__(self, parameters: Iterable[Tensor], schedule: Schedule, moments: Moments | None = None) -> None:
        self.parameters = list(parameters)
        self.schedule = schedule
        self._adamw = torch.optim.AdamW(self.parameters, lr=schedule.peak, betas=BETAS, weight_decay=0.0, fused=True)
        if moments is not None:
            self._adamw.load_state_dict(copy.deepcopy(moments))  # load_state_dict keeps references to what it is given

    def step(self, loss: Tensor, step: int) -> None:
        """Take one step down `loss`, the node's `step`-th."""
        for group in self._adamw.param_groups:
            group["lr"] = self.schedule.at(step)
        self._adamw.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT_NORM)
        self._adamw.step()

    def moments(self) -> Moments:
        """A copy of AdamW's state, to go on from in a later unit."""
        return copy.deepcopy(self._adamw.state_dict())


LossOf: TypeAlias = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""Token ids, document numbers and the index of the step within its unit, to what is minimised, and the nll in it."""
OnStep: TypeAlias = Callable[[str, int, float, float], None]
"""Hears about every optimiser step: node, the node's own step count from 0, nats per token, tokens per second."""


def take_steps(
    optimiser: Optimiser,
    batches: Iterator[tuple[Tensor, Tensor]],
    loss_of: LossOf,
    *,
    node: str,
    first_step: int,
    n_steps: int,
    on_step: OnStep | None = None,
) -> list[float]:
    """Take `n_steps` steps and return the loss of each, in nats per token.

    Args:
        optimiser: Holds the parameters.
        batches: Token ids and document numbers, (window, token) each.
        loss_of: What to minimise.
        node: For the reports.
        first_step: The node's steps before this unit.
        n_steps: Steps to take.
        on_step: Called after every step; the speed it hears is wall-clock and for logs only.
    """
    losses = []
    for index in range(n_steps):
        started = time.perf_counter()
        ids, documents = next(batches)
        objective, nll = loss_of(ids, documents, index)
        optimiser.step(objective, first_step + index)
        losses.append(nll.item())
        if on_step is not None:
            speed = ids.numel() / max(1e-9, time.perf_counter() - started)
            on_step(node, first_step + index, losses[-1], speed)
    return losses


def thin(losses: Sequence[float], n_points: int) -> tuple[float, ...]:
    """At most `n_points` means of consecutive losses: what an update carries of a unit's curve."""
    n_points = min(n_points, len(losses))
    edges = [round(index * len(losses) / n_points) for index in range(n_points + 1)] if n_points else []
    return tuple(math.fsum(losses[a:b]) / (b - a) for a, b in itertools.pairwise(edges))

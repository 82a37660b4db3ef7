"""The learning-rate schedule, AdamW with moments that survive between units, and the step loop.

Nothing here knows what a work unit is: parameters, batches and a loss come in, losses go out.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from tinylora.training.batch import Batch
from tinylora.training.fit import Fit
from tinylora.training.flat import Flat, to_host, unflatten
from tinylora.training.out_of_memory import Fitting

BETAS = (0.9, 0.95)  # units are short: with 0.999 the second moment would still be warming up when a leaf is done
FINAL_SHARE = 0.1
MAX_GRADIENT_NORM = 1.0
LESS = 256.0
"""By how much the way back begins from less after gradients in fp16 were too large."""


@dataclass(frozen=True, eq=False)
class Moments:
    """AdamW's state in main memory, detached from any optimiser object."""

    steps: Float[Tensor, " parameter"]
    """How often each parameter was moved; 0 where it never had a gradient, and so has no moments yet."""
    first: Flat
    second: Flat


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
    """AdamW without decay over a fixed list of parameters, gradients clipped to norm 1.

    Args:
        parameters: What is trained, in fp32 or more.
        schedule: Of the learning rate.
        moments: To go on from; None begins anew.
        is_base_half: Whether gradients come through a base in fp16.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        schedule: Schedule,
        moments: Moments | None = None,
        *,
        is_base_half: bool = False,
    ) -> None:
        self.parameters = list(parameters)
        self.schedule = schedule
        self.is_base_half = is_base_half
        self._adamw = torch.optim.AdamW(self.parameters, lr=schedule.peak, betas=BETAS, weight_decay=0.0, fused=True)
        self.remember(moments)

    def step(self, loss: Tensor, step: int) -> None:
        """Take one step down `loss`, the node's `step`-th."""
        self.clear()
        loss.backward()
        self.update(step)

    def clear(self) -> None:
        """Drop the gradients."""
        self._adamw.zero_grad(set_to_none=True)

    def has_finite_gradients(self) -> bool:
        """Whether every number of every gradient is one."""
        return all(bool(torch.isfinite(p.grad).all()) for p in self.parameters if p.grad is not None)

    def update(self, step: int, factor: float = 1.0) -> None:
        """Move the parameters by the gradients that they have, which are `factor` times too large, as step `step`."""
        if factor != 1:
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad /= factor
        for group in self._adamw.param_groups:
            group["lr"] = self.schedule.at(step)
        torch.nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT_NORM)
        self._adamw.step()

    def moments(self) -> Moments:
        """A copy of AdamW's state, to go on from in a later unit."""
        return self.copied()[1]

    def copied(self) -> tuple[Flat, Moments]:
        """The parameters and AdamW's state: copies in main memory, that later steps leave alone."""
        states = [self._adamw.state.get(parameter) or _unmoved(parameter) for parameter in self.parameters]
        kinds = (
            self.parameters,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["step"] for state in states],
        )
        parameters, first, second, steps = to_host(kinds)
        return parameters, Moments(steps.get("float32", torch.zeros(0)), first, second)

    @torch.no_grad()
    def restore(self, parameters: Flat, moments: Moments | None) -> None:
        """Be as the optimiser, or one over parameters of the same shapes, was when these were copied."""
        for parameter, value in zip(self.parameters, unflatten(parameters, self.parameters), strict=True):
            parameter.copy_(value)
        self.clear()
        self.remember(moments)

    def remember(self, moments: Moments | None) -> None:
        """Go on with these moments; None begins anew."""
        state = {} if moments is None else _state_of(moments, self.parameters)
        self._adamw.load_state_dict({"state": state, "param_groups": self._adamw.state_dict()["param_groups"]})


def _unmoved(parameter: Tensor) -> dict[str, Tensor]:
    zeros = torch.zeros_like(parameter)
    return {"step": torch.zeros((), device=parameter.device), "exp_avg": zeros, "exp_avg_sq": zeros}


def _state_of(moments: Moments, parameters: Sequence[Tensor]) -> dict[int, dict[str, Tensor]]:
    """As AdamW's own state, by number of the parameter; copies, because AdamW writes into what it is given."""
    firsts, seconds = unflatten(moments.first, parameters), unflatten(moments.second, parameters)
    return {
        index: {"step": moments.steps[index].clone(), "exp_avg": first.clone(), "exp_avg_sq": second.clone()}
        for index, (first, second) in enumerate(zip(firsts, seconds, strict=True))
        if moments.steps[index] > 0
    }


LossOf: TypeAlias = Callable[[Batch, int], tuple[Tensor, Tensor]]
"""A batch or a part of one, and the index of the step within its unit: what it adds to the loss that is minimised, and
to the nll in it. Over the parts of a batch both add up to the means over the batch."""
OnStep: TypeAlias = Callable[[str, int, float, float], None]
"""Hears about every optimiser step: node, the node's own step count from 0, nats per token, tokens per second."""
OnFinished: TypeAlias = Callable[[tuple[float, ...]], None]
"""Hears the losses so far after every step, before anybody else does; it may run out of memory as the step may."""


def take_steps(
    optimiser: Optimiser,
    batches: Iterator[Batch],
    loss_of: LossOf,
    *,
    node: str,
    first_step: int,
    n_steps: int,
    losses: Sequence[float] = (),
    fitting: Fitting | None = None,
    undo: Callable[[], None] | None = None,
    on_finished: OnFinished | None = None,
    on_step: OnStep | None = None,
) -> tuple[float, ...]:
    """Take the steps of a unit that are still to be taken, and return the losses of all, in nats per token.

    Args:
        optimiser: Holds the parameters.
        batches: From the first step that is to be taken on.
        loss_of: What to minimise.
        node: For the reports.
        first_step: The node's steps before this unit.
        n_steps: Of the unit, those that were taken before included.
        losses: Of the steps that were taken before.
        fitting: How much of a batch is computed at once; None is all of it.
        undo: Puts the optimiser back to the last finished step, for a step that ran out of memory and is repeated.
        on_finished: Called after every step, with the losses so far.
        on_step: Called after that; the speed it hears is wall-clock and for logs only.

    Raises:
        OutOfMemory: However little is computed at once, a step does not fit.
    """
    fitting, losses = fitting or Fitting(Fit()), tuple(losses)
    for index in range(len(losses), n_steps):
        started = time.perf_counter()
        batch = next(batches)

        def whole_step(fit: Fit, batch: Batch = batch, index: int = index, before: tuple[float, ...] = losses) -> float:
            loss = take_step(optimiser, batch, loss_of, index, first_step + index, fit)
            if on_finished is not None:
                on_finished((*before, loss))
            return loss

        losses = (*losses, fitting.attempt(len(batch), whole_step, undo))
        if on_step is not None:
            speed = batch.ids.numel() / max(1e-9, time.perf_counter() - started)
            on_step(node, first_step + index, losses[-1], speed)
    return losses


def take_step(optimiser: Optimiser, batch: Batch, loss_of: LossOf, index: int, step: int, fit: Fit) -> float:
    """One step down the loss of a batch, part by part where `fit` says so; returns the batch's nll.

    Through a base in fp16 the way back begins from about the sum over tokens, whose gradients are in the range of fp16
    where those of the mean are not, and from less where that is too much. It depends on the batch alone.
    """
    factor = float(2 ** math.floor(math.log2(max(1, batch.n_targets)))) if optimiser.is_base_half else 1.0
    while True:
        nll = _gather(optimiser, batch, loss_of, index, fit, factor)
        if factor == 1 or optimiser.has_finite_gradients():
            break
        factor = max(1.0, factor / LESS)
    optimiser.update(step, factor)
    return nll


def _gather(optimiser: Optimiser, batch: Batch, loss_of: LossOf, index: int, fit: Fit, factor: float) -> float:
    """The parameters have the gradients of `factor` times the batch's loss; returns the batch's nll."""
    optimiser.clear()
    total = torch.zeros(())
    for part in batch.parts(fit.windows_at_once(len(batch))):
        objective, nll = loss_of(part, index)
        (objective if factor == 1 else objective * factor).backward()
        total = nll if part is batch else total + nll.cpu()
    return total.item()


def thin(losses: Sequence[float], n_points: int) -> tuple[float, ...]:
    """At most `n_points` means of consecutive losses: what an update carries of a unit's curve."""
    n_points = min(n_points, len(losses))
    edges = [round(index * len(losses) / n_points) for index in range(n_points + 1)] if n_points else []
    return tuple(math.fsum(losses[a:b]) / (b - a) for a, b in itertools.pairwise(edges))

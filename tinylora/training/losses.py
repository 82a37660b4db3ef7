"""What the steps of a unit minimise."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tinylora.adapters.nested import NestedLoss, nested_loss
from tinylora.model import TreeModel
from tinylora.protocol.documents import WorkUnit
from tinylora.routing.policy import Router
from tinylora.training.batch import Batch
from tinylora.training.fit import Fit
from tinylora.training.optimiser import LossOf

HARDENING = 0.1
"""Weight of the gates' entropy at the end of a subtree's unit: nats of loss per nat of indecision."""


def loss_for(
    unit: WorkUnit, model: TreeModel, router: Router | None, is_recomputing: Callable[[], bool] = lambda: False
) -> LossOf:
    """What the steps of a unit minimise: nats per token, through prefixes of nested adapters, and hardening gates.

    Args:
        unit: The unit.
        model: With its adapters.
        router: Of a subtree.
        is_recomputing: Whether passes are with gradient checkpointing, asked before each.
    """
    nested = model.spec.kind == "nested"
    inner = nested_loss(model, model.spec, unit.seed, unit.first_step) if nested else plain_loss(model)

    def loss_of(batch: Batch, index: int) -> tuple[Tensor, Tensor]:
        model.is_recomputing = is_recomputing()
        loss, nll = inner(batch.ids, batch.documents, index, batch.is_target)
        return loss * batch.share_of_targets, nll * batch.share_of_targets

    return loss_of if router is None else hardening(loss_of, router, unit.n_steps)


def plain_loss(model: TreeModel) -> NestedLoss:
    """Next-token loss through the model as it stands."""

    def loss_of(ids: Tensor, documents: Tensor, index: int, is_target: Tensor | None) -> tuple[Tensor, Tensor]:
        nll = model.loss(ids, documents=documents, is_target=is_target)
        return nll, nll.detach()

    return loss_of


@torch.no_grad()
def mean_nll(model: TreeModel, batch: Batch, fit: Fit) -> float:
    """Mean nats of the batch's targets, taken part by part where `fit` says so."""
    losses = [
        model.loss(part.ids, documents=part.documents, is_target=part.is_target) * part.share_of_targets
        for part in batch.parts(fit.windows_at_once(len(batch)))
    ]
    return math.fsum(loss.item() for loss in losses)


def hardening(loss_of: LossOf, router: Router, n_steps: int) -> LossOf:
    """A loss through the soft mixture, plus the gates' entropy with a weight that grows over the unit.

    Source:
        Belcak and Wattenhofer 2023, Fast Feedforward Networks, arXiv:2308.14711, section "Hardening".
    """

    def hardening_of(batch: Batch, index: int) -> tuple[Tensor, Tensor]:
        loss, nll = loss_of(batch, index)
        weight = HARDENING * (index + 1) / n_steps * batch.share_of_tokens
        return loss + weight * router.entropy(batch.ids, documents=batch.documents), nll

    return hardening_of

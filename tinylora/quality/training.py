"""The plain training loop's parts, for what is trained without a federation."""

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from tinylora.config import RunSettings
from tinylora.shards import Shard, batches
from tinylora.training.optimiser import Schedule


def schedule(settings: RunSettings) -> Schedule:
    """The run's own."""
    return Schedule(settings.learning_rate, settings.warmup_steps, settings.leaf_steps)


def shard_batches(
    settings: RunSettings, shard: Shard, first_step: int, n_steps: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Token ids and document numbers of so many steps, in the order that the run's seed gives."""
    rows = batches(
        shard,
        window_tokens=settings.window_tokens,
        batch_windows=settings.batch_windows,
        seed=settings.seed,
        first_step=first_step,
    )
    return ((torch.from_numpy(ids), torch.from_numpy(documents)) for ids, documents, _ in islice(rows, n_steps))

"""When a leaf splits, whether the split stays, and which siblings become one again. Pure.

A leaf that has stopped improving, with text enough and room in the tree, splits along the top eigenvector of its own
statistics: its workers go to the side on which their texts lie, and a worker who is alone holds both children and deals
its text itself. The children begin as the parent's function, exactly. Some rounds later the split is judged on held-out
text: it stays if the loss fell by enough, else the parent comes back as it was. Sibling leaves whose gate cannot tell
their texts apart become one.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from tinylora.routing.statistics import RouterStatistics, sum_statistics

PLATEAU_ROUNDS = 3
PLATEAU_SHARE = 0.002
"""A loss that fell by less than this share of itself over `PLATEAU_ROUNDS` rounds has stopped falling."""
TRIAL_ROUNDS = 2
"""Rounds of each child before a split is judged."""
KEEP_SHARE = 0.005
"""By how much of itself the held-out loss must have fallen for a split to stay."""
MERGE_ACCURACY = 0.6
"""Balanced accuracy on held-out text under which a gate tells nothing apart; 0.5 is a coin."""


def has_stopped(history: Sequence[float], *, rounds: int = PLATEAU_ROUNDS, share: float = PLATEAU_SHARE) -> bool:
    """Whether held-out losses, one for each round, fell by less than `share` of themselves over the last rounds."""
    if len(history) <= rounds:
        return False
    before, now = history[-1 - rounds], history[-1]
    return before - now < share * abs(before)


def is_worth_it(before: float, after: float, *, share: float = KEEP_SHARE) -> bool:
    """Whether a split paid: held-out loss of the parent when it was split, and of its children's texts since."""
    return before - after >= share * abs(before)


def mean_loss(losses: Sequence[float | None]) -> float | None:
    """Mean of those that are known, every worker counting once; None without any."""
    known = [loss for loss in losses if loss is not None]
    return math.fsum(known) / len(known) if known else None


def sides(sketches: Mapping[str, RouterStatistics]) -> dict[str, bool]:
    """Which workers go right when their leaf splits: two groups of like text, as equal in number as can be.

    The workers' mean features are projected on the top eigenvector of the leaf's covariance, and cut at the middle. The
    eigenvector's largest part is made positive, so that left and right are no toss; ties go by name.

    Args:
        sketches: Sums of each worker's shard; at least two workers.

    Raises:
        ValueError: Fewer than two workers.
    """
    if len(sketches) < 2:
        raise ValueError(f"expected at least two workers to part, got {len(sketches)}")
    axis = top_direction(sum_statistics(sketches))
    order = sorted(sketches, key=lambda worker: (float(sketches[worker].mean() @ axis), worker))
    right = set(order[len(order) // 2 :])
    return {worker: worker in right for worker in sorted(sketches)}


def top_direction(statistics: RouterStatistics) -> np.ndarray:
    """Unit vector (feature,) along which the text of a leaf varies most."""
    axis = np.linalg.eigh(statistics.covariance())[1][:, -1]
    return axis if axis[np.argmax(np.abs(axis))] > 0 else -axis


def balanced_accuracy(histogram: np.ndarray) -> float | None:
    """Share of held-out scores on the true side of a gate, both sides weighing the same; None if one was never seen.

    Args:
        histogram: (2, n_bins): counts of scores where left (row 0) and right (row 1) is true; bins symmetric around 0.
    """
    totals = histogram.sum(axis=1)
    if not totals.all():
        return None
    middle = histogram.shape[1] // 2
    left, right = histogram[0, :middle].sum() / totals[0], histogram[1, middle:].sum() / totals[1]
    return float((left + right) / 2)

"""Documents of one shard in two like halves, by balanced 2-means on their features. Numpy only, deterministic."""

import numpy as np
from jaxtyping import Bool, Float

_MAX_ROUNDS = 50


def balanced_halves(
    features: Float[np.ndarray, "document feature"], weights: Float[np.ndarray, " document"]
) -> Bool[np.ndarray, " document"]:
    """Which documents are in the right half; both halves have half of the weight, as nearly as whole documents allow.

    It begins with a cut across the axis of widest spread, then alternates between the two means and a cut across the
    line between them, until nothing moves. With two documents or more, neither half is empty.

    Args:
        features: Feature of each document.
        weights: Such as its number of tokens; all zero counts as all equal.
    """
    if len(features) < 2:
        return np.zeros(len(features), dtype=bool)
    weights = weights.astype(np.float64) if weights.any() else np.ones(len(features))
    is_right = _cut(features @ _widest_axis(features, weights), weights)
    for _ in range(_MAX_ROUNDS):
        left, right = (_mean(features[side], weights[side]) for side in (~is_right, is_right))
        moved = _cut(features @ (right - left), weights)
        if (moved == is_right).all():
            break
        is_right = moved
    return is_right


def _mean(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean; a half whose documents weigh nothing has its plain mean."""
    return np.average(rows, axis=0, weights=weights if weights.any() else None)


def _widest_axis(features: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Top eigenvector of the covariance, its largest part positive: left and right must not be a toss."""
    centred = features - _mean(features, weights)
    axis = np.linalg.eigh((centred * weights[:, None]).T @ centred)[1][:, -1]
    return axis if axis[np.argmax(np.abs(axis))] > 0 else -axis


def _cut(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """True beyond the weighted median; equal scores go by position."""
    order = np.argsort(scores, kind="stable")
    left_of = np.cumsum(weights[order])[:-1]  # weight on the left, cut after the first, the second ... document
    n_left = 1 + int(np.argmin(np.abs(left_of - weights.sum() / 2)))
    is_right = np.ones(len(order), dtype=bool)
    is_right[order[:n_left]] = False
    return is_right

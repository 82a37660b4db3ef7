"""Means that a few cannot pull far: lengths are clipped, then what differs from a centre. Numpy only, float64.

With honest, similar vectors nothing is clipped, and the mean is the plain one. Somebody who sends a vector of any
length or direction moves the mean by no more than a few times what everybody moves it.
"""

import statistics

import numpy as np
from jaxtyping import Float64

ROUNDS = 3
"""How often the centre is moved to the clipped mean: each time, what lies far off counts less."""

Moves = Float64[np.ndarray, "worker number"]


def clipped(moves: Moves, centre: Float64[np.ndarray, " number"], clip: float) -> Moves | None:
    """The vectors of which the plain mean is the robust one; None where that is so of the given ones.

    First no vector is longer than `clip` medians of their lengths. Then, starting from `centre`,

        v ← v + mean of (x - v) · min(1, radius / |x - v|),    radius = clip · median of |x - v|

    Medians are the lower ones, so that of two the shorter counts.

    Args:
        moves: How far each worker went; at least one.
        centre: Where the mean is expected: the way that was gone the last time, or zeros.
        clip: In medians; at least 1.

    Source:
        Karimireddy, He and Jaggi 2021, Learning from History for Byzantine Robust Optimization, arXiv:2012.10333,
        algorithm 2 (centered clipping).
    """
    short = _within(moves, np.zeros_like(centre), clip)
    result, v = short, centre
    for _ in range(ROUNDS):
        result = _within(short, v, clip)
        v = result.mean(axis=0)
    return None if result is moves else result


def _within(moves: Moves, centre: Float64[np.ndarray, " number"], clip: float) -> Moves:
    """What is farther than `clip` median distances from the centre is drawn to it; the same array if nothing is."""
    apart = moves - centre
    distances = np.linalg.norm(apart, axis=1)
    radius = clip * statistics.median_low(distances.tolist())
    is_far = distances > radius
    if not is_far.any():
        return moves
    shares = np.where(is_far, radius / np.maximum(distances, np.finfo(np.float64).tiny), 1.0)
    return np.where(is_far[:, None], centre + apart * shares[:, None], moves)

"""Means that a few cannot pull far: lengths are clipped, then what differs from a centre. Numpy only, float64.

With honest, similar vectors nothing is clipped, and the mean is the plain one. Somebody who sends a vector of any
length or direction moves the mean by no more than a few times what everybody moves it.

Nothing here holds all vectors at once: they are gone through several times, and what is remembered of each is two
numbers. What comes out is a rule (`Draw`) that says where each vector goes.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float64

ROUNDS = 3
"""How often the centre is moved to the clipped mean: each time, what lies far off counts less."""

Move: TypeAlias = Float64[np.ndarray, " number"]
_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, eq=False)
class Draw:
    """Where the vectors x are drawn to: (1 - w) · centre + w · s · x, with two numbers for each."""

    centre: Move
    shortened: tuple[float, ...]
    """s of each vector, in their order: what is left of its length."""
    kept: tuple[float, ...]
    """w of each vector: what is left of its distance from the centre."""

    def changes(self, number: int) -> bool:
        """Whether the vector with this number, from 0, is drawn anywhere at all."""
        return self.shortened[number] < 1 or self.kept[number] < 1

    def of(self, number: int, move: Move) -> Move:
        """Where the vector with this number goes."""
        short = self._short(number, move)
        share = self.kept[number]
        return short if share == 1 else self.centre + (short - self.centre) * share

    def distance(self, number: int, move: Move) -> float:
        """Of the shortened vector from the centre."""
        return float(np.linalg.norm(self._short(number, move) - self.centre))

    def _short(self, number: int, move: Move) -> Move:
        return move if self.shortened[number] == 1 else move * self.shortened[number]


def draw_in(moves: Iterable[Move], centre: Move, clip: float) -> Draw | None:
    """How the vectors must be drawn in for their plain mean to be the robust one; None where it is so already.

    First no vector is longer than `clip` medians of their lengths. Then, starting from `centre`,

        v ← v + mean of (x - v) · min(1, radius / |x - v|),    radius = clip · median of |x - v|

    Medians are the lower ones, so that of two the shorter counts. Where nobody is far off two passes are enough; it is
    never more than seven.

    Args:
        moves: How far each worker went; at least one. Gone through again and again, always in the same order.
        centre: Where the mean is expected: the way that was gone the last time, or zeros.
        clip: In medians; at least 1.

    Source:
        Karimireddy, He and Jaggi 2021, Learning from History for Byzantine Robust Optimization, arXiv:2012.10333,
        algorithm 2 (centered clipping).
    """
    lengths, distances, plain = _look(moves, centre)
    whole = (1.0,) * len(lengths)
    shortened = _shares(lengths, clip)
    draw = Draw(centre, shortened, whole)
    if shortened != whole:
        distances, plain = _distances(moves, draw), _mean(moves, draw)
    for turn in range(ROUNDS):
        draw = Draw(draw.centre, shortened, _shares(distances, clip))
        is_plain = draw.kept == whole
        if turn == ROUNDS - 1 or (is_plain and draw.centre is plain):  # from here on nothing would move
            break
        draw = Draw(plain if is_plain else _mean(moves, draw), shortened, whole)
        distances = _distances(moves, draw)
    return None if shortened == draw.kept == whole else draw


def _look(moves: Iterable[Move], centre: Move) -> tuple[list[float], list[float], Move]:
    """In one pass: lengths, distances from the centre, and the mean."""
    lengths, distances, total = list[float](), list[float](), np.zeros_like(centre)
    has_centre = bool(centre.any())
    for move in moves:
        lengths.append(float(np.linalg.norm(move)))
        distances.append(float(np.linalg.norm(move - centre)) if has_centre else lengths[-1])
        total += move
    return lengths, distances, total / len(lengths)


def _distances(moves: Iterable[Move], draw: Draw) -> list[float]:
    return [draw.distance(number, move) for number, move in enumerate(moves)]


def _mean(moves: Iterable[Move], draw: Draw) -> Move:
    total = np.zeros_like(draw.centre)
    for number, move in enumerate(moves):
        total += draw.of(number, move)
    return total / len(draw.kept)


def _shares(distances: Sequence[float], clip: float) -> tuple[float, ...]:
    """What is left of each distance when none is longer than `clip` medians; 1 of those that are not."""
    radius = clip * statistics.median_low(distances)
    return tuple(radius / max(apart, _TINY) if apart > radius else 1.0 for apart in distances)

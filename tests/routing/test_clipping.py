"""Clipped means: plain where nobody is far off, bounded where somebody is, the same in any order."""

import itertools
import statistics
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinylora.routing.clipping import ROUNDS, draw_in


def clipped(moves: np.ndarray, centre: np.ndarray, clip: float) -> np.ndarray | None:
    """Where all vectors go; None where that is nowhere."""
    draw = draw_in(list(moves), centre, clip)
    return None if draw is None else np.stack([draw.of(number, move) for number, move in enumerate(moves)])


def all_at_once(moves: np.ndarray, centre: np.ndarray, clip: float) -> np.ndarray | None:
    """The same with all vectors in one matrix: the slow reference."""
    short = _within(moves, np.zeros_like(centre), clip)
    result, v = short, centre
    for _ in range(ROUNDS):
        result = _within(short, v, clip)
        v = result.mean(axis=0)
    return None if result is moves else result


def _within(moves: np.ndarray, centre: np.ndarray, clip: float) -> np.ndarray:
    apart = moves - centre
    distances = np.linalg.norm(apart, axis=1)
    radius = clip * statistics.median_low(distances.tolist())
    is_far = distances > radius
    if not is_far.any():
        return moves
    shares = np.where(is_far, radius / np.maximum(distances, np.finfo(np.float64).tiny), 1.0)
    return np.where(is_far[:, None], centre + apart * shares[:, None], moves)


def _honest(n: int, seed: int = 0, dim: int = 20) -> np.ndarray:
    """Ways that agree to about a tenth of their length."""
    random = np.random.default_rng(seed)
    return 1.0 + 0.1 * random.standard_normal((n, dim))


def _mean(moves: np.ndarray, centre: np.ndarray | None = None, clip: float = 2.0) -> np.ndarray:
    found = clipped(moves, np.zeros(moves.shape[1]) if centre is None else centre, clip)
    return (moves if found is None else found).mean(axis=0)


@given(st.integers(2, 12), st.integers(0, 1000))
def test_of_honest_ways_the_mean_is_the_plain_one(n, seed):
    moves = _honest(n, seed)
    centre = np.zeros(20)
    np.testing.assert_allclose(_mean(moves, centre), moves.mean(axis=0), rtol=0.05)
    np.testing.assert_allclose(_mean(moves, moves.mean(axis=0) * 0.9), moves.mean(axis=0), rtol=0.05)


@pytest.mark.parametrize("attack", [1e6, -10.0, -1e6])
@pytest.mark.parametrize("n_hostile", [1, 2, 3])
def test_three_of_ten_move_the_mean_by_a_bound(attack, n_hostile):
    """Whatever the length: by a part of the honest way, where the plain mean goes anywhere."""
    honest = _honest(10)
    moves = honest.copy()
    moves[:n_hostile] *= attack
    expected = honest[n_hostile:].mean(axis=0)
    gap = np.linalg.norm(_mean(moves) - expected) / np.linalg.norm(expected)
    assert gap < 0.9
    assert gap < np.linalg.norm(moves.mean(axis=0) - expected) / np.linalg.norm(expected) / 2


def test_history_helps():
    """Where the way of the last round is known, those who go another way count for less still."""
    honest = _honest(10)
    moves = honest.copy()
    moves[:3] *= -10
    expected = honest[3:].mean(axis=0)
    with_history, without = (np.linalg.norm(_mean(moves, c) - expected) for c in (expected, np.zeros(20)))
    assert with_history <= without


def test_of_two_the_shorter_counts():
    moves = np.array([[1.0, 0.0], [100.0, 0.0]])
    assert _mean(moves)[0] <= 1.5 + 1e-12


@given(st.integers(0, 1000))
def test_any_order_gives_the_same_vectors(seed):
    random = np.random.default_rng(seed)
    moves = random.standard_normal((4, 3)) * np.array([[1.0], [1.0], [1.0], [50.0]])
    first = clipped(moves, np.zeros(3), 2.0)
    assert first is not None
    for order in itertools.permutations(range(4)):
        again = clipped(moves[list(order)], np.zeros(3), 2.0)
        assert again is not None
        np.testing.assert_allclose(again, first[list(order)], rtol=1e-9, atol=1e-12)


def test_those_who_stood_still():
    assert clipped(np.zeros((3, 4)), np.zeros(4), 2.0) is None
    moves = np.zeros((3, 4))
    moves[0] = 1.0
    assert np.array_equal(_mean(moves), np.zeros(4))  # most did not move


# --- one vector at a time --------------------------------------------------------------------------------------------


@dataclass
class _Passes:
    """Vectors that count how often they are gone through."""

    moves: np.ndarray
    n: int = 0

    def __iter__(self):
        self.n += 1
        return iter(self.moves)


@given(st.integers(1, 9), st.integers(0, 1000), st.integers(0, 4), st.sampled_from([1.0, 1.5, 2.0, 3.0]), st.booleans())
def test_vectors_that_pass_by_go_where_the_matrix_sends_them(n, seed, n_hostile, clip, has_centre):
    random = np.random.default_rng(seed)
    moves = _honest(n, seed)
    moves[:n_hostile] *= random.choice([-10.0, 1e6, 0.0, 3.0])
    centre = moves.mean(axis=0) + random.standard_normal(20) if has_centre else np.zeros(20)
    expected, passes = all_at_once(moves, centre, clip), _Passes(moves)
    draw = draw_in(passes, centre, clip)
    assert (draw is None) == (expected is None)
    assert passes.n <= 7
    if draw is not None and expected is not None:
        found = np.stack([draw.of(number, move) for number, move in enumerate(moves)])
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12 * np.abs(moves).max())
        still = [number for number in range(n) if not draw.changes(number)]
        assert np.array_equal(found[still], moves[still])


def test_where_nobody_is_far_off_two_passes_are_enough():
    for centre in (np.zeros(20), np.ones(20)):
        passes = _Passes(_honest(50))
        assert draw_in(passes, centre, 3.0) is None
        assert passes.n == 2

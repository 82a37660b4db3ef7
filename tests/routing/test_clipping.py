"""Clipped means: plain where nobody is far off, bounded where somebody is, the same in any order."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinylora.routing.clipping import clipped


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

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinylora.routing.halves import balanced_halves


def test_two_clusters_are_told_apart():
    generator = np.random.default_rng(0)
    truth = np.arange(40) % 2 == 1
    points = generator.normal(size=(40, 5)) * 0.1 + truth[:, None] * np.array([0, 3, 0, 0, 0])
    found = balanced_halves(points, np.ones(40))
    assert np.array_equal(found, truth) or np.array_equal(found, ~truth)


@given(st.integers(2, 40), st.integers(1, 4), st.integers(0, 10_000))
def test_halves_are_balanced_never_empty_and_the_same_every_time(n, dim, seed):
    generator = np.random.default_rng(seed)
    points, weights = generator.normal(size=(n, dim)), generator.integers(1, 100, size=n).astype(np.float64)
    is_right = balanced_halves(points, weights)
    assert 0 < is_right.sum() < n
    assert abs(weights[is_right].sum() - weights[~is_right].sum()) <= weights.max() + 1e-9
    assert np.array_equal(is_right, balanced_halves(points.copy(), weights.copy()))


def test_moving_the_points_moves_no_document():
    points = np.random.default_rng(1).normal(size=(12, 3))
    assert np.array_equal(balanced_halves(points, np.ones(12)), balanced_halves(points * 4 + 64, np.ones(12)))


@pytest.mark.parametrize("points", [np.zeros((5, 2)), np.ones((2, 3))])
def test_equal_documents_go_by_position(points):
    is_right = balanced_halves(points, np.ones(len(points)))
    assert is_right.tolist() == sorted(is_right.tolist()) and 0 < is_right.sum() < len(points)


def test_weights_of_zero_are_equal_weights():
    points = np.array([[0.0], [1.0], [10.0], [11.0]])
    assert balanced_halves(points, np.zeros(4)).tolist() == [False, False, True, True]


def test_documents_that_weigh_nothing_go_somewhere():
    points = np.array([[0.0], [0.0], [10.0]])
    assert 0 < balanced_halves(points, np.array([0.0, 0.0, 5.0])).sum() < 3


def test_too_few_to_halve():
    assert balanced_halves(np.zeros((0, 3)), np.zeros(0)).tolist() == []
    assert balanced_halves(np.zeros((1, 3)), np.ones(1)).tolist() == [False]

"""Who holds which node: like texts share a leaf, neighbours are siblings, wide texts hold subtrees."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinylora.federation.assignment import assign, leaves_for, nearest_leaf, nearest_worker
from tinylora.federation.topology import _swap_gains, balanced_groups, distances, means, pair_up, tree_order
from tinylora.routing.statistics import PREFIXES, RouterStatistics, statistics_of
from tinylora.tree import Topology, is_under

DIM = 3


def _sums(centre, *, n=80, spread=1.0, seed=0) -> RouterStatistics:
    rows = np.asarray(centre) + spread * np.random.default_rng(seed).standard_normal((n, DIM))
    return statistics_of(rows, np.resize(np.array(PREFIXES), n))


def _line(*places: float) -> dict[str, RouterStatistics]:
    return {f"w{i}": _sums((place, 0, 0), seed=i) for i, place in enumerate(places)}


def test_like_texts_share_a_leaf():
    assignment = assign(_line(0, 20, 0.5, 20.5), 1)
    assert assignment["w0"] == assignment["w2"]
    assert assignment["w1"] == assignment["w3"]
    assert assignment["w0"] != assignment["w1"]


def test_easily_confused_leaves_are_siblings():
    assignment = assign(_line(0, 100, 3, 103), 2)
    assert assignment["w0"][0] == assignment["w2"][0]
    assert assignment["w1"][0] == assignment["w3"][0]
    assert len(set(assignment.values())) == 4


@given(st.integers(1, 20), st.integers(0, 3), st.integers(0, 5))
def test_every_leaf_is_covered_evenly(n_workers, depth, seed):
    places = np.random.default_rng(seed).normal(size=n_workers) * 10
    assignment = assign(_line(*places), depth)
    leaves = Topology.perfect(depth).leaves
    holders = [sum(is_under(leaf, node) for node in assignment.values()) for leaf in leaves]
    assert set(assignment) == {f"w{i}" for i in range(n_workers)}
    if n_workers >= len(leaves):
        assert set(assignment.values()) == set(leaves)
        assert max(holders) - min(holders) <= 1
    else:
        assert holders == [1] * len(leaves)
        assert max(len(node) for node in assignment.values()) - min(len(node) for node in assignment.values()) <= 1


def test_depth_zero_is_one_leaf_for_all():
    assert assign(_line(0, 5, 9), 0) == {"w0": "", "w1": "", "w2": ""}


def test_widest_text_gets_the_larger_subtree():
    sketches = _line(0, 10, 20) | {"w1": _sums((10, 0, 0), spread=6.0, seed=1)}
    assignment = assign(sketches, 2)
    assert len(assignment["w1"]) == 1
    assert sorted(len(node) for node in assignment.values()) == [1, 2, 2]


def test_the_text_that_takes_up_most_room_gets_the_larger_subtree():
    """Not the one whose prefixes scatter most, if all workers said how widely their texts differ."""
    sketches = _line(0, 10, 20) | {"w1": _sums((10, 0, 0), spread=6.0, seed=1)}
    volumes = {"w0": -300.0, "w1": -400.0, "w2": -350.0}
    assert len(assign(sketches, 2, volumes)["w0"]) == 1
    assert assign(sketches, 2, {"w0": -300.0, "w1": -400.0}) == assign(sketches, 2)


def test_names_and_order_of_arrival_do_not_matter():
    sketches = _line(3, 1, 4, 1.5, 9, 2.6)
    backwards = dict(reversed(list(sketches.items())))
    assert assign(sketches, 2) == assign(backwards, 2)


def _inertia(points, groups):
    return sum(((points[group] - points[group].mean(axis=0)) ** 2).sum() for group in groups)


def test_groups_are_nearly_the_best_of_all():
    """Against all ways to split six points into three pairs."""
    worst = 1.0
    for seed in range(20):
        points = np.random.default_rng(seed).normal(size=(6, 2))
        found = _inertia(points, balanced_groups(points, 3))
        orders = [order for order in itertools.permutations(range(6)) if order[::2] == tuple(sorted(order[::2]))]
        best = min(_inertia(points, [list(order[:2]), list(order[2:4]), list(order[4:])]) for order in orders)
        worst = max(worst, found / best)
    assert worst < 1.5


def test_gain_of_a_swap_is_what_it_saves():
    points = np.random.default_rng(0).normal(size=(5, 2))
    labels = np.array([0, 0, 1, 1, 1])
    gains = _swap_gains(points, labels, 2)
    for first, second in itertools.product((0, 1), (2, 3, 4)):
        swapped = labels.copy()
        swapped[[first, second]] = swapped[[second, first]]
        before, after = (_inertia(points, [which == 0, which == 1]) for which in (labels, swapped))
        assert gains[first, second] == pytest.approx(before - after)
        assert gains[second, first] == pytest.approx(before - after)


def test_pairs_are_the_best_of_four_points():
    for seed in range(20):
        points = np.random.default_rng(seed).normal(size=(4, 2))
        squared = ((points[:, None] - points[None]) ** 2).sum(axis=2)
        every = [((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2))]
        best = min(sum(squared[pair] for pair in pairs) for pairs in every)
        assert sum(squared[pair] for pair in pair_up(points)) == pytest.approx(best)


def test_tree_order_is_a_permutation_with_neighbours_beside_each_other():
    points = np.array([[0.0], [50.0], [1.0], [51.0], [9.0], [60.0], [10.0], [61.0]])
    order = tree_order(points)
    assert sorted(order) == list(range(8))
    siblings = {frozenset(order[i : i + 2]) for i in range(0, 8, 2)}
    assert siblings == {frozenset(pair) for pair in ((0, 2), (1, 3), (4, 6), (5, 7))}
    assert {frozenset(order[:4]), frozenset(order[4:])} == {frozenset({0, 2, 4, 6}), frozenset({1, 3, 5, 7})}


def test_whitened_distance_is_mahalanobis():
    sketches = _line(0, 4, 9)
    points, _ = means(sketches)
    pooled = np.mean([item.covariance() for item in sketches.values()], axis=0) + 1e-3 * np.eye(DIM)
    gap = sketches["w0"].mean() - sketches["w2"].mean()
    assert ((points[0] - points[2]) ** 2).sum() == pytest.approx(gap @ np.linalg.solve(pooled, gap))
    assert distances(sketches, sketches["w2"])["w0"] == pytest.approx(gap @ np.linalg.solve(pooled, gap))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(0, 4))
def test_nobody_holds_more_leaves_than_it_can_train(limits: list[int], depth: int):
    most = {f"w{number}": limit for number, limit in enumerate(limits)}
    assignment = assign(_line(*range(len(limits))), depth)
    tree = Topology(leaves_for(assignment, depth, most))
    for worker, top in assignment.items():
        n_whole, limit = 2 ** (depth - len(top)), most[worker] or 2**depth
        n_held = len(tree.leaves_below(top))
        assert n_held == max(n for n in (1, 2, 4, 8, 16) if n <= min(n_whole, limit))
    if not any(limits):
        assert tree == Topology.perfect(depth)


def test_late_joiner_goes_to_the_nearest_leaf():
    sketches = _line(0, 10)
    leaves = {"0": {"w0": sketches["w0"]}, "1": {"w1": sketches["w1"]}}
    assert nearest_leaf(leaves, ("0", "1"), _sums((9, 0, 0))) == "1"
    assert nearest_leaf(leaves, ("0",), _sums((9, 0, 0))) == "0"


def test_among_equally_near_leaves_the_one_with_fewest_workers():
    wide = _sums((0, 0, 0))
    leaves = {"0": {"w0": wide, "w1": wide}, "1": {"w0": wide}}
    assert nearest_leaf(leaves, ("0", "1"), _sums((0, 0, 0), seed=3)) == "1"


def test_nearest_worker():
    sketches = _line(0, 10, 20)
    assert nearest_worker(sketches, {"gone": _sums((11, 0, 0))}) == "w1"
    assert nearest_worker(sketches, {}) == "w0"

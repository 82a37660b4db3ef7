"""Plateaus, verdicts and sides, each against an answer one can see."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinylora.federation.growth import balanced_accuracy, has_stopped, is_worth_it, mean_loss, sides, top_direction
from tinylora.routing.statistics import RouterStatistics, statistics_of


def sketch(centre: tuple[float, ...], *, seed: int = 0, n: int = 200) -> RouterStatistics:
    rng = np.random.default_rng(seed)
    rows = np.array(centre) + rng.normal(0, 0.1, (n, len(centre)))
    return statistics_of(rows, np.full(n, 256))


@pytest.mark.parametrize(
    ("history", "stopped"),
    [
        ([3.0, 2.9, 2.8, 2.7], False),
        ([3.0, 2.9, 2.8], False),
        ([2.0, 2.0, 2.0, 2.0], True),
        ([2.0, 1.999, 1.998, 1.9961], True),
        ([2.0, 1.999, 1.998, 1.9959], False),
        ([9.0, 2.0, 2.0, 2.0, 2.1], True),
    ],
)
def test_a_leaf_has_stopped_when_three_rounds_brought_less_than_two_thousandths(history, stopped):
    assert has_stopped(history) is stopped


def test_a_split_stays_from_half_a_percent_on():
    assert is_worth_it(2.0, 1.99) and not is_worth_it(2.0, 1.9901) and not is_worth_it(2.0, 2.1)


def test_unknown_losses_do_not_count():
    assert mean_loss([1.0, None, 3.0]) == 2.0 and mean_loss([None]) is None


def test_workers_part_along_the_direction_in_which_their_texts_differ_most():
    found = sides(
        {"a": sketch((0, 0, 3)), "b": sketch((0.2, 0, -3)), "c": sketch((0, 0.2, 3)), "d": sketch((0, 0, -3))}
    )
    assert found in ({"a": True, "b": False, "c": True, "d": False}, {"a": False, "b": True, "c": False, "d": True})
    axis = top_direction(sketch((0, 0, 3)) + sketch((0, 0, -3), seed=1))
    assert abs(axis[2]) == pytest.approx(1.0, abs=0.01)


@given(st.integers(2, 9), st.integers(0, 99))
def test_both_sides_have_workers_and_their_order_does_not_matter(n, seed):
    rng = np.random.default_rng(seed)
    texts = {f"w{i}": sketch(tuple(rng.normal(0, 1, 3)), seed=i, n=20) for i in range(n)}
    found = sides(texts)
    assert abs(2 * sum(found.values()) - n) <= 1
    assert sides(dict(reversed(texts.items()))) == found


def test_nobody_parts_alone():
    with pytest.raises(ValueError, match="at least two workers"):
        sides({"a": sketch((0, 0, 3))})


def test_accuracy_weighs_both_sides_alike():
    counts = np.array([[90.0, 0, 0, 10], [1, 0, 0, 3]])
    assert balanced_accuracy(counts) == pytest.approx((0.9 + 0.75) / 2)
    assert balanced_accuracy(np.array([[5.0, 5], [0, 0]])) is None

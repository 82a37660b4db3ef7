"""Rollups against all values put into buckets one by one."""

import math
import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tinylora_coordinator.dashboard.rollups import BELOW, Rollup, Width, bucketed, grid, pieces

WIDTHS = (Width(1, 50), Width(8, 50), Width(64), Width(512))
PATHS = ("", "0", "1", "01", "011")
values = st.lists(st.tuples(st.sampled_from(PATHS), st.floats(0, 5_000), st.floats(-100, 100)), min_size=1, max_size=60)


def filled(told: list[tuple[str, float, float]], n_batches: int) -> tuple[Rollup, sqlite3.Connection]:
    rollup, database = Rollup("t", ("loss", "other"), WIDTHS, has_sums=True), sqlite3.connect(":memory:")
    database.execute(rollup.schema)
    for batch in range(n_batches):
        for node, at_s, value in told[batch::n_batches]:
            rollup.add("loss", node, at_s, value)
        rollup.write(database)
    return rollup, database


@settings(max_examples=60, deadline=None)
@given(
    told=values,
    n_batches=st.integers(1, 4),
    points=st.integers(2, 300),
    start_s=st.floats(0, 4_000),
    length_s=st.floats(1, 6_000),
    node=st.sampled_from(PATHS),
)
def test_a_question_of_any_range_is_answered_as_by_counting(
    told: list[tuple[str, float, float]], n_batches: int, points: int, start_s: float, length_s: float, node: str
) -> None:
    rollup, database = filled(told, n_batches)
    # Nothing was pruned: all widths reach back to the start of a clock that shows 49 s.
    over, found = rollup.read(database, "loss", (node, node + BELOW), start_s, start_s + length_s, points, 49.0)
    naive = bucketed([(at_s, value) for path, at_s, value in told if path.startswith(node)], over)
    assert over.last - over.first + 1 <= points
    assert over.first * over.seconds <= start_s
    assert start_s + length_s < (over.last + 1) * over.seconds
    assert [(b.place, b.n, b.low, b.high) for b in found] == [(b.place, b.n, b.low, b.high) for b in naive]
    assert [b.total for b in found] == pytest.approx([b.total for b in naive], abs=1e-9)
    assert rollup.read(database, "other", (node, node + BELOW), 0.0, 5_000.0, points, 49.0)[1] == []
    database.close()


@settings(max_examples=30, deadline=None)
@given(told=values, now_s=st.floats(0, 6_000), points=st.integers(2, 50), start_s=st.floats(0, 5_000))
def test_what_was_pruned_is_answered_by_a_coarser_width(
    told: list[tuple[str, float, float]], now_s: float, points: int, start_s: float
) -> None:
    told = [one for one in told if one[1] <= now_s]
    rollup, database = filled(told, 1)
    rollup.prune(database, now_s, PATHS)
    over, found = rollup.read(database, "loss", PATHS, start_s, max(start_s, now_s), points, now_s)
    naive = bucketed([(at_s, value) for _, at_s, value in told], over)
    assert [(b.place, b.n) for b in found] == [(b.place, b.n) for b in naive]
    kept = database.execute("SELECT width, count(DISTINCT start) FROM t GROUP BY width").fetchall()
    assert all(n <= 50 for width, n in kept if width <= 8)
    database.close()


@given(start_s=st.floats(0, 1e6), length_s=st.floats(0, 1e5), amount=st.floats(0, 1e9), step_s=st.floats(0.1, 1e4))
def test_an_amount_in_pieces_is_whole(start_s: float, length_s: float, amount: float, step_s: float) -> None:
    found = pieces(start_s, start_s + length_s, amount, step_s)
    assert math.fsum(piece for _, piece in found) == pytest.approx(amount)
    assert all(start_s <= at_s <= start_s + length_s for at_s, _ in found)
    assert len(found) <= 128


@given(start_s=st.floats(0, 1e9), length_s=st.floats(0, 1e7), points=st.integers(2, 1000))
def test_a_grid_covers_the_time_with_no_more_than_was_asked_for(start_s: float, length_s: float, points: int) -> None:
    over = grid(start_s, start_s + length_s, points)
    assert over.last - over.first + 1 <= points
    assert over.first * over.seconds <= start_s <= start_s + length_s < (over.last + 1) * over.seconds

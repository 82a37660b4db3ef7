import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinylora.errors import ProtocolError, ShapeMismatch
from tinylora.routing.statistics import PREFIXES, RouterStatistics, statistics_of, sum_statistics


def some_rows(n: int, dim: int = 4, seed: int = 0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, dim)) + generator.normal(size=dim), generator.choice(PREFIXES, n)


def some_statistics(n: int = 30, dim: int = 4, seed: int = 0) -> RouterStatistics:
    return statistics_of(*some_rows(n, dim, seed))


def same_bits(a: RouterStatistics, b: RouterStatistics) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a.to_arrays().values(), b.to_arrays().values(), strict=True))


def close(a: RouterStatistics, b: RouterStatistics) -> bool:
    pairs = zip(a.to_arrays().values(), b.to_arrays().values(), strict=True)
    return all(np.allclose(x, y, rtol=1e-12, atol=1e-10) for x, y in pairs)


def test_sums_are_the_plain_ones():
    rows, lengths = some_rows(50)
    found = statistics_of(rows, lengths)
    for slot, prefix in enumerate(PREFIXES):
        assert found.count[slot] == sum(length == prefix for length in lengths)
        assert np.allclose(found.total[slot], rows[lengths == prefix].sum(axis=0))
    outer = np.sum([np.outer(row, row) for row in rows], axis=0)
    packed = [outer[i, j] for i in range(4) for j in range(i, 4)]
    assert np.allclose(found.scatter, packed)
    assert found.n == 50 and found.dim == 4
    assert np.allclose(found.mean(), rows.mean(axis=0))
    assert np.allclose(found.covariance(), np.cov(rows.T, bias=True))


@pytest.mark.parametrize(("n_tokens", "slot"), [(1, 0), (7, 0), (8, 0), (15, 0), (16, 1), (255, 4), (256, 5), (999, 5)])
def test_a_row_counts_at_the_longest_prefix_it_reaches(n_tokens, slot):
    found = statistics_of(np.ones((1, 2)), np.array([n_tokens]))
    assert found.count.tolist() == [float(index == slot) for index in range(6)]


def test_no_text():
    zero = RouterStatistics.zero(3)
    assert zero.n == 0 and zero.dim == 3
    assert not zero.mean().any() and not zero.covariance().any()
    assert same_bits(zero + some_statistics(dim=3), some_statistics(dim=3))


@given(st.integers(0, 10_000), st.integers(2, 40), st.data())
def test_any_split_adds_up_to_the_whole(seed, n, data):
    rows, lengths = some_rows(n, seed=seed)
    owner = np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    parts = {f"w{k}": statistics_of(rows[owner == k], lengths[owner == k]) for k in range(4)}
    assert close(sum_statistics(parts), statistics_of(rows, lengths))


@given(st.permutations(range(5)))
def test_any_order_gives_the_same_bits(order):
    parts = {f"w{k}/v1": some_statistics(seed=k) for k in range(5)}
    shuffled = {f"w{k}/v1": parts[f"w{k}/v1"] for k in order}
    assert same_bits(sum_statistics(parts), sum_statistics(shuffled))


def test_whoever_reports_twice_counts_once():
    reports = [("a/v1", 1), ("b/v1", 2), ("a/v1", 1)]
    repeated = {key: some_statistics(seed=seed) for key, seed in reports}
    once = {key: some_statistics(seed=seed) for key, seed in reports[:2]}
    assert same_bits(sum_statistics(repeated), sum_statistics(once))


@given(st.integers(0, 4))
def test_a_worker_left_out_was_never_there(gone):
    parts = {f"w{k}": some_statistics(seed=k) for k in range(5)}
    never = {f"w{k}": some_statistics(seed=k) for k in range(5) if k != gone}
    without = {key: value for key, value in parts.items() if key != f"w{gone}"}
    assert same_bits(sum_statistics(without), sum_statistics(never))
    assert close(sum_statistics(parts) - parts[f"w{gone}"], sum_statistics(never))


def test_subtracting_all_leaves_exactly_nothing():
    a, b = some_statistics(seed=1), some_statistics(seed=2)
    assert same_bits((a + b) - b - a, RouterStatistics.zero(4))


def test_subtracting_more_than_there_is():
    with pytest.raises(ValueError, match="rows to subtract"):
        _ = some_statistics(3) - some_statistics(30)


def test_a_prefix_without_rows_left_has_no_sum():
    a, b = statistics_of(np.array([[0.1, 0.7]]), np.array([8])), statistics_of(np.array([[0.3, 0.2]]), np.array([16]))
    left = (a + b) - b
    assert not left.total[1].any() and left.count.tolist() == [1, 0, 0, 0, 0, 0]


def test_different_features_do_not_add():
    with pytest.raises(ShapeMismatch, match="expected features of 4 numbers, got 3"):
        _ = some_statistics() + some_statistics(dim=3)


def test_nothing_to_sum():
    with pytest.raises(ValueError, match="at least one item"):
        sum_statistics({})


# --- what came over the network --------------------------------------------------------------------------------------


@given(st.integers(0, 60), st.integers(1, 8), st.integers(0, 10_000))
def test_arrays_round_trip(n, dim, seed):
    sums = statistics_of(*some_rows(n, dim, seed))
    assert same_bits(RouterStatistics.from_arrays(sums.to_arrays(), dim=dim), sums)


def test_sums_after_a_subtraction_are_still_accepted():
    parts = {f"w{k}": some_statistics(2, seed=k) for k in range(30)}
    left = sum_statistics(parts)
    for key in list(parts)[:-1]:
        left = left - parts[key]
    assert RouterStatistics.from_arrays(left.to_arrays()).n == 2


def broken(**changes):
    return some_statistics().to_arrays() | changes


COUNT, TOTAL, SCATTER = some_statistics().to_arrays().values()


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ({"count": COUNT, "total": TOTAL}, ShapeMismatch, "expected count, total, scatter, got count, total"),
        (broken(more=COUNT), ShapeMismatch, "got count, more, scatter, total"),
        ({}, ShapeMismatch, "got nothing"),
        (broken(count=COUNT[:5]), ShapeMismatch, r"count: expected \(6,\), got \(5,\)"),
        (broken(total=TOTAL[:, :3]), ShapeMismatch, r"total: expected \(6, 4\), got \(6, 3\)"),
        (broken(total=TOTAL[0]), ShapeMismatch, r"total: expected \(6, 4\), got \(4,\)"),
        (broken(scatter=SCATTER[:-1]), ShapeMismatch, r"scatter: expected \(10,\), got \(9,\)"),
        (broken(total=TOTAL.astype(np.float32)), ShapeMismatch, "total: expected float64, got float32"),
        (broken(count=COUNT.astype(object)), ShapeMismatch, "count: expected float64, got object"),
        (broken(total=np.where(TOTAL[0, 0] == TOTAL, np.nan, TOTAL)), ProtocolError, "total: expected finite numbers"),
        (broken(scatter=SCATTER * np.inf), ProtocolError, "scatter: expected finite numbers"),
        (broken(count=-COUNT), ProtocolError, "count: expected whole numbers"),
        (broken(count=COUNT + 0.5), ProtocolError, "count: expected whole numbers"),
        (broken(count=COUNT + 2.0**60), ProtocolError, "count: expected whole numbers"),
        (broken(count=COUNT * [0, 1, 1, 1, 1, 1]), ProtocolError, "expected sums of zero where no row was counted"),
        (broken(count=COUNT * 0, total=TOTAL * 0), ProtocolError, "expected sums of zero where no row was counted"),
        (broken(scatter=-SCATTER), ProtocolError, "scatter: expected a trace from 0"),
        (broken(scatter=SCATTER * 1e9), ProtocolError, "scatter: expected a trace from 0"),
        (broken(total=TOTAL * 1e200), ProtocolError, "total: expected sums of features"),
        (broken(total=TOTAL * 100), ProtocolError, r"\|total\|\^2 <= count \* trace"),
        (broken(scatter=np.where(np.arange(10) == 1, 1e5, SCATTER)), ProtocolError, "without negative eigenvalues"),
        (broken(total=TOTAL * 1.5), ProtocolError, "without negative eigenvalues"),
    ],
)
def test_impossible_sums_are_refused(arrays, error, message):
    with pytest.raises(error, match=message) as caught:
        RouterStatistics.from_arrays(arrays, dim=4, where="worker 7")
    assert str(caught.value).startswith("worker 7: ")


def test_the_width_can_be_taken_from_the_arrays():
    assert RouterStatistics.from_arrays(some_statistics(dim=5).to_arrays()).dim == 5
    with pytest.raises(ShapeMismatch, match=r"count: expected \(6,\)"):
        RouterStatistics.from_arrays({name: np.array(1.0) for name in ("count", "total", "scatter")})

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.routing.helpers import DIM, UNEVEN, random_gates, topologies
from tinylora.errors import ProtocolError, ShapeMismatch
from tinylora.routing.averaged_gates import average_gates, local_gate_steps
from tinylora.routing.gates import (
    DEFAULT_TAU,
    HISTOGRAM_EDGES,
    N_BINS,
    TAU_RANGE,
    Gate,
    Gates,
    calibrate,
    drift,
    histogram,
    leaf_posteriors,
    read_histograms,
    solve_from_summary,
    solve_gates,
)
from tinylora.routing.statistics import PREFIXES, RouterStatistics, statistics_of, sum_statistics
from tinylora.tree import Topology, ancestors

RIDGE = 1e-3


def leaf_rows(leaf: str, n: int, dim: int = DIM, seed: int = 0):
    """Rows around a centre of the leaf's own, with its own spread."""
    generator = np.random.default_rng([seed, int("1" + leaf, 2)])
    centre, spread = generator.normal(size=dim) / 2, generator.normal(size=(dim, dim)) / 4
    return centre + generator.normal(size=(n, dim)) @ spread, generator.choice(PREFIXES, n)


def centralised(rows: dict[str, np.ndarray], topology: Topology, ridge: float = RIDGE):
    """What somebody who holds all rows would fit: written from the rows alone."""
    dim = next(iter(rows.values())).shape[1]
    covariance = np.zeros((dim, dim))
    for block in rows.values():
        centred = block - block.mean(axis=0)
        covariance += sum(np.outer(row, row) for row in centred) / len(block) / len(rows)
    fitted = {}
    for node in topology.inner:
        left = [block.mean(axis=0) for leaf, block in rows.items() if leaf.startswith(node + "0")]
        right = [block.mean(axis=0) for leaf, block in rows.items() if leaf.startswith(node + "1")]
        middle_left, middle_right = sum(left) / len(left), sum(right) / len(right)
        spread = covariance + ridge * np.eye(dim)
        for side, middle in ((left, middle_left), (right, middle_right)):
            for mean in side:
                spread = spread + 0.5 * np.outer(mean - middle, mean - middle) / len(side)
        w = np.linalg.inv(spread) @ (middle_right - middle_left)
        fitted[node] = (w, -w @ (middle_left + middle_right) / 2)
    return fitted


def largest_difference(a: Gates, b: Gates) -> float:
    assert a.nodes.keys() == b.nodes.keys()
    pairs = [(a.nodes[node], b.nodes[node]) for node in a.nodes]
    return max([0.0, *(max(np.abs(x.w - y.w).max(), abs(x.b - y.b), abs(x.tau - y.tau)) for x, y in pairs)])


def same_bits(a: Gates, b: Gates) -> bool:
    return a.nodes.keys() == b.nodes.keys() and largest_difference(a, b) == 0


# --- from statistics -------------------------------------------------------------------------------------------------


@given(topologies(), st.integers(0, 10_000), st.integers(1, 5))
def test_gates_from_sums_are_those_of_the_pooled_rows(topology, seed, n_workers):
    """Any tree, any split of the rows over workers, any number of workers on a leaf."""
    generator = np.random.default_rng(seed)
    rows, sums = {}, {}
    for leaf in topology.leaves:
        rows[leaf], lengths = leaf_rows(leaf, int(generator.integers(30, 60)), seed=seed)
        owner = generator.integers(n_workers, size=len(rows[leaf]))
        parts = {f"w{k}/v1": statistics_of(rows[leaf][owner == k], lengths[owner == k]) for k in range(n_workers)}
        sums[leaf] = sum_statistics(parts)
    solved = solve_gates(sums, topology)
    assert set(solved.nodes) == set(topology.inner) and solved.dim == DIM
    for node, (w, b) in centralised(rows, topology).items():
        assert np.abs(solved.nodes[node].w - w).max() < 1e-10 and abs(solved.nodes[node].b - b) < 1e-10


@dataclass(frozen=True, eq=False)
class Summarised:
    """What a bundle keeps of sums."""

    counts: dict[str, float]
    means: dict[str, np.ndarray]
    covariance: np.ndarray


@given(topologies(), st.integers(0, 10_000), st.integers(0, 2))
def test_gates_from_a_summary_are_those_of_the_sums(topology, seed, n_silent):
    """Any tree; leaves of whom nothing is known are left out of both."""
    sums = {leaf: statistics_of(*leaf_rows(leaf, 40, seed=seed)) for leaf in topology.leaves}
    sums = dict(list(sums.items())[: max(1, len(sums) - n_silent)])
    covariance = np.mean([item.covariance() for item in sums.values()], axis=0)
    kept = Summarised({leaf: item.n for leaf, item in sums.items()}, {}, covariance)
    kept.means.update({leaf: item.mean() for leaf, item in sums.items()})
    assert largest_difference(solve_from_summary(kept, topology), solve_gates(sums, topology)) < 1e-10


def test_a_summary_of_nothing_solves_nothing():
    with pytest.raises(ValueError, match="at least one leaf with rows"):
        solve_from_summary(Summarised({"0": 0.0}, {"0": np.zeros(2)}, np.eye(2)), Topology.perfect(1))


def reports(topology: Topology, seed: int = 0) -> dict[str, dict[str, RouterStatistics]]:
    """Three workers on every leaf."""
    return {
        leaf: {f"w{k}/v1": statistics_of(*leaf_rows(leaf, 40, seed=seed + k)) for k in range(3)}
        for leaf in topology.leaves
    }


def solved(found: dict[str, dict[str, RouterStatistics]], topology: Topology) -> Gates:
    return solve_gates({leaf: sum_statistics(items) for leaf, items in found.items() if items}, topology)


@given(st.randoms(use_true_random=False))
def test_the_order_of_leaves_and_workers_changes_no_bit(random):
    straight = reports(UNEVEN)
    leaves = random.sample(list(straight), len(straight))
    mixed = {leaf: dict(random.sample(list(straight[leaf].items()), 3)) for leaf in leaves}
    assert same_bits(solved(straight, UNEVEN), solved(mixed, UNEVEN))


@given(st.sampled_from(UNEVEN.leaves), st.integers(0, 2))
def test_a_removed_worker_was_never_there(leaf, gone):
    everybody, never = reports(UNEVEN), reports(UNEVEN)
    removed = never[leaf].pop(f"w{gone}/v1")
    kept = {
        path: {k: v for k, v in items.items() if (path, k) != (leaf, f"w{gone}/v1")}
        for path, items in everybody.items()
    }
    assert same_bits(solved(kept, UNEVEN), solved(never, UNEVEN))
    sums = {path: sum_statistics(items) for path, items in everybody.items()}
    sums[leaf] = sums[leaf] - removed
    assert largest_difference(solve_gates(sums, UNEVEN), solved(never, UNEVEN)) < 1e-10


def test_a_repeated_report_changes_nothing():
    once, twice = reports(UNEVEN), reports(UNEVEN)
    twice["0"]["w1/v1"] = reports(UNEVEN)["0"]["w1/v1"]
    assert same_bits(solved(once, UNEVEN), solved(twice, UNEVEN))


def test_a_leaf_counts_once_however_much_text_it_has():
    sums = {leaf: statistics_of(*leaf_rows(leaf, 40)) for leaf in UNEVEN.leaves}
    large = sums | {"10": sums["10"] + sums["10"] + sums["10"]}
    assert largest_difference(solve_gates(sums, UNEVEN), solve_gates(large, UNEVEN)) < 1e-10


def test_one_number_by_hand():
    """Left rows -2 and 0, right rows 0 and 2: means -1 and 1, variance 1; w = 2 / 1.001, b = 0."""
    left = statistics_of(np.array([[-2.0], [0.0]]), np.array([8, 8]))
    right = statistics_of(np.array([[0.0], [2.0]]), np.array([8, 8]))
    gate = solve_gates({"0": left, "1": right}, Topology.perfect(1)).nodes[""]
    assert gate.w[0] == pytest.approx(2 / 1.001) and gate.b == 0 and gate.tau == DEFAULT_TAU


def test_leaves_without_rows_are_left_out():
    sums = {leaf: statistics_of(*leaf_rows(leaf, 40)) for leaf in ("0", "110", "111")}
    empty = sums | {"10": RouterStatistics.zero(DIM)}
    assert same_bits(solve_gates(sums, UNEVEN), solve_gates(empty, UNEVEN))


def test_text_on_one_side_only_draws_everything_there():
    gates = solve_gates({"00": statistics_of(*leaf_rows("00", 40))}, Topology.perfect(2))
    rows = np.random.default_rng(0).normal(size=(5, DIM)) * 30
    posterior = leaf_posteriors(gates, rows, Topology.perfect(2))
    assert np.allclose(posterior[:, 0], 1) and np.isfinite(posterior).all()
    assert not gates.nodes[""].w.any() and gates.nodes[""].b < 0
    assert gates.nodes["1"].b == 0 and not gates.nodes["1"].w.any()
    other = solve_gates({"11": statistics_of(*leaf_rows("11", 40))}, Topology.perfect(2))
    assert np.allclose(leaf_posteriors(other, rows, Topology.perfect(2))[:, 3], 1)


def test_sums_of_a_retired_leaf_count_above_it():
    sums = {leaf: statistics_of(*leaf_rows(leaf, 40)) for leaf in ("0", "1")}
    before, after = solve_gates(sums, Topology.perfect(1)), solve_gates(sums, Topology(("00", "01", "1")))
    assert np.array_equal(before.nodes[""].w, after.nodes[""].w) and before.nodes[""].b == after.nodes[""].b
    assert not after.nodes["0"].w.any() and after.nodes["0"].b == 0


def test_a_tree_of_one_leaf_has_no_gates():
    gates = solve_gates({"": statistics_of(*leaf_rows("", 40))}, Topology(("",)))
    assert gates.nodes == {} and gates.dim == DIM
    assert leaf_posteriors(gates, np.zeros((2, DIM)), Topology(("",))).tolist() == [[1.0], [1.0]]


def test_no_statistics_at_all():
    with pytest.raises(ValueError, match="at least one leaf with rows"):
        solve_gates({"0": RouterStatistics.zero(3)}, Topology.perfect(1))


def test_separated_leaves_are_found():
    rows = {leaf: leaf_rows(leaf, 200) for leaf in UNEVEN.leaves}
    apart = {leaf: (block + 2 * np.sign(block.mean(axis=0)), lengths) for leaf, (block, lengths) in rows.items()}
    gates = solve_gates({leaf: statistics_of(*both) for leaf, both in apart.items()}, UNEVEN, tau=10.0)
    for index, leaf in enumerate(UNEVEN.leaves):
        assert (leaf_posteriors(gates, apart[leaf][0], UNEVEN).argmax(axis=1) == index).mean() > 0.9


# --- selections, names, drift ----------------------------------------------------------------------------------------


def test_above_and_below():
    gates = random_gates(Topology.perfect(3))
    assert set(gates.above("010").nodes) == {"", "0", "01"}
    assert set(gates.above("").nodes) == set()
    assert set(gates.below("0").nodes) == {"0", "00", "01"}
    assert set(gates.below("010").nodes) == set()
    assert set(gates.below("").nodes) == set(gates.nodes)


@given(topologies(), st.integers(0, 100), st.booleans())
def test_arrays_round_trip(topology, seed, with_tau):
    gates = random_gates(topology, seed=seed, tau=0.7 if with_tau else 1.0)
    arrays = gates.to_arrays("weights_router.", with_tau=with_tau) | {"node.0.x": np.zeros(3)}
    read = Gates.from_arrays(arrays, "weights_router.", dim=DIM, with_tau=with_tau)
    assert same_bits(read, gates) and read.dim == DIM
    guessed = Gates.from_arrays(arrays, "weights_router.", with_tau=with_tau)
    assert guessed.dim == (DIM if topology.inner else 0)


def test_names_and_shapes():
    arrays = random_gates(Topology.perfect(1)).to_arrays()
    assert {name: array.shape for name, array in arrays.items()} == {
        "router..w": (DIM,),
        "router..b": (1,),
        "router..tau": (1,),
    }


GOOD = random_gates(Topology(("00", "01", "1"))).to_arrays()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"router.0.b": None}, ShapeMismatch, "router.0.b is missing"),
        ({"router.0.c": np.zeros(1)}, ShapeMismatch, "router.0.c is unexpected"),
        ({"router.02.w": np.zeros(DIM)}, ShapeMismatch, "digits 0 and 1, got '02'"),
        ({"router.0.w": np.zeros(DIM + 1)}, ShapeMismatch, r"router.0.w: expected \(6,\), got \(7,\)"),
        ({"router.0.tau": np.zeros(())}, ShapeMismatch, r"router.0.tau: expected \(1,\), got \(\)"),
        ({"router.0.w": np.zeros(DIM, dtype=np.float32)}, ShapeMismatch, "router.0.w: expected float64, got float32"),
        ({"router.0.w": np.full(DIM, np.nan)}, ProtocolError, "router.0.w: expected finite"),
        ({"router.0.b": np.array([np.inf])}, ProtocolError, "router.0.b: expected finite"),
        ({"router.0.tau": np.array([0.0])}, ProtocolError, "router.0.tau: expected a temperature above 0, got 0.0"),
    ],
)
def test_broken_gates_are_refused(change, error, message):
    arrays = {name: array for name, array in (GOOD | change).items() if array is not None}
    with pytest.raises(error, match=message):
        Gates.from_arrays(arrays, dim=DIM)


def test_drift():
    gates = random_gates(UNEVEN)
    assert drift(gates, None) == 1 and drift(gates, gates) == 0
    flipped = replace(gates, nodes={node: Gate(-gate.w, -gate.b, gate.tau) for node, gate in gates.nodes.items()})
    assert drift(flipped, gates) == pytest.approx(2)
    hotter = replace(gates, nodes={node: replace(gate, tau=2.0) for node, gate in gates.nodes.items()})
    assert drift(hotter, gates) == pytest.approx(0.5)
    assert drift(gates, gates.above("110")) == pytest.approx(0)
    assert drift(gates, gates.below("1")) == pytest.approx(1 / 3)
    assert drift(Gates({}, DIM), Gates({}, DIM)) == 0


# --- temperatures ----------------------------------------------------------------------------------------------------


def test_edges_cover_realistic_scores():
    assert len(HISTOGRAM_EDGES) == N_BINS + 1 and HISTOGRAM_EDGES[0] == pytest.approx(-60)
    assert np.allclose(HISTOGRAM_EDGES, -HISTOGRAM_EDGES[::-1])
    widths = np.diff(HISTOGRAM_EDGES)
    assert widths[N_BINS // 2] < 0.1 and widths.max() < 5


@given(st.lists(st.tuples(st.floats(-200, 200), st.booleans()), max_size=50))
def test_histogram_counts_each_score_in_its_bin(scored):
    scores = np.array([score for score, _ in scored], dtype=np.float64)
    is_right = np.array([right for _, right in scored], dtype=bool)
    counts = histogram(scores, is_right)
    expected = np.zeros((2, N_BINS))
    for score, right in scored:
        inside = [k for k, (low, high) in enumerate(pairwise(HISTOGRAM_EDGES)) if low <= score < high]
        expected[int(right), inside[0] if inside else (0 if score < 0 else N_BINS - 1)] += 1
    assert np.array_equal(counts, expected)


def scored(tau: float, n: int, *, spread: float = 4.0, seed: int = 0, share_right: float = 0.5) -> np.ndarray:
    """Histogram of scores whose true side is right with probability σ(tau · score)."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=n) * spread / max(tau, 0.1)
    is_right = generator.random(n) < 1 / (1 + np.exp(-tau * scores))
    kept = generator.random(n) < np.where(is_right, share_right, 1 - share_right)
    return histogram(scores[kept], is_right[kept])


def one_gate(*nodes: str) -> Gates:
    return Gates({node: Gate(np.ones(2), 0.0, DEFAULT_TAU) for node in nodes}, 2)


@pytest.mark.parametrize("tau", [0.1, 0.35, 1.0, 2.5])
def test_calibrate_recovers_a_known_temperature(tau):
    found = calibrate(one_gate(""), {"": scored(tau, 200_000)}).nodes[""]
    assert found.tau == pytest.approx(tau, rel=0.05)
    assert found.b == 0 and found.w.tolist() == [1, 1]


def test_sides_weigh_the_same_however_many_rows_they_have():
    found = calibrate(one_gate(""), {"": scored(0.5, 400_000, share_right=0.1)}).nodes[""].tau
    assert found == pytest.approx(0.5, rel=0.05)


def test_histograms_add_up():
    parts = [scored(0.6, 5_000, seed=seed) for seed in range(4)]
    scores_and_sides = calibrate(one_gate(""), {"": sum(parts[1:], parts[0])})
    backwards = calibrate(one_gate(""), {"": sum(parts[:-1], parts[-1])})
    assert scores_and_sides.nodes[""].tau == backwards.nodes[""].tau


def test_few_counts_take_the_trees_temperature_and_many_their_own():
    many = scored(1.5, 200_000)
    tau = {}
    for n in (4, 200_000):
        gates = calibrate(one_gate("", "0"), {"": many, "0": scored(0.2, n, seed=1)})
        tau[n] = gates.nodes["0"].tau
    assert tau[4] == pytest.approx(1.5, rel=0.1)
    assert tau[200_000] == pytest.approx(0.2, rel=0.1)


def test_a_node_without_both_sides_takes_the_trees():
    one_sided = scored(1.0, 1000) * np.array([[1.0], [0.0]])
    gates = calibrate(one_gate("", "0", "1"), {"": scored(1.0, 200_000), "0": one_sided})
    assert gates.nodes["0"].tau == gates.nodes["1"].tau == pytest.approx(1.0, rel=0.05)


def test_without_telling_histograms_nothing_changes():
    gates = one_gate("", "0")
    one_sided = scored(1.0, 100) * np.array([[1.0], [0.0]])
    assert calibrate(gates, {}) is gates
    assert calibrate(gates, {"": one_sided, "0": np.zeros((2, N_BINS)), "11": scored(1.0, 100)}) is gates


def test_scores_that_say_nothing_keep_the_default():
    flat = histogram(np.zeros(1000), np.arange(1000) % 2 == 0)
    assert calibrate(one_gate(""), {"": flat}).nodes[""].tau == pytest.approx(DEFAULT_TAU, rel=0.2)


@pytest.mark.parametrize("sign", [1, -1])
def test_temperatures_stay_in_bounds(sign):
    """All scores right, or all wrong: the likelihood alone would go to infinity, or to zero."""
    is_right = np.arange(100_000) % 2 == 0
    scores = np.where(is_right, 1e-1, -1e-1) * sign
    tau = calibrate(one_gate(""), {"": histogram(scores, is_right)}).nodes[""].tau
    assert TAU_RANGE[0] <= tau <= TAU_RANGE[1]
    assert tau > 5 if sign > 0 else tau < 0.05


def test_read_histograms():
    arrays = {"histogram.": scored(1.0, 100), "histogram.01": np.zeros((2, N_BINS)), "router.0.w": np.zeros(3)}
    assert sorted(read_histograms(arrays)) == ["", "01"]


@pytest.mark.parametrize(
    ("name", "array", "error", "message"),
    [
        ("histogram.2", np.zeros((2, N_BINS)), ShapeMismatch, "histogram.2: expected a path"),
        ("histogram.0", np.zeros((2, 3)), ShapeMismatch, r"expected float64 \(2, 128\), got float64 \(2, 3\)"),
        ("histogram.0", np.zeros((2, N_BINS), dtype=int), ShapeMismatch, "got int64"),
        ("histogram.0", np.full((2, N_BINS), np.nan), ProtocolError, "expected counts"),
        ("histogram.0", np.full((2, N_BINS), -1.0), ProtocolError, "expected counts"),
        ("histogram.0", np.full((2, N_BINS), 0.5), ProtocolError, "expected counts"),
    ],
)
def test_broken_histograms_are_refused(name, array, error, message):
    with pytest.raises(error, match=message):
        read_histograms({name: array})


# --- averaged weights ------------------------------------------------------------------------------------------------


def plain_steps(w, b, rows, is_right, steps, lr):
    """Row by row, the gradient of the side-balanced mean log loss."""
    n = {True: sum(is_right), False: len(is_right) - sum(is_right)}
    n_sides = sum(count > 0 for count in n.values())
    for _ in range(steps):
        slope_w, slope_b = np.zeros_like(w), 0.0
        for row, right in zip(rows, is_right, strict=True):
            error = (1 / (1 + np.exp(-(row @ w + b))) - right) / n[bool(right)] / n_sides
            slope_w, slope_b = slope_w + error * row, slope_b + error
        w, b = w - lr * slope_w, b - lr * slope_b
    return w, b


@pytest.mark.parametrize("leaves", [["110"] * 20, ["0"] * 5 + ["10"] * 10 + ["111"] * 5])
def test_local_steps_are_plain_logistic_regression(leaves):
    gates, rows = random_gates(UNEVEN, tau=0.5), np.random.default_rng(0).normal(size=(20, DIM))
    trained = local_gate_steps(gates, rows, leaves, UNEVEN, 7, 0.3)
    assert set(trained.nodes) == {node for leaf in leaves for node in ancestors(leaf)}
    for node, gate in trained.nodes.items():
        here = [index for index, leaf in enumerate(leaves) if leaf.startswith(node)]
        is_right = [leaves[index][len(node)] == "1" for index in here]
        before = gates.nodes[node]
        w, b = plain_steps(before.w * 0.5, before.b * 0.5, rows[here], is_right, 7, 0.3)
        assert np.allclose(gate.w, w, atol=1e-12) and gate.b == pytest.approx(b) and gate.tau == 1


def test_no_steps_or_a_tree_of_one_leaf():
    gates = random_gates(UNEVEN)
    kept = local_gate_steps(gates, np.ones((1, DIM)), ["0"], UNEVEN, 0, 0.1)
    assert same_bits(kept, gates.above("0"))
    assert local_gate_steps(Gates({}, DIM), np.ones((1, DIM)), [""], Topology(("",)), 5, 0.1).nodes == {}


def of(value: float, *nodes: str) -> Gates:
    return Gates({node: Gate(np.full(2, float(value)), float(value), 1.0) for node in nodes}, 2)


OLD = of(1.0, "", "0", "1")
FOUR = Topology.perfect(2)


def test_both_sides_weigh_the_same():
    """Three workers say 4 on the left of the root, one says 8 on the right: 6, not 5."""
    said = {
        ("a", "00"): of(4, "", "0"),
        ("b", "00"): of(4, "", "0"),
        ("c", "01"): of(4, "", "0"),
        ("d", "10"): of(8, ""),
    }
    gates = average_gates(said, FOUR, OLD)
    assert gates.nodes[""].w.tolist() == [6, 6] and gates.nodes[""].b == 6
    assert gates.nodes["0"].b == 4


def test_a_side_without_contributors_keeps_its_half_of_the_old():
    gates = average_gates({("a", "00"): of(5, "", "0")}, FOUR, OLD)
    assert gates.nodes[""].b == gates.nodes["0"].b == 3  # (5 + 1) / 2
    assert gates.nodes["1"].b == 1


def test_nobody_contributed():
    assert same_bits(average_gates({}, FOUR, OLD), OLD)
    assert average_gates({}, FOUR, Gates({}, 2)).nodes["0"].w.tolist() == [0, 0]


def test_who_holds_a_subtree_speaks_for_both_sides_inside_and_for_one_above():
    gates = average_gates({("a", "0"): of(5, "", "0")}, FOUR, OLD)
    assert gates.nodes["0"].b == 5 and gates.nodes[""].b == 3


def test_a_temperature_is_folded_in():
    warm = Gates({"": Gate(np.full(2, 4.0), 4.0, 0.5)}, 2)
    gates = average_gates({("a", "0"): warm, ("b", "1"): of(4, "")}, Topology.perfect(1), OLD)
    assert gates.nodes[""].b == 3 and gates.nodes[""].tau == 1


@given(st.randoms(use_true_random=False))
def test_averaging_does_not_see_the_order(random):
    said = {(f"w{k}", leaf): random_gates(UNEVEN, seed=k).above(leaf) for k, leaf in enumerate(UNEVEN.leaves * 3)}
    mixed = dict(random.sample(list(said.items()), len(said)))
    old = random_gates(UNEVEN, seed=99)
    assert same_bits(average_gates(said, UNEVEN, old), average_gates(mixed, UNEVEN, old))


def test_posteriors_are_the_product_of_gates():
    gates, rows = random_gates(UNEVEN, tau=0.4), np.random.default_rng(1).normal(size=(6, DIM))
    found = leaf_posteriors(gates, rows, UNEVEN)
    for row, posterior in zip(rows, found, strict=True):
        for leaf, p in zip(UNEVEN.leaves, posterior, strict=True):
            expected = 1.0
            for node in ancestors(leaf):
                right = 1 / (1 + np.exp(-0.4 * (gates.nodes[node].w @ row + gates.nodes[node].b)))
                expected *= right if leaf[len(node)] == "1" else 1 - right
            assert p == pytest.approx(expected)
    assert np.allclose(found.sum(axis=1), 1)

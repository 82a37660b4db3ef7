"""Sigmoid gates at the inner nodes: solved from summed statistics, their temperatures calibrated. Numpy only, float64.

    p(right at n | what was read) = σ( tau_n · (w_n · φ + b_n) )

A score is `w · φ + b`, without the temperature; right where it is >= 0. The other way to keep gates in step, by
averaged weights of locally trained ones, is `routing.averaged_gates`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from tinylora.errors import ProtocolError, ShapeMismatch
from tinylora.routing.statistics import RouterStatistics
from tinylora.tree import NodePath, Topology, ancestors, children, is_path, is_under

RIDGE = 1e-3
"""Added to the covariance's diagonal, in units of the embeddings' variance."""
DEFAULT_TAU = 0.35
"""Where nothing was measured: tokens of a document are no independent witnesses, and an untempered gate is too sure."""
TAU_RANGE = (0.02, 10.0)
EMPTY_SIDE_BIAS = 1e3
"""Score of a gate with text on one side only: certain at any temperature, and still finite."""
N_BINS = 128
MAX_SCORE = 60.0
MAX_SCORES = 65_536
"""In one worker's histogram of one gate: twice as many as a worker ever counts."""
HISTOGRAM_EDGES: Float[np.ndarray, " edge"] = np.sinh(np.linspace(-1.0, 1.0, N_BINS + 1) * np.arcsinh(MAX_SCORE))
"""Fine near zero, where a temperature decides, and coarse far out; scores beyond the ends count in the last bins."""
_CENTRES = np.sinh((np.arange(N_BINS) - (N_BINS - 1) / 2) * 2 / N_BINS * np.arcsinh(MAX_SCORE))
PRIOR_ROWS = 100.0
"""How hard a temperature is pulled to the tree's: a squared distance of log tau weighs as the loss of so many rows."""
_PARTS = ("w", "b", "tau")


@dataclass(frozen=True, eq=False)
class Gate:
    """One inner node's classifier."""

    w: Float[np.ndarray, " feature"]
    b: float
    tau: float

    def scores(self, features: Float[np.ndarray, "row feature"]) -> Float[np.ndarray, " row"]:
        """Right where >= 0; the temperature is not in it."""
        return features @ self.w + self.b


@dataclass(frozen=True, eq=False)
class Gates:
    """Gates by inner node."""

    nodes: dict[NodePath, Gate]
    dim: int
    """Numbers in a feature."""

    def below(self, path: NodePath) -> "Gates":
        """The gates of the subtree of `path`, its own included."""
        return replace(self, nodes={node: gate for node, gate in self.nodes.items() if is_under(node, path)})

    def above(self, path: NodePath) -> "Gates":
        """The gates on the way from the root to `path`, without its own."""
        return replace(self, nodes={node: self.nodes[node] for node in ancestors(path) if node in self.nodes})

    def to_arrays(self, prefix: str = "router.", *, with_tau: bool = True) -> dict[str, np.ndarray]:
        """Named float64 arrays: `<prefix><path>.w` (feature,), `.b` (1,) and, with temperatures, `.tau` (1,)."""
        arrays: dict[str, np.ndarray] = {}
        for node, gate in sorted(self.nodes.items()):
            arrays[f"{prefix}{node}.w"] = gate.w
            arrays[f"{prefix}{node}.b"] = np.array([gate.b])
            if with_tau:
                arrays[f"{prefix}{node}.tau"] = np.array([gate.tau])
        return arrays

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, Any], prefix: str = "router.", *, dim: int | None = None, with_tau: bool = True
    ) -> "Gates":
        """Gates that came over the network or from a file.

        Args:
            arrays: Named arrays; those without the prefix are left alone.
            prefix: Of the gates' names.
            dim: Numbers in a feature; None takes what the gates have, 0 without any.
            with_tau: Whether temperatures must be there. Without, they must not, and are 1.

        Raises:
            ShapeMismatch: An array is missing, unexpected, or of another shape.
            ProtocolError: A number is not finite, or a temperature is not positive.
        """
        names = sorted(name for name in arrays if name.startswith(prefix))
        parts = _PARTS if with_tau else _PARTS[:2]
        paths = sorted({name.removeprefix(prefix).partition(".")[0] for name in names})
        _check_names(names, {f"{prefix}{path}.{part}" for path in paths for part in parts}, paths)
        found = {name: _read(name, arrays[name]) for name in names}
        if dim is None:
            dim = found[f"{prefix}{paths[0]}.w"].size if paths else 0
        for name, array in found.items():
            _check_array(name, array, (dim,) if name.endswith(".w") else (1,))
        tau = {path: float(found[f"{prefix}{path}.tau"][0]) if with_tau else 1.0 for path in paths}
        nodes = {
            path: Gate(found[f"{prefix}{path}.w"], float(found[f"{prefix}{path}.b"][0]), tau[path]) for path in paths
        }
        return cls(nodes, dim)


def _check_names(names: Sequence[str], expected: set[str], paths: Sequence[NodePath]) -> None:
    wrong = next((path for path in paths if not is_path(path)), None)
    if wrong is not None:
        raise ShapeMismatch(f"gates: expected paths of digits 0 and 1, got {wrong!r}")
    missing, strange = sorted(expected - set(names)), sorted(set(names) - expected)
    if missing or strange:
        what = f"{missing[0]} is missing" if missing else f"{strange[0]} is unexpected"
        raise ShapeMismatch(f"gates: {what}; a gate is w, b and, where temperatures travel, tau")


def _read(name: str, array: Any) -> np.ndarray:
    found = np.asarray(array)
    if found.dtype != np.float64:
        raise ShapeMismatch(f"{name}: expected float64, got {found.dtype}")
    return found


def _check_array(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ShapeMismatch(f"{name}: expected {shape}, got {array.shape}")
    if not np.isfinite(array).all():
        raise ProtocolError(f"{name}: expected finite numbers, got NaN or infinity")
    if name.endswith(".tau") and not array[0] > 0:
        raise ProtocolError(f"{name}: expected a temperature above 0, got {array[0]}", rule="temperature")


# --- from statistics -------------------------------------------------------------------------------------------------


def solve_gates(
    statistics: Mapping[NodePath, RouterStatistics],
    topology: Topology,
    *,
    ridge: float = RIDGE,
    tau: float = DEFAULT_TAU,
) -> Gates:
    """Linear discriminants from sums: the gates that pooled texts would give, to rounding error.

    With μ the mean and Σ the covariance of each leaf's rows, and every leaf counting once, however much text it has:

        m_side = mean of the μ below that side
        S      = mean of Σ over all leaves + ½ Σ over sides of the scatter of their μ around m_side + ridge · I
        w      = S⁻¹ (m_right - m_left),   b = -w · (m_right + m_left) / 2

    A node with text on one side only sends everything there; with none at all its gate is zero, and undecided.

    Args:
        statistics: Sums by leaf. One without rows is left out, as if it were not named. A path above or below the
            topology's leaves counts at the nodes above it.
        topology: The tree.
        ridge: Added to the diagonal.
        tau: Temperature of every gate, until `calibrate` finds a better one.

    Raises:
        ValueError: No statistics have any rows.
    """
    known = {path: statistics[path] for path in sorted(statistics) if statistics[path].n > 0}
    if not known:
        raise ValueError("expected statistics of at least one leaf with rows in them, got none")
    means = {path: item.mean() for path, item in known.items()}
    within = np.mean([item.covariance() for item in known.values()], axis=0)
    return _solve_all(means, within, topology, ridge, tau)


@runtime_checkable
class Summary(Protocol):
    """What a bundle keeps of its leaves' statistics; `bundle.LeafStatistics` is one."""

    @property
    def counts(self) -> Mapping[NodePath, float]:
        """Rows by leaf."""
        ...

    @property
    def means(self) -> Mapping[NodePath, np.ndarray]:
        """Mean row by leaf, (feature,)."""
        ...

    @property
    def covariance(self) -> np.ndarray:
        """Within leaves, each of which counts once, (feature, feature)."""
        ...


def solve_from_summary(
    summary: Summary, topology: Topology, *, ridge: float = RIDGE, tau: float = DEFAULT_TAU
) -> Gates:
    """The gates that `solve_gates` makes of the sums that were summarised, to rounding error.

    Args:
        summary: Of the leaves. One with a count of 0 is left out, though not of the covariance.
        topology: The tree.
        ridge: Added to the diagonal.
        tau: Temperature of every gate.

    Raises:
        ValueError: No leaf has any rows.
    """
    means = {leaf: summary.means[leaf] for leaf in sorted(summary.counts) if summary.counts[leaf] > 0}
    if not means:
        raise ValueError("expected a summary of at least one leaf with rows in it, got none")
    return _solve_all(means, summary.covariance, topology, ridge, tau)


def _solve_all(
    means: Mapping[NodePath, np.ndarray], within: np.ndarray, topology: Topology, ridge: float, tau: float
) -> Gates:
    spread = within + ridge * np.eye(len(within))
    return Gates({node: _solve(node, means, spread, tau) for node in topology.inner}, len(within))


def _solve(node: NodePath, means: Mapping[NodePath, np.ndarray], spread: np.ndarray, tau: float) -> Gate:
    left, right = ([mean for path, mean in means.items() if is_under(path, child)] for child in children(node))
    if not left or not right:
        return Gate(np.zeros(len(spread)), EMPTY_SIDE_BIAS * (bool(right) - bool(left)), tau)
    centres = np.mean(left, axis=0), np.mean(right, axis=0)
    between = (_scatter(left, centres[0]) + _scatter(right, centres[1])) / 2
    w = np.linalg.solve(spread + between, centres[1] - centres[0])
    return Gate(w, float(-w @ (centres[0] + centres[1]) / 2), tau)


def _scatter(means: Sequence[np.ndarray], centre: np.ndarray) -> np.ndarray:
    apart = np.stack(means) - centre
    return apart.T @ apart / len(means)


def drift(new: Gates, old: Gates | None) -> float:
    """How far the gates moved: change over size, the mean over nodes. 0 is not at all, 1 from nothing, 2 reversed.

    A gate is taken as the function it is, tau · (w, b). One that only one version has counts as 1.
    """
    if old is None:
        return 1.0
    nodes = sorted({*new.nodes, *old.nodes})
    return float(np.mean([_change(new.nodes.get(node), old.nodes.get(node)) for node in nodes])) if nodes else 0.0


def _change(new: Gate | None, old: Gate | None) -> float:
    if new is None or old is None:
        return 1.0
    after, before = (gate.tau * np.append(gate.w, gate.b) for gate in (new, old))
    size = max(np.linalg.norm(after), np.linalg.norm(before))
    return float(np.linalg.norm(after - before) / size) if size > 0 else 0.0


# --- temperatures ----------------------------------------------------------------------------------------------------


def histogram(scores: Float[np.ndarray, " row"], is_right: Bool[np.ndarray, " row"]) -> Float[np.ndarray, "side bin"]:
    """How often each score occurred where the left side (row 0) and the right side (row 1) is true."""
    bins = np.clip(np.searchsorted(HISTOGRAM_EDGES, scores, side="right") - 1, 0, N_BINS - 1)
    return np.stack([np.bincount(bins[is_right == side], minlength=N_BINS) for side in (False, True)]).astype(
        np.float64
    )


def read_histograms(arrays: Mapping[str, Any], prefix: str = "histogram.") -> dict[NodePath, np.ndarray]:
    """Histograms by inner node, as they came over the network; arrays without the prefix are left alone.

    Raises:
        ShapeMismatch: A name is no path, or an array is of another shape.
        ProtocolError: A number is not a count.
    """
    found = {name: np.asarray(arrays[name]) for name in sorted(arrays) if name.startswith(prefix)}
    for name, array in found.items():
        if not is_path(name.removeprefix(prefix)):
            raise ShapeMismatch(f"{name}: expected a path of digits 0 and 1 after {prefix!r}")
        if array.dtype != np.float64 or array.shape != (2, N_BINS):
            raise ShapeMismatch(f"{name}: expected float64 (2, {N_BINS}), got {array.dtype} {array.shape}")
        if not np.isfinite(array).all() or (array < 0).any() or (array != np.floor(array)).any():
            raise ProtocolError(f"{name}: expected counts, whole numbers from 0 up, got others", rule="count")
        if array.sum() > MAX_SCORES:
            raise ProtocolError(
                f"{name}: expected at most {MAX_SCORES} scores, got {array.sum():.6g}", rule="many_counts"
            )
    return {name.removeprefix(prefix): array for name, array in found.items()}


def calibrate(gates: Gates, histograms: Mapping[NodePath, Float[np.ndarray, "side bin"]]) -> Gates:
    """The same gates with temperatures that fit held-out scores: least log loss, both sides weighing the same.

    First one temperature for the whole tree, drawn towards `DEFAULT_TAU`; then one for each node, drawn towards the
    tree's, the more the fewer its counts. A node of which only one side was seen takes the tree's. Without any
    histogram that has both sides, the gates stay as they are.

    Args:
        gates: As solved.
        histograms: Summed over workers, by inner node; see `histogram`. Those of other nodes are left alone.
    """
    telling = {node: histograms[node] for node in sorted(gates.nodes) if node in histograms}
    telling = {node: counts for node, counts in telling.items() if counts.sum(axis=1).all()}
    if not telling:
        return gates
    shared = _fit_tau(list(telling.values()), DEFAULT_TAU)
    tau = {node: _fit_tau([telling[node]], shared) if node in telling else shared for node in gates.nodes}
    return replace(gates, nodes={node: replace(gate, tau=tau[node]) for node, gate in gates.nodes.items()})


def _fit_tau(histograms: Sequence[np.ndarray], centre: float) -> float:
    """The temperature of least loss over several nodes, drawn towards `centre`."""

    def loss(log_tau: np.ndarray) -> np.ndarray:
        total = PRIOR_ROWS / 2 * (log_tau - np.log(centre)) ** 2
        for counts in histograms:
            n_left, n_right = counts.sum(axis=1)
            n_rows = 4 / (
                1 / n_left + 1 / n_right
            )  # as many rows as say this much when both sides have the same number
            total = total + n_rows * _balanced_loss(counts, np.exp(log_tau))
        return total

    return float(np.clip(np.exp(_minimise(loss, *np.log(TAU_RANGE))), *TAU_RANGE))


def _balanced_loss(
    counts: Float[np.ndarray, "side bin"], tau: Float[np.ndarray, " candidate"]
) -> Float[np.ndarray, " candidate"]:
    """Mean negative log likelihood of the true side at each temperature, half of it from either side."""
    logits = tau[:, None] * _CENTRES
    left, right = counts / counts.sum(axis=1, keepdims=True)
    return (np.logaddexp(0, logits) @ left + np.logaddexp(0, -logits) @ right) / 2


def _minimise(loss: Callable[[np.ndarray], np.ndarray], low: float, high: float) -> float:
    """The place of the least value: a grid, and again between the neighbours of its best point."""
    best = low
    for _ in range(5):
        grid = np.linspace(low, high, 65)
        index = int(np.argmin(loss(grid)))
        low, best, high = grid[max(index - 1, 0)], float(grid[index]), grid[min(index + 1, 64)]
    return best


# --- posteriors ------------------------------------------------------------------------------------------------------


def leaf_posteriors(
    gates: Gates, features: Float[np.ndarray, "row feature"], topology: Topology
) -> Float[np.ndarray, "row leaf"]:
    """Probability of every leaf, left to right, for every row: the product of the gates on its way."""
    log_p = np.zeros((len(features), len(topology.leaves)))
    for node in topology.inner:
        logits = gates.nodes[node].tau * gates.nodes[node].scores(features)
        for index, leaf in enumerate(topology.leaves):
            if is_under(leaf, node):
                log_p[:, index] -= np.logaddexp(0, -logits if leaf[len(node)] == "1" else logits)
    return np.exp(log_p)

"""Additive sums over a text's routing features: all that the gates need to know of it. Numpy only, float64.

Sums over the texts of several workers are the sums over their union, so gates solved from them are the gates that
would be fitted on the pooled texts, whoever took part and in whatever order. A worker is taken out by leaving its sums
out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from tinylora.errors import ProtocolError, ShapeMismatch

PREFIXES = (8, 16, 32, 64, 128, 256)
"""Lengths in tokens at which a document's running mean is taken: a gate serves short prefixes and long ones."""
FIELDS = ("count", "total", "scatter")
MAX_COUNT = 2.0**53
MAX_MEAN_SQUARE = 1e4
"""Of one number of a feature. Embeddings are in units of their standard deviation, so a mean of them is far below."""
_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class RouterStatistics:
    """Count, sum and second moment of feature rows: count and sum per prefix length, second moments pooled."""

    count: Float[np.ndarray, " prefix"]
    total: Float[np.ndarray, "prefix feature"]
    scatter: Float[np.ndarray, " packed"]
    """Σ φφᵀ, its upper triangle row by row."""

    @classmethod
    def zero(cls, dim: int) -> "RouterStatistics":
        """The sums over no text."""
        return cls(np.zeros(len(PREFIXES)), np.zeros((len(PREFIXES), dim)), np.zeros(dim * (dim + 1) // 2))

    @property
    def dim(self) -> int:
        """Numbers in a feature."""
        return self.total.shape[1]

    @property
    def n(self) -> float:
        """Rows that were summed, over all prefix lengths."""
        return float(self.count.sum())

    def mean(self) -> Float[np.ndarray, " feature"]:
        """Mean row; zeros over no text."""
        return self.total.sum(axis=0) / max(self.n, 1.0)

    def covariance(self) -> Float[np.ndarray, "feature feature"]:
        """Covariance of the rows around their mean, divided by their number; zeros over no text."""
        mean = self.mean()
        return _unpack(self.scatter, self.dim) / max(self.n, 1.0) - np.outer(mean, mean)

    def __add__(self, other: "RouterStatistics") -> "RouterStatistics":
        """Sums over both texts."""
        self._check_same_dim(other)
        return type(self)(self.count + other.count, self.total + other.total, self.scatter + other.scatter)

    def __sub__(self, other: "RouterStatistics") -> "RouterStatistics":
        """Sums without those of `other`, which are part of these; what is left of no rows at all is exactly zero.

        Raises:
            ValueError: `other` has rows that were never added.
        """
        self._check_same_dim(other)
        count = self.count - other.count
        if (count < 0).any():
            raise ValueError(f"expected at most {self.count} rows to subtract, got {other.count}")
        if not count.any():
            return type(self).zero(self.dim)
        total = np.where(count[:, None] > 0, self.total - other.total, 0.0)
        return type(self)(count, total, self.scatter - other.scatter)

    def __mul__(self, share: float) -> "RouterStatistics":
        """The sums over that share of the text: its mean and covariance stay, it weighs less beside others."""
        return type(self)(self.count * share, self.total * share, self.scatter * share)

    def _check_same_dim(self, other: "RouterStatistics") -> None:
        if self.dim != other.dim:
            raise ShapeMismatch(
                f"router statistics: expected features of {self.dim} numbers, got {other.dim}; "
                "both must come from the same routing feature"
            )

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The three arrays by name, as they travel."""
        return {"count": self.count, "total": self.total, "scatter": self.scatter}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, Any], *, dim: int | None = None, where: str = "router statistics"
    ) -> "RouterStatistics":
        """Sums that came over the network, if they can be the sums of any rows at all.

        Args:
            arrays: `count`, `total`, `scatter`.
            dim: Numbers in a feature; None takes what `total` has.
            where: Whose they are, for the message.

        Raises:
            ShapeMismatch: An array is missing, unexpected, or of another shape.
            ProtocolError: A number is not finite, a count is no count, or the moments contradict each other.
        """
        count, total, scatter = _check_shapes(arrays, dim, where)
        _check_counts(count, total, scatter, where)
        statistics = cls(count, total, scatter)
        _check_moments(statistics, where)
        return statistics


def sum_statistics(items: Mapping[str, RouterStatistics]) -> RouterStatistics:
    """Sums over all items, added in the order of their keys: the same items give the same bits in any order.

    One item is asked for at a time, so a mapping that reads them from disk never has all of them in memory.

    A key names a worker and the version of its shard, so that whoever reports twice counts once.

    Raises:
        ValueError: There are no items, so the size of a feature is unknown.
    """
    if not items:
        raise ValueError("expected at least one item to sum; RouterStatistics.zero(dim) is the sum of none")
    first, *others = sorted(items)
    total = items[first]
    for key in others:
        total = total + items[key]
    return total


def statistics_of(features: Float[np.ndarray, "row feature"], n_tokens: Int[np.ndarray, " row"]) -> RouterStatistics:
    """Sums over rows.

    Args:
        features: Running means.
        n_tokens: How many tokens each is the mean of; a row counts at the longest prefix that this reaches, fewer than
            the shortest count there.
    """
    rows = features.astype(np.float64)
    slots = np.maximum(np.searchsorted(PREFIXES, n_tokens, side="right") - 1, 0)
    is_in_slot = (slots[None, :] == np.arange(len(PREFIXES))[:, None]).astype(np.float64)
    packed = (rows.T @ rows)[np.triu_indices(rows.shape[1])]
    return RouterStatistics(is_in_slot.sum(axis=1), is_in_slot @ rows, packed)


def _unpack(packed: Float[np.ndarray, " packed"], dim: int) -> Float[np.ndarray, "feature feature"]:
    full = np.zeros((dim, dim))
    upper = np.triu_indices(dim)
    full[upper] = packed
    full.T[upper] = packed
    return full


# --- what came over the network --------------------------------------------------------------------------------------


def _check_shapes(arrays: Mapping[str, Any], dim: int | None, where: str) -> tuple[np.ndarray, ...]:
    if set(arrays) != set(FIELDS):
        raise ShapeMismatch(f"{where}: expected {', '.join(FIELDS)}, got {', '.join(sorted(arrays)) or 'nothing'}")
    found = {name: _as_float64(arrays[name], f"{where}: {name}") for name in FIELDS}
    width = dim if dim is not None else sum(found["total"].shape[1:])
    shapes = {"count": (len(PREFIXES),), "total": (len(PREFIXES), width), "scatter": (width * (width + 1) // 2,)}
    for name, shape in shapes.items():
        if found[name].shape != shape:
            raise ShapeMismatch(
                f"{where}: {name}: expected {shape}, got {found[name].shape}; this run's features have {width} numbers"
            )
        if not np.isfinite(found[name]).all():
            raise ProtocolError(f"{where}: {name}: expected finite numbers, got NaN or infinity")
    return tuple(found[name] for name in FIELDS)


def _as_float64(array: Any, where: str) -> np.ndarray:
    found = np.asarray(array)
    if found.dtype != np.float64:
        raise ShapeMismatch(f"{where}: expected float64, got {found.dtype}; sums of lower precision do not add up")
    return found


def _check_counts(count: np.ndarray, total: np.ndarray, scatter: np.ndarray, where: str) -> None:
    if (count < 0).any() or (count > MAX_COUNT).any() or (count != np.floor(count)).any():
        raise ProtocolError(f"{where}: count: expected whole numbers from 0 to 2^53, got {count}", rule="row_count")
    if total[count == 0].any() or (not count.any() and scatter.any()):
        raise ProtocolError(
            f"{where}: expected sums of zero where no row was counted, got others", rule="rows_without_count"
        )


def _check_moments(statistics: RouterStatistics, where: str) -> None:
    """Size, then Cauchy-Schwarz, then all of it: what is left of Σ φφᵀ without the means has no negative spread."""
    scatter = _unpack(statistics.scatter, statistics.dim)
    trace = float(np.trace(scatter))
    largest = statistics.n * statistics.dim * MAX_MEAN_SQUARE
    if not 0 <= trace <= largest:
        raise ProtocolError(
            f"{where}: scatter: expected a trace from 0 to {largest:.6g}, got {trace:.6g}", rule="trace"
        )
    seen = statistics.count > 0
    count, total = statistics.count[seen], statistics.total[seen]
    if np.abs(total).max(initial=0.0) > np.sqrt(MAX_COUNT * max(largest, 1.0)):
        raise ProtocolError(
            f"{where}: total: expected sums of features, got up to {np.abs(total).max():.6g}", rule="total"
        )
    bound = count * trace * (1 + _TOLERANCE) + _TOLERANCE
    if ((total**2).sum(axis=1) > bound).any():
        raise ProtocolError(
            f"{where}: total: expected |total|^2 <= count * trace of scatter at every prefix, got more", rule="moments"
        )
    within = scatter - total.T @ (total / count[:, None])
    lowest = float(np.linalg.eigvalsh(within)[0]) if statistics.dim else 0.0
    if lowest < -_TOLERANCE * max(trace, 1.0):
        raise ProtocolError(
            f"{where}: scatter: expected a covariance without negative eigenvalues, got {lowest:.6g}; "
            "these are not the sums of any text",
            rule="negative_spread",
        )

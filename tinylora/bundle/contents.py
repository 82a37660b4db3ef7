"""What a bundle holds once it is read: plain values, arrays and tensors; and what it keeps of its leaves' texts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float

from tinylora.adapters.spec import AdapterSpec
from tinylora.config import BaseFacts
from tinylora.errors import ProtocolError
from tinylora.routing.gates import Gates
from tinylora.routing.statistics import MAX_COUNT, MAX_MEAN_SQUARE, RouterStatistics
from tinylora.tensors import Tensors
from tinylora.tree import NodePath, Topology

StatisticsKind = Literal["leaf", "pooled", "none"]
_TOLERANCE = 1e-6
"""Of a covariance's lowest eigenvalue, in units of the mean square: sums that were added and taken out again."""


@dataclass(frozen=True, eq=False)
class LeafStatistics:
    """What a bundle tells of its leaves' texts, enough to solve gates anew: see `summarise`."""

    counts: dict[NodePath, float]
    means: dict[NodePath, Float[np.ndarray, " feature"]]
    covariances: dict[NodePath, Float[np.ndarray, " packed"]] = field(default_factory=dict)
    """Within each leaf, around its mean: the upper triangle row by row; see `unpack`. None where only `pooled` is."""
    pooled: Float[np.ndarray, "feature feature"] | None = None
    """The mean of them, where the single ones were left out, as in files of format 1."""

    @property
    def kind(self) -> StatisticsKind:
        """What a file says of them; a leaf can be taken out exactly only where each has its own covariance."""
        return "leaf" if self.pooled is None else "pooled"

    @property
    def covariance(self) -> Float[np.ndarray, "feature feature"]:
        """Within leaves, pooled: each leaf counts once."""
        if self.pooled is not None:
            return self.pooled
        return np.mean([self.covariance_of(leaf) for leaf in sorted(self.covariances)], axis=0)

    def covariance_of(self, leaf: NodePath) -> Float[np.ndarray, "feature feature"]:
        """That of one leaf's text; where none was kept for it, the pooled one."""
        if self.pooled is not None:
            return self.pooled
        return unpack(self.covariances[leaf], self.means[leaf].size)


@dataclass(frozen=True, eq=False)
class Bundle:
    """A tree ready to be used on its base."""

    run: str
    topology: Topology
    base: BaseFacts
    spec: AdapterSpec
    scale: float
    nodes: dict[NodePath, Tensors]
    """Adapters by node, as `adapters.lora` has them; usually of the leaves, never trained ones missing."""
    gates: Gates
    policy: str = "soft"
    projection: torch.Tensor | None = None
    """(feature, embedding), where the base's embeddings are wider than the routing feature."""
    statistics: LeafStatistics | None = None
    contributors: tuple[str, ...] = ()
    versions: dict[str, int] = field(default_factory=dict)
    """What the run calls this state: "topology", "router", "node.<path>"."""
    report: dict[str, Any] = field(default_factory=dict)
    shared: Tensors = field(default_factory=dict)
    """Frozen factors that all nodes have in common, by name such as `<projection>.lora_B`: in tied adapters alone."""
    data_notes: dict[NodePath, tuple[str, ...]] = field(default_factory=dict)
    """What the workers of each leaf said of their text."""
    licences: tuple[str, ...] = ()
    """Of the text that it was trained on, in the words of those who own it, such as "CC-BY-4.0"."""
    derived_from: tuple[str, ...] = ()
    """sha256 of the files that it was made of, in the order in which they were named."""


def summarise(statistics: Mapping[NodePath, RouterStatistics], *, pooled: bool = False) -> LeafStatistics | None:
    """What a bundle keeps of the summed statistics of its leaves; leaves without rows are left out.

    Args:
        statistics: By leaf.
        pooled: Keep the mean of the leaves' covariances in place of each: a file a quarter of a megabyte a leaf smaller
            (at 256 numbers), which tells less of each text, and from which no leaf can be taken out exactly.
    """
    seen = {leaf: statistics[leaf] for leaf in sorted(statistics) if statistics[leaf].n > 0}
    if not seen:
        return None
    covariances = {leaf: pack(item.covariance()) for leaf, item in seen.items()}
    kept = LeafStatistics(
        {leaf: float(item.n) for leaf, item in seen.items()},
        {leaf: item.mean() for leaf, item in seen.items()},
        covariances,
    )
    return LeafStatistics(kept.counts, kept.means, pooled=kept.covariance) if pooled else kept


def pack(full: Float[np.ndarray, "feature feature"]) -> Float[np.ndarray, " packed"]:
    """The upper triangle of a symmetric matrix, row by row."""
    return full[np.triu_indices(len(full))]


def unpack(packed: Float[np.ndarray, " packed"], dim: int) -> Float[np.ndarray, "feature feature"]:
    """The symmetric matrix that `pack` was given."""
    full = np.zeros((dim, dim))
    upper = np.triu_indices(dim)
    full[upper] = packed
    full.T[upper] = packed
    return full


def packed_size(dim: int) -> int:
    """Numbers of a packed covariance."""
    return dim * (dim + 1) // 2


def check_statistics(statistics: LeafStatistics, *, where: str) -> None:
    """Check that counts, means and covariances can be those of any text.

    Raises:
        ProtocolError: A count is none, a mean or a variance is beyond all features, or a covariance is none.
    """
    for leaf, count in statistics.counts.items():
        if not 0 < count <= MAX_COUNT:
            raise ProtocolError(
                f"{where}: tensor leaf.{leaf}.count: expected rows, up to 2^53, got {count:.6g}", rule="row_count"
            )
        dim = statistics.means[leaf].size
        if not np.abs(statistics.means[leaf]).max(initial=0.0) <= np.sqrt(MAX_MEAN_SQUARE * dim):
            raise ProtocolError(
                f"{where}: tensor leaf.{leaf}.mean: expected a mean of features, got numbers beyond any", rule="total"
            )
    if statistics.pooled is not None:
        _check_covariance(statistics.pooled, f"{where}: tensor router.covariance")
    for leaf in statistics.covariances:
        _check_covariance(statistics.covariance_of(leaf), f"{where}: tensor leaf.{leaf}.covariance")


def _check_covariance(full: np.ndarray, where: str) -> None:
    """No number beyond what features can have, symmetric, and no direction in which the spread is negative."""
    largest = len(full) * MAX_MEAN_SQUARE
    if not np.abs(full).max(initial=0.0) <= largest:
        raise ProtocolError(
            f"{where}: expected at most {largest:.6g}, the square of any feature, got more", rule="trace"
        )
    if not np.array_equal(full, full.T):
        raise ProtocolError(f"{where}: expected a symmetric matrix, got another", rule="symmetry")
    spare = _TOLERANCE * max(float(np.trace(full)), 1.0)
    try:
        np.linalg.cholesky(full + spare * np.eye(len(full)))
    except np.linalg.LinAlgError:
        raise ProtocolError(
            f"{where}: expected a covariance without negative eigenvalues; this is not that of any text",
            rule="negative_spread",
        ) from None

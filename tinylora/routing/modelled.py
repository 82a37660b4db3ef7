"""The temperature of a gate where no held-out scores are at hand: from the leaves' statistics alone. Numpy only.

A gate's score is linear in the feature, so a leaf's mean and covariance give the mean and variance of its scores. Taken
as normal, they say how often each score is to be expected on either side, and that is calibrated as counts are.
"""

import math
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from tinylora.routing.gates import HISTOGRAM_EDGES, Gate, Gates, calibrate
from tinylora.tree import NodePath, is_under

EXPECTED_ROWS = 2_000.0
"""How much the expected scores weigh against `gates.PRIOR_ROWS`, which draw a temperature towards the usual one."""


@runtime_checkable
class Moments(Protocol):
    """What a bundle keeps of its leaves' statistics; `bundle.LeafStatistics` is one."""

    @property
    def means(self) -> Mapping[NodePath, np.ndarray]:
        """Mean row by leaf, (feature,)."""
        ...

    def covariance_of(self, leaf: NodePath) -> np.ndarray:
        """Of one leaf's rows, (feature, feature)."""
        ...


def modelled_tau(node: NodePath, gate: Gate, moments: Moments) -> float:
    """The temperature of least expected loss, both sides weighing the same; the gate's own where a side is empty."""
    counts = expected_histogram(node, gate, moments) * EXPECTED_ROWS
    return calibrate(Gates({node: gate}, len(gate.w)), {node: counts}).nodes[node].tau


def expected_histogram(node: NodePath, gate: Gate, moments: Moments) -> Float[np.ndarray, "side bin"]:
    """How often each score is to be expected where the left side and the right side is true; each side sums to 1.

    Leaves of a side weigh the same. A side without leaves is all zeros.
    """
    sides = []
    for turn in "01":
        leaves = [leaf for leaf in sorted(moments.means) if is_under(leaf, node + turn)]
        parts = [_normal(gate, moments.means[leaf], moments.covariance_of(leaf)) for leaf in leaves]
        sides.append(np.mean(parts, axis=0) if parts else np.zeros(len(HISTOGRAM_EDGES) - 1))
    return np.stack(sides)


def _normal(gate: Gate, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Shares of a normal distribution of scores by bin; what lies beyond the ends is in the last bins."""
    centre = float(gate.w @ mean) + gate.b
    width = max(math.sqrt(max(float(gate.w @ covariance @ gate.w), 0.0)), 1e-9)
    below = [0.5 * math.erfc((centre - edge) / (width * math.sqrt(2))) for edge in HISTOGRAM_EDGES[1:-1]]
    return np.diff([0.0, *below, 1.0])

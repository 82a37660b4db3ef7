"""The way of a text through the gates, from its routing feature alone. Numpy only: no torch, no base.

`policy.Router` says the same of every token of a batch, and gives gradients; this is for one text at a time, where a
page, a command or a proxy asks which leaf it belongs to.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from tinylora.routing.decision import Policy
from tinylora.routing.gates import Gates
from tinylora.tree import NodePath, children

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class GatePass:
    """What one gate on the way says of the text."""

    node: NodePath
    right: float
    """Probability of the right side."""
    went: Literal["0", "1"]


def mean_row(rows: Float[np.ndarray, "vocab feature"], ids: Sequence[int]) -> Float[np.ndarray, " feature"]:
    """Mean over tokens of their rows of a table, in float64; zeros for no tokens.

    Only rows of tokens that occur are touched, so a table that is mapped from disk is read there alone.
    """
    tokens, counts = np.unique(np.asarray(ids, dtype=np.int64), return_counts=True)
    total = np.zeros(rows.shape[1], dtype=np.float64)
    for first in range(0, len(tokens), _ROWS_AT_ONCE):
        part = slice(first, first + _ROWS_AT_ONCE)
        total += counts[part] @ rows[tokens[part]].astype(np.float64)
    return total / max(len(ids), 1)


def way_of(gates: Gates, feature: Float[np.ndarray, " feature"]) -> tuple[GatePass, ...]:
    """From the root down, each gate deciding by its score."""
    passes: list[GatePass] = []
    node = ""
    while node in gates.nodes:
        right, turn = _judged(gates, node, feature)
        passes.append(GatePass(node, right, turn))
        node += turn
    return tuple(passes)


def posterior_of(gates: Gates, feature: Float[np.ndarray, " feature"]) -> dict[NodePath, float]:
    """Probability of every leaf below the gates: the product of what the gates on its way say."""
    found: dict[NodePath, float] = {}
    to_do = [("", 1.0)]
    while to_do:
        node, share = to_do.pop()
        if node not in gates.nodes:
            found[node] = share
            continue
        right, _ = _judged(gates, node, feature)
        to_do += zip(children(node), (share * (1 - right), share * right), strict=True)
    return found


def likeliest(posterior: Mapping[NodePath, float]) -> list[NodePath]:
    """The leaves, the most probable one first; equals by their paths."""
    return sorted(posterior, key=lambda leaf: (-posterior[leaf], leaf))


def n_deciding(policy: Policy, n_tokens: int) -> int | None:
    """How many of a text's first tokens the decision in force at its end was taken over; None: none was taken yet."""
    if policy.granularity == "token":
        return n_tokens
    n_seen = n_tokens // policy.size * policy.size if policy.granularity == "window" else policy.size
    return n_seen if 0 < n_seen <= n_tokens else None


def weights_of(posterior: Mapping[NodePath, float], path: NodePath, policy: Policy) -> dict[NodePath, float]:
    """What a policy makes of a way: weights of leaves, or of `elastic` that of the node where it stays.

    Args:
        posterior: Of all leaves.
        path: The leaf of hard decisions.
        policy: Its decision counts here, not how often it is taken.
    """
    if policy.decision == "soft":
        return dict(posterior)
    if policy.decision == "hard":
        return {path: 1.0}
    if policy.decision == "top2":
        best = likeliest(posterior)[:2]
        total = sum(posterior[leaf] for leaf in best)
        return {leaf: posterior[leaf] / total for leaf in best}
    levels = range(len(path), -1, -1)
    below = {path[:level]: sum(p for leaf, p in posterior.items() if leaf.startswith(path[:level])) for level in levels}
    return {next((node for node, share in below.items() if share > policy.threshold), ""): 1.0}


def _judged(gates: Gates, node: NodePath, feature: np.ndarray) -> tuple[float, Literal["0", "1"]]:
    """Probability of the right side, and the side that the gate decides for."""
    gate = gates.nodes[node]
    score = float(feature @ gate.w) + gate.b
    return _sigmoid(gate.tau * score), "1" if score >= 0 else "0"


def _sigmoid(logit: float) -> float:
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    odds = math.exp(max(logit, -700.0))
    return odds / (1 + odds)

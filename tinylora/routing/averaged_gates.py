"""Gates kept in step by averaged weights of locally trained ones: the baseline to beat. Numpy only, float64.

Also for gates trained by gradient through the mixture. `routing.gates` solves them from statistics instead.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from tinylora.routing.clipping import draw_in
from tinylora.routing.gates import Gate, Gates
from tinylora.tree import NodePath, Topology, children, is_under


def local_gate_steps(
    gates: Gates,
    features: Float[np.ndarray, "row feature"],
    leaf_of_row: Sequence[NodePath],
    topology: Topology,
    steps: int,
    lr: float,
) -> Gates:
    """Logistic regression by gradient steps from the present gates, on the rows of one worker.

    Only gates that some row passes are trained and returned, with a temperature of 1 (the present one is folded in).
    Where a worker has rows on both sides of a node, both weigh the same.

    Args:
        gates: To begin with.
        features: Rows.
        leaf_of_row: Leaf that each row belongs to.
        topology: The tree.
        steps: Of plain gradient descent on all rows.
        lr: Learning rate.
    """
    nodes = {}
    for node in topology.inner:
        is_here = np.array([leaf != node and is_under(leaf, node) for leaf in leaf_of_row], dtype=bool)
        if is_here.any():
            turns = [leaf[len(node)] == "1" for leaf, here in zip(leaf_of_row, is_here, strict=True) if here]
            nodes[node] = _logistic_steps(gates.nodes[node], features[is_here], np.array(turns), steps, lr)
    return Gates(nodes, gates.dim)


def _logistic_steps(gate: Gate, rows: np.ndarray, is_right: np.ndarray, steps: int, lr: float) -> Gate:
    w, b = gate.w * gate.tau, gate.b * gate.tau
    n_sides = len(set(is_right.tolist()))
    share = np.where(is_right, 1 / max(1, is_right.sum()), 1 / max(1, (~is_right).sum())) / n_sides
    for _ in range(steps):
        error = share * (_sigmoid(rows @ w + b) - is_right)
        w, b = w - lr * error @ rows, float(b - lr * error.sum())
    return Gate(w, b, 1.0)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -logits))


def average_gates(
    contributions: Mapping[tuple[str, NodePath], Gates], topology: Topology, old: Gates, *, clip: float = 0.0
) -> Gates:
    """Node by node the mean of both sides' contributions, each side weighing one half.

    A side without a contributor keeps its half at the old gate: the other side alone would push the gate away from
    those who are absent. A contributor that holds the node itself, or one above it, speaks for both sides. Sums run in
    the order of (worker, path).

    Args:
        contributions: Gates by (worker, path of the node that it holds).
        topology: The tree.
        old: The present gates; one that is missing there counts as zero.
        clip: Longest way from the present gate, and from where most go, in medians over a side's contributors; see
            `clipping.draw_in`. 0 is no limit.
    """
    zero = Gate(np.zeros(old.dim), 0.0, 1.0)
    nodes = {node: _average(node, contributions, old.nodes.get(node, zero), clip) for node in topology.inner}
    return Gates(nodes, old.dim)


def _average(node: NodePath, contributions: Mapping[tuple[str, NodePath], Gates], old: Gate, clip: float) -> Gate:
    sides = []
    for child in children(node):
        found = [
            gates.nodes[node]
            for (_, path), gates in sorted(contributions.items(), key=lambda item: item[0])
            if node in gates.nodes and (is_under(path, child) or is_under(node, path))
        ]
        sides.append(_mean_function(found or [old], old, clip))
    return _as_gate((sides[0] + sides[1]) / 2)


def _mean_function(gates: Sequence[Gate], old: Gate, clip: float) -> np.ndarray:
    """Mean of tau · (w, b), added up in the given order; with `clip`, of what is left of those far from the others."""
    functions = [_function(gate) for gate in gates]
    if clip and len(functions) > 1:
        start = _function(old)
        moves = [function - start for function in functions]
        drawn = draw_in(moves, np.zeros_like(start), clip)
        if drawn is not None:
            functions = [drawn.of(number, move) + start for number, move in enumerate(moves)]
    total = np.zeros(len(functions[0]))
    for function in functions:
        total += function
    return total / len(functions)


def _function(gate: Gate) -> np.ndarray:
    return gate.tau * np.append(gate.w, gate.b)


def _as_gate(function: np.ndarray) -> Gate:
    return Gate(function[:-1].copy(), float(function[-1]), 1.0)

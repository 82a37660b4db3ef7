"""Scoring another worker's update on one's own held-out text: forward passes alone, nothing is trained.

An update is scored on that part of the text which is most like its leaf's own, as far as the gates can tell, and every
token goes through the adapters under scrutiny, whatever the gates would choose. What the gates do make of all of the
held-out text is told beside it: shares by leaf, and scores at the gates on the way to the worker's own node.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float64

from tinylora.model import TreeModel
from tinylora.protocol.documents import ProbeResult
from tinylora.routing.features import RoutingFeature
from tinylora.routing.gates import Gates, histogram
from tinylora.shards import Document
from tinylora.tensors import Tensors
from tinylora.training.batch import Batch
from tinylora.training.fit import Fit
from tinylora.training.out_of_memory import Fitting
from tinylora.training.sending import running_rows
from tinylora.tree import NodePath, Topology, ancestors

Rows = Float64[np.ndarray, "position feature"]


def features_of(feature: RoutingFeature, documents: Sequence[Document]) -> Rows:
    """What the router sees of a text, at thinned positions of as many documents as are worth it."""
    found = [np.zeros((0, feature.dim)), *(rows for rows, _ in running_rows(feature, documents))]
    return np.concatenate(found)


def shares(features: Rows, gates: Gates, topology: Topology) -> dict[NodePath, float]:
    """By leaf: the share of the positions that the gates send there, each deciding for one side; a tie is halved."""
    if not len(features):
        return {}
    is_right = {node: _sides(features, gates, node) for node in topology.inner}
    found = {}
    for leaf in topology.leaves:
        arriving = np.ones(len(features))
        for node in ancestors(leaf):
            arriving = arriving * (is_right[node] if leaf[len(node)] == "1" else 1 - is_right[node])
        found[leaf] = float(arriving.mean())
    return found


def _sides(features: Rows, gates: Gates, node: NodePath) -> Float64[np.ndarray, " position"]:
    """1 for right, 0 for left, a half where the gate knows neither."""
    gate = gates.nodes.get(node)
    return np.full(len(features), 0.5) if gate is None else (np.sign(gate.scores(features)) + 1) / 2


def histograms(features: Rows, gates: Gates, home: NodePath) -> Tensors:
    """Tensors `histogram.<inner>`: the scores of a text that belongs to one node, at the gates on the way to it."""
    return {
        f"histogram.{node}": torch.from_numpy(
            histogram(gate.scores(features), np.full(len(features), home[len(node)] == "1"))
        )
        for node, gate in sorted(gates.above(home).nodes.items())
    }


def score(
    model: TreeModel,
    rows: Batch,
    current: Mapping[NodePath, Tensors],
    candidate: Mapping[NodePath, Tensors],
    mass: Mapping[NodePath, float],
    fitting: Fitting | None = None,
) -> ProbeResult:
    """Sums of nats over a few windows: without the adapters under scrutiny, with them as they stand, and as proposed.

    Args:
        model: With the adapters above them loaded, and theirs still empty.
        rows: Windows of tokens.
        current: Their present states; empty where there is no version of them yet, which adds nothing.
        candidate: The states that are proposed.
        mass: Told beside the sums, as it is.
        fitting: How many windows are computed at once; None is all of them.
    """
    fitting = fitting or Fitting(Fit())
    parent = _summed(model, rows, fitting)
    present = _summed(_loaded(model, current), rows, fitting) if current else parent
    proposed = _summed(_loaded(model, candidate), rows, fitting)
    return ProbeResult(
        tokens=rows.n_targets,
        nll_parent=parent,
        nll_current=present,
        nll_candidate=proposed,
        mass=dict(mass),
    )


def _loaded(model: TreeModel, states: Mapping[NodePath, Tensors]) -> TreeModel:
    for node, state in states.items():
        model.load_node(node, state)
    return model


def _summed(model: TreeModel, rows: Batch, fitting: Fitting) -> float:
    return fitting.attempt(len(rows), lambda fit: sum(_sums(model, rows, fit.windows_at_once(len(rows)))))


@torch.no_grad()
def _sums(model: TreeModel, rows: Batch, windows: int) -> list[float]:
    """Nats of the targets in each part of the windows."""
    found = []
    for part in rows.parts(windows):
        nll, _ = model.token_nll(part.ids, documents=part.documents, is_target=part.is_target)
        found.append(float(nll.double().sum()))
    return found

"""What a worker tells of its text, besides adapters: sums for the gates, scores for their temperatures, trained gates.

Sums and scores are linear in token counts; no text leaves the machine.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float64

from tinylora.routing.features import RoutingFeature
from tinylora.routing.gates import Gates, histogram
from tinylora.routing.statistics import PREFIXES, RouterStatistics
from tinylora.shards import Document
from tinylora.tensors import Tensors
from tinylora.tree import NodePath, Topology, is_under

HISTOGRAM_STRIDE = 4
"""Of the positions of a document, every fourth is scored: neighbours say nearly the same."""
MAX_DOCUMENT_TOKENS = 4096
MAX_HISTOGRAM_TOKENS = 32_768
"""Held-out tokens that are read for histograms; a unit must not become an evaluation."""
MAX_ROW_DOCUMENTS = 256
"""Documents whose prefixes are the rows of local gate steps."""


def statistics_tensors(statistics: Mapping[NodePath, RouterStatistics]) -> Tensors:
    """Tensors `statistics.<path>.{count,total,scatter}`."""
    return {
        f"statistics.{path}.{part}": torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64))
        for path, sums in statistics.items()
        for part, array in sums.to_arrays().items()
    }


def histogram_tensors(
    gates: Gates, feature: RoutingFeature, documents: Sequence[Document], leaf_of: Sequence[NodePath]
) -> Tensors:
    """Tensors `histogram.<inner>`: scores of held-out text at each gate on the way to its leaf, by true side."""
    total: dict[NodePath, Float64[np.ndarray, "side bin"]] = {}
    for features, number in running_rows(feature, documents):
        leaf = leaf_of[number]
        for node, gate in gates.above(leaf).nodes.items():
            is_right = np.full(len(features), leaf[len(node)] == "1")
            counts = histogram(gate.scores(features), is_right)
            total[node] = total[node] + counts if node in total else counts
    return {f"histogram.{node}": torch.from_numpy(counts) for node, counts in sorted(total.items())}


def running_rows(
    feature: RoutingFeature, documents: Sequence[Document]
) -> Iterator[tuple[Float64[np.ndarray, "position feature"], int]]:
    """Running means from each document's start at thinned positions, until enough tokens were read; its number."""
    n_left = MAX_HISTOGRAM_TOKENS
    for number, document in enumerate(documents):
        if n_left <= 0:
            return
        tokens = document.tokens[: min(n_left, MAX_DOCUMENT_TOKENS)]
        n_left -= len(tokens)
        if len(tokens):
            yield running_means(feature, tokens)[::HISTOGRAM_STRIDE], number


def prefix_rows(
    feature: RoutingFeature, documents: Sequence[Document], leaf_of: Sequence[NodePath]
) -> tuple[Float64[np.ndarray, "row feature"], list[NodePath]]:
    """Running means at the prefix lengths of the statistics, and the leaf of each row, for some documents of all."""
    rows, leaves = [np.zeros((0, feature.dim))], []
    step = -(-len(documents) // MAX_ROW_DOCUMENTS) if documents else 1
    for document, leaf in zip(documents[::step], leaf_of[::step], strict=True):
        places = [prefix - 1 for prefix in PREFIXES if prefix <= len(document.tokens)]
        rows.append(running_means(feature, document.tokens[: PREFIXES[-1]])[places])
        leaves += [leaf] * len(places)
    return np.concatenate(rows), leaves


@torch.no_grad()
def running_means(feature: RoutingFeature, tokens: Sequence[int] | np.ndarray) -> Float64[np.ndarray, "token feature"]:
    """The routing feature of a document at each of its tokens, as the router sees it."""
    ids = torch.from_numpy(np.asarray(tokens, dtype=np.int64))[None].to(feature.table.device)
    return feature(ids)[0][0].double().cpu().numpy()


def gate_tensors(gates: Gates) -> Tensors:
    """Tensors `weights_router.<path>.{w,b}`; a temperature is folded in, because weights are averaged without one."""
    tensors: Tensors = {}
    for node, gate in sorted(gates.nodes.items()):
        tensors[f"weights_router.{node}.w"] = torch.from_numpy(gate.w * gate.tau)
        tensors[f"weights_router.{node}.b"] = torch.tensor([gate.b * gate.tau], dtype=torch.float64)
    return tensors


def gates_in_line(topology: Topology, node: NodePath) -> Iterable[NodePath]:
    """Inner nodes above `node` and in its subtree: those that a unit on it carries."""
    return [inner for inner in topology.inner if is_under(inner, node) or is_under(node, inner)]

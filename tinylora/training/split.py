"""Whose text is whose: documents dealt to the leaves of a subtree, and the documents nearest to an adopted leaf.

All of it is a pure function of document features, so that a worker that was restarted deals its documents as before.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64

from tinylora.errors import DataError
from tinylora.reading.documents import Document, sizes_of, take
from tinylora.routing.gates import Gates
from tinylora.routing.halves import balanced_halves
from tinylora.tree import NodePath, Topology, children

PIECE_TOKENS = 256
"""Length of the pieces that documents are cut into where they are too few or too uneven to be dealt out whole."""
DOCUMENTS_PER_LEAF = 8
LARGEST_SHARE = 0.25
"""Of a leaf's tokens that a single document may make up."""
ADOPTED_SHARE = 0.25
"""Of the documents of a worker that trains a leaf of other text than its own: the nearest quarter."""


def pieces(documents: Sequence[Document], n_leaves: int) -> list[Document]:
    """Documents as they are; cut into pieces where they are too few or too uneven for `n_leaves` leaves."""
    sizes = sizes_of(documents)
    is_enough = len(documents) >= DOCUMENTS_PER_LEAF * n_leaves
    if is_enough and sizes.max() * n_leaves <= LARGEST_SHARE * sizes.sum():
        return list(documents)
    return [piece for document in documents for piece in _cut(document)]


def _cut(document: Document) -> list[Document]:
    tokens, mask, share = document.tokens, document.is_target, document.n_bytes / max(1, len(document.tokens))
    cuts = [slice(start, start + PIECE_TOKENS) for start in range(0, len(tokens), PIECE_TOKENS)]
    return [
        Document(
            f"{document.name}#{n}", tokens[cut], round(share * len(tokens[cut])), None if mask is None else mask[cut]
        )
        for n, cut in enumerate(cuts)
    ]


def deal(
    features: Float64[np.ndarray, "document feature"], n_tokens: Int64[np.ndarray, " document"], topology: Topology
) -> list[NodePath]:
    """A leaf for every document: node by node, those that reach it are cut in two like halves of equal tokens.

    Raises:
        DataError: Too few documents, so that a leaf got none.
    """
    leaf_of: list[NodePath] = [""] * len(features)

    def go_down(node: NodePath, members: Int64[np.ndarray, " member"]) -> None:
        if node in topology.leaves:
            for index in members.tolist():
                leaf_of[index] = node
            return
        is_right = balanced_halves(features[members], n_tokens[members].astype(np.float64))
        left, right = children(node)
        go_down(left, members[~is_right])
        go_down(right, members[is_right])

    go_down("", np.arange(len(features)))
    if len(set(leaf_of)) < len(topology.leaves):
        raise DataError(
            f"shard of {n_tokens.sum()} training tokens: too little text to deal to {len(topology.leaves)} leaves; add "
            "text"
        )
    return leaf_of


def by_gates(features: Float64[np.ndarray, "document feature"], gates: Gates, topology: Topology) -> list[NodePath]:
    """The leaf that each document reaches when every gate decides hard."""
    return [_descend(row, gates, topology) for row in features]


def _descend(row: Float64[np.ndarray, " feature"], gates: Gates, topology: Topology) -> NodePath:
    node = ""
    while node not in topology.leaves:
        gate = gates.nodes[node]
        node = children(node)[int(row @ gate.w + gate.b >= 0)]
    return node


def nearest(
    documents: Sequence[Document],
    features: Float64[np.ndarray, "document feature"],
    gates: Gates,
    node: NodePath,
    *,
    min_tokens: int,
) -> Sequence[Document]:
    """The quarter of the documents that the gates would most likely send to `node`, in the order in which they stand.

    More than a quarter where that is less than `min_tokens`.
    """
    log_p = np.zeros(len(documents))
    for level, turn in enumerate(node):
        gate = gates.nodes.get(node[:level])
        if gate is not None:
            logits = gate.tau * gate.scores(features)
            log_p -= np.logaddexp(0.0, -logits if turn == "1" else logits)
    order = np.argsort(-log_p, kind="stable")
    n_tokens = np.cumsum(sizes_of(documents)[order])
    n_enough = int(np.searchsorted(n_tokens, min_tokens)) + 1
    n_kept = max(n_enough, round(ADOPTED_SHARE * len(documents)))
    return take(documents, np.sort(order[:n_kept]))

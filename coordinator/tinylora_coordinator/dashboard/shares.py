"""Where the text goes: shares of the leaves, their sums at the inner nodes, and how even they are. Pure."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from tinylora.tree import NodePath, is_under


class Holder(Protocol):
    """What is asked of a worker."""

    shard_tokens: int
    node: NodePath | None


def measured_shares(
    leaves: Sequence[NodePath], told: Iterable[tuple[float, Mapping[NodePath, float]]]
) -> dict[NodePath, float] | None:
    """Share of each leaf, the mean over workers by their weight; None where nobody measured.

    Args:
        leaves: Of the tree.
        told: A worker's weight, and the share of its held-out text by leaf.
    """
    sums = dict.fromkeys(leaves, 0.0)
    for weight, mass in told:
        for leaf, share in mass.items():
            if leaf in sums:
                sums[leaf] += weight * share
    return _normalised(sums)


def text_shares(leaves: Sequence[NodePath], holders: Iterable[Holder]) -> dict[NodePath, float] | None:
    """Share of each leaf by the text of those who hold it; who holds a subtree counts equally for all its leaves."""
    sums = dict.fromkeys(leaves, 0.0)
    below: dict[NodePath, list[NodePath]] = {}
    for holder in holders:
        if holder.node is None or not holder.shard_tokens:
            continue
        if holder.node not in below:
            below[holder.node] = [leaf for leaf in leaves if is_under(leaf, holder.node)]
        for leaf in below[holder.node]:
            sums[leaf] += holder.shard_tokens / len(below[holder.node])
    return _normalised(sums)


def with_inner(leaves: Mapping[NodePath, float]) -> dict[NodePath, float]:
    """The shares of all nodes: an inner node has what its leaves have together."""
    sums: dict[NodePath, float] = {}
    for leaf, share in leaves.items():
        for level in range(len(leaf) + 1):
            sums[leaf[:level]] = sums.get(leaf[:level], 0.0) + share
    return sums


def entropy_bits(shares: Iterable[float]) -> float:
    """Of a distribution: how many bits it takes to name a leaf drawn by these shares."""
    return -sum(share * math.log2(share) for share in shares if share > 0) + 0.0


def _normalised(sums: dict[NodePath, float]) -> dict[NodePath, float] | None:
    total = math.fsum(sums.values())
    return {leaf: amount / total for leaf, amount in sums.items()} if total > 0 else None

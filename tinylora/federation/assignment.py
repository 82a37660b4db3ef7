"""Who holds which node. Pure.

With at least as many workers as leaves, each leaf gets one or more of them, its *replicas*; with fewer, some workers
hold subtrees, and every leaf is covered by exactly one worker. Workers are taken by name and ties broken by name, so
that the outcome depends on the sketches alone.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from tinylora.federation.topology import Points, balanced_groups, distances, means, pair_up, tree_order
from tinylora.routing.statistics import RouterStatistics, sum_statistics
from tinylora.tree import NodePath, Topology


def assign(
    statistics: Mapping[str, RouterStatistics], depth: int, log_volumes: Mapping[str, float] | None = None
) -> dict[str, NodePath]:
    """A node of the perfect tree of `depth` for every worker: a leaf, or the top of a subtree.

    Args:
        statistics: Sketch of each worker; at least one.
        depth: Levels of the tree.
        log_volumes: How widely each worker's texts differ, which finds shards that mix kinds of text. Unless all are
            known, the spread of their sketches stands in, which takes the scatter of short prefixes for it.
    """
    workers = sorted(statistics)
    points, spread = means(statistics)
    if log_volumes is not None and set(workers) <= log_volumes.keys():
        spread = np.array([log_volumes[worker] for worker in workers])
    if len(workers) >= 2**depth:
        return _leaves_for(workers, points, depth)
    return _subtrees_for(workers, points, spread, depth)


def _leaves_for(workers: Sequence[str], points: Points, depth: int) -> dict[str, NodePath]:
    groups = balanced_groups(points, 2**depth)
    centres = np.stack([points[group].mean(axis=0) for group in groups])
    leaves = Topology.perfect(depth).leaves
    return {
        workers[index]: leaf
        for leaf, position in zip(leaves, tree_order(centres), strict=True)
        for index in groups[position]
    }


def _subtrees_for(workers: Sequence[str], points: Points, spread: np.ndarray, depth: int) -> dict[str, NodePath]:
    """Subtrees of two neighbouring sizes: the larger for the widest texts, the smaller in pairs of like ones."""
    level = math.floor(math.log2(len(workers)))
    n_large = 2 ** (level + 1) - len(workers)
    by_spread = sorted(range(len(workers)), key=lambda index: (-spread[index], index))
    large, small = sorted(by_spread[:n_large]), sorted(by_spread[n_large:])
    pairs = pair_up(points[small]) if small else []
    groups = [[index] for index in large] + [[small[one], small[other]] for one, other in pairs]
    groups.sort()
    centres = np.stack([points[group].mean(axis=0) for group in groups])
    tops = Topology.perfect(level).leaves
    assignment = {}
    for top, position in zip(tops, tree_order(centres), strict=True):
        group = groups[position]
        nodes = [top] if len(group) == 1 else [top + "0", top + "1"]
        assignment.update({workers[index]: node for index, node in zip(group, nodes, strict=True)})
    return assignment


def leaves_for(assignment: Mapping[str, NodePath], depth: int, most: Mapping[str, int]) -> tuple[NodePath, ...]:
    """Leaves of the tree of `depth`, shallower below those who cannot train so many leaves at once.

    A lone worker's text is parted best by training all leaves below its node side by side; who cannot do that is better
    off with fewer leaves than with leaves that nobody tells apart.

    Args:
        assignment: A node of the perfect tree for every worker, each leaf below exactly one of these nodes.
        depth: Levels of the perfect tree.
        most: By worker, how many leaves it can train at once; 0, or nothing said: any number.
    """
    leaves: set[NodePath] = set()
    for worker, top in assignment.items():
        levels, limit = depth - len(top), most.get(worker, 0)
        if limit:
            levels = min(levels, limit.bit_length() - 1)
        leaves |= {top + leaf for leaf in Topology.perfect(levels).leaves}
    return Topology(tuple(leaves)).leaves


def nearest_leaf(
    leaves: Mapping[NodePath, Mapping[str, RouterStatistics]], candidates: Sequence[NodePath], sketch: RouterStatistics
) -> NodePath:
    """The candidate whose text is nearest to a worker's; among equally near ones the one with the fewest workers.

    Args:
        leaves: Statistics of each leaf of the tree by worker.
        candidates: Leaves to choose from; at least one.
        sketch: Sums of the worker's shard.
    """
    known = {leaf: sum_statistics(items) for leaf, items in leaves.items() if items}
    apart = distances(known, sketch) if known else {}
    return min(candidates, key=lambda leaf: (apart.get(leaf, math.inf), len(leaves.get(leaf, {})), leaf))


def nearest_worker(sketches: Mapping[str, RouterStatistics], texts: Mapping[str, RouterStatistics]) -> str:
    """The worker whose shard is nearest to the texts of a node; the first by name when nothing is known of them."""
    if not texts:
        return min(sketches)
    apart = distances(sketches, sum_statistics(texts))
    return min(sorted(sketches), key=lambda worker: (apart[worker], worker))

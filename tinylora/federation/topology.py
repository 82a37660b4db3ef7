"""Which texts belong together: groups of equal size, and their order in the tree. Pure numpy, deterministic.

Distances are taken between the means of the shards' features in the metric of the pooled covariance within shards:
there, a distance says how easily a gate can tell two texts apart. Whoever is hard to tell apart should share a leaf,
or else sit in sibling leaves, where a wrong turn costs little.
"""

import itertools
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from tinylora.routing.statistics import RouterStatistics

RIDGE = 1e-3
MAX_SWAPS = 10_000

Points: TypeAlias = Float[np.ndarray, "point feature"]
Centres: TypeAlias = Float[np.ndarray, "group feature"]


def means(statistics: Mapping[str, RouterStatistics]) -> tuple[Points, Float[np.ndarray, " point"]]:
    """Whitened mean of each item, in the order of the sorted names, and how far its own text spreads around it."""
    names = sorted(statistics)
    centres = np.stack([statistics[name].mean() for name in names])
    pooled = _mean_covariance(statistics) + RIDGE * np.eye(centres.shape[1])
    spread = np.array([np.trace(np.linalg.solve(pooled, statistics[name].covariance())) for name in names])
    return np.linalg.solve(np.linalg.cholesky(pooled), centres.T).T, spread


def distances(statistics: Mapping[str, RouterStatistics], to: RouterStatistics) -> dict[str, float]:
    """Squared distance of each item's mean to another one, in the metric of the items' pooled covariance."""
    names = sorted(statistics)
    centres = np.stack([statistics[name].mean() for name in names]) - to.mean()
    pooled = _mean_covariance(statistics) + RIDGE * np.eye(to.dim)
    squared = np.einsum("pf,fp->p", centres, np.linalg.solve(pooled, centres.T))
    return dict(zip(names, squared.tolist(), strict=True))


def _mean_covariance(statistics: Mapping[str, RouterStatistics]) -> Float[np.ndarray, "feature feature"]:
    """Added up one at a time: of many workers, all of them would not fit into memory."""
    first, *others = sorted(statistics)
    total = statistics[first].covariance()
    for name in others:
        total += statistics[name].covariance()
    return total / len(statistics)


def balanced_groups(points: Points, n_groups: int) -> list[list[int]]:
    """Split the points into groups of like ones, whose sizes differ by at most one.

    Agglomerative clustering (Ward) gives the centres; the points are dealt out to them nearest first, and pairs are
    swapped as long as that brings both groups closer together. Each group is sorted, and the groups by their first
    member.
    """
    if n_groups == 1:  # nothing to find out, and of thousands of workers it would take hours
        return [list(range(len(points)))]
    labels = _deal(points, _ward_centres(points, n_groups))
    _swap(points, labels, n_groups)
    groups = [np.flatnonzero(labels == group).tolist() for group in range(n_groups)]
    return sorted(groups)


def _ward_centres(points: Points, n_groups: int) -> Centres:
    """Centres after merging, again and again, the two groups whose union adds the least squared distance."""
    centres, sizes = points.astype(np.float64), np.ones(len(points))
    costs = np.stack([_ward_costs(centres, sizes, group) for group in range(len(points))])
    for _ in range(len(points) - n_groups):
        first, second = sorted(divmod(int(np.argmin(costs)), len(costs)))
        both = sizes[first] + sizes[second]
        centres[first] = (sizes[first] * centres[first] + sizes[second] * centres[second]) / both
        sizes[first] = both
        centres, sizes = np.delete(centres, second, axis=0), np.delete(sizes, second)
        costs = np.delete(np.delete(costs, second, axis=0), second, axis=1)
        costs[first] = costs[:, first] = _ward_costs(centres, sizes, first)
    return centres


def _ward_costs(centres: Centres, sizes: np.ndarray, group: int) -> np.ndarray:
    """What merging `group` with each other group would add; infinite for itself."""
    gaps = centres - centres[group]
    costs = sizes * sizes[group] / (sizes + sizes[group]) * np.einsum("gf,gf->g", gaps, gaps)
    costs[group] = np.inf
    return costs


def _deal(points: Points, centres: Centres) -> np.ndarray:
    """The nearest centre that has room, the shortest distances first."""
    squared = ((points[:, None, :] - centres[None, :, :]) ** 2).sum(axis=2)
    room, n_larger = divmod(len(points), len(centres))
    labels = np.full(len(points), -1)
    sizes = [0] * len(centres)
    for flat in np.argsort(squared, axis=None, kind="stable").tolist():
        point, group = divmod(flat, len(centres))
        has_room = sizes[group] < room or (sizes[group] == room and n_larger > 0)
        if labels[point] < 0 and has_room:
            n_larger -= sizes[group] == room
            labels[point], sizes[group] = group, sizes[group] + 1
    return labels


def _swap(points: Points, labels: np.ndarray, n_groups: int) -> None:
    """Swap the pair that helps most, as long as one helps: the squared distances to the groups' centres only shrink."""
    for _ in range(MAX_SWAPS):
        gains = _swap_gains(points, labels, n_groups)
        first, second = divmod(int(np.argmax(gains)), len(points))
        if gains[first, second] <= 1e-9 * _inertia(points):
            return
        labels[[first, second]] = labels[[second, first]]


def _swap_gains(points: Points, labels: np.ndarray, n_groups: int) -> Float[np.ndarray, "point point"]:
    """By how much the summed squared distances to the groups' centres shrink when two points change places.

    With d the step from one point to the other, |centre|² · size grows by 2 d·centre + |d|² / size in the one group,
    and by the same with -d in the other.
    """
    centres = np.stack([points[labels == group].mean(axis=0) for group in range(n_groups)])[labels]
    shares = 1.0 / np.bincount(labels, minlength=n_groups)[labels]
    dots = points @ centres.T
    own = np.einsum("pf,pf->p", points, centres)
    along = dots.T + dots - own[:, None] - own[None, :]
    squared = ((points[:, None, :] - points[None, :, :]) ** 2).sum(axis=2)
    gains = 2 * along + squared * (shares[:, None] + shares[None, :])
    return np.where(labels[:, None] == labels[None, :], -np.inf, gains)


def _inertia(points: Points) -> float:
    return float(((points - points.mean(axis=0)) ** 2).sum())


def tree_order(points: Points) -> list[int]:
    """Order of 2ⁿ points as leaves of a perfect tree, from left to right: close ones are siblings, then cousins.

    From the bottom up, the points of a level are paired with their neighbours and each pair becomes its mean.
    """
    groups = [[index] for index in range(len(points))]
    centres = points
    while len(groups) > 1:
        pairs = pair_up(centres)
        groups = [groups[one] + groups[other] for one, other in pairs]
        centres = np.stack([centres[[one, other]].mean(axis=0) for one, other in pairs])
    return groups[0]


def pair_up(points: Points) -> list[tuple[int, int]]:
    """Pair an even number of points: nearest first, then partners are exchanged while that brings them closer."""
    squared = ((points[:, None, :] - points[None, :, :]) ** 2).sum(axis=2)
    pairs = _nearest_pairs(squared)
    while (better := _exchange(pairs, squared)) is not None:
        pairs = better
    return sorted((min(pair), max(pair)) for pair in pairs)


def _nearest_pairs(squared: np.ndarray) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    free = set(range(len(squared)))
    for one, other in sorted(itertools.combinations(range(len(squared)), 2), key=lambda pair: (squared[pair], pair)):
        if {one, other} <= free:
            free -= {one, other}
            pairs.append((one, other))
    return pairs


def _exchange(pairs: list[tuple[int, int]], squared: np.ndarray) -> list[tuple[int, int]] | None:
    """The first two pairs that are closer together with partners exchanged, exchanged; None when there are none."""
    for first, second in itertools.combinations(range(len(pairs)), 2):
        (a, b), (c, d) = pairs[first], pairs[second]
        rest = [pair for index, pair in enumerate(pairs) if index not in (first, second)]
        now = squared[a, b] + squared[c, d]
        for exchanged in ([(a, c), (b, d)], [(a, d), (b, c)]):
            if sum(squared[pair] for pair in exchanged) < now - 1e-12:
                return rest + exchanged
    return None

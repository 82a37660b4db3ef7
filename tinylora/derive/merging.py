"""Two runs on one base become one tree: the first run's lies left of a new root, the second one's right of it.

Nothing is trained, and no text is needed. The gate of the new root is solved from what both bundles tell of their
leaves' texts, as a coordinator would have solved it; every gate below stays what it was, and so does every adapter.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from tinylora.adapters.prefixes import highest_rank
from tinylora.bundle import Bundle, LeafStatistics
from tinylora.derive.files import check_output, check_size, read_source, told, write_derived
from tinylora.derive.fitting import differences, fit
from tinylora.errors import BaseModelError, SettingError
from tinylora.routing.gates import Gate, Gates, solve_from_summary
from tinylora.routing.modelled import modelled_tau
from tinylora.tree import MAX_DEPTH, NodePath, Topology

Value = TypeVar("Value")


def merge_files(first: Path, second: Path, out: Path, *, name: str = "") -> str:
    """Write the bundle that `merge_bundles` makes; returns a sentence about it.

    Raises:
        SettingError: `out` is one of the inputs, both are the same bundle, or they cannot be merged.
        BaseModelError: They are of two bases.
        BundleError: A file is not a sound bundle.
        StorageError: `out` cannot be written.
    """
    check_output(out, [first, second])
    sources = [read_source(first), read_source(second)]
    if sources[0].sha256 == sources[1].sha256:
        raise SettingError(f"merge: {first} and {second} are the same bundle; name two runs")
    merged = merge_bundles(sources[0].bundle, sources[1].bundle, name=name)
    dtype = write_derived(merged, out, sources)
    told_of = merged.report["merge"]
    fitted = f"; {' and '.join(told_of['fitted'])} made to fit" if told_of["fitted"] else ""
    return (
        f"{out}: runs {told_of['runs'][0]} (below 0) and {told_of['runs'][1]} (below 1), "
        f"{len(merged.topology.leaves)} leaves, {len(merged.nodes)} adapters of rank "
        f"{highest_rank(merged.spec, merged.base)}, {dtype}, {out.stat().st_size} bytes{fitted}"
    )


def merge_bundles(one: Bundle, other: Bundle, *, name: str = "") -> Bundle:
    """Both trees under a new root, whose gate is solved from the statistics of their leaves.

    Args:
        one: Its node `p` becomes `0p`.
        other: Its node `p` becomes `1p`.
        name: Of the run that the new bundle calls itself; empty is both names.

    Raises:
        BaseModelError: They are of two bases, or their gates read different features.
        SettingError: One has no statistics, or the tree would be too deep, or have too many tensors.
    """
    _check_base(one, other)
    topology = _topology(one, other)
    fitted = fit(one, other)
    statistics = _statistics(one, other)
    root = _root_gate(statistics, topology)
    done = {
        "runs": [one.run, other.run],
        "fitted": differences(one, other),
        "policies": [one.policy, other.policy],
        "tau": root.tau,
        "is_pooled": statistics.kind == "pooled",
        "contributors_of_both": sorted({*one.contributors} & {*other.contributors}),
    }
    merged = replace(
        one,
        run=name or f"{one.run}+{other.run}",
        topology=topology,
        spec=fitted.spec,
        scale=fitted.scale,
        nodes=_side_by_side(fitted.first, fitted.second),
        gates=Gates({"": root, **_side_by_side(one.gates.nodes, other.gates.nodes)}, one.gates.dim),
        policy=one.policy if one.policy == other.policy else "soft",
        statistics=statistics,
        contributors=tuple(sorted({*one.contributors, *other.contributors})),
        versions=_versions(one, other),
        report=told({"merge": done}, first=one.report, second=other.report),
        shared=fitted.shared,
        data_notes=_side_by_side(one.data_notes, other.data_notes),
        licences=tuple(sorted({*one.licences, *other.licences})),
    )
    check_size(merged)
    return merged


def _check_base(one: Bundle, other: Bundle) -> None:
    first, second = one.base, other.base
    if first.fingerprint != second.fingerprint or first.projections != second.projections:
        raise BaseModelError(
            f"merge: run {one.run} was trained on {first.base_id} ({first.fingerprint[:12]}), run {other.run} on "
            f"{second.base_id} ({second.fingerprint[:12]}); adapters of two bases do not fit together"
        )
    if (first.feature_dim, first.feature_hash) != (second.feature_dim, second.feature_hash):
        raise BaseModelError(
            f"merge: run {one.run} routes by features of {first.feature_dim} numbers ({first.feature_hash[:12]}), run "
            f"{other.run} by {second.feature_dim} ({second.feature_hash[:12]}); no gate can read both"
        )


def _topology(one: Bundle, other: Bundle) -> Topology:
    for bundle in (one, other):
        if bundle.topology.depth >= MAX_DEPTH:
            raise SettingError(
                f"merge: the tree of run {bundle.run} is {bundle.topology.depth} deep, and would be one deeper: "
                f"expected at most {MAX_DEPTH} in all; cut a subtree of it first"
            )
    return Topology((*("0" + leaf for leaf in one.topology.leaves), *("1" + leaf for leaf in other.topology.leaves)))


def _side_by_side(first: Mapping[NodePath, Value], second: Mapping[NodePath, Value]) -> dict[NodePath, Value]:
    return {turn + path: value for turn, found in (("0", first), ("1", second)) for path, value in found.items()}


def _versions(one: Bundle, other: Bundle) -> dict[str, int]:
    """Of the nodes; the runs' own counts of topologies and routers mean nothing any more."""
    nodes = (
        {name[len("node.") :]: number for name, number in bundle.versions.items() if name.startswith("node.")}
        for bundle in (one, other)
    )
    return {f"node.{path}": number for path, number in sorted(_side_by_side(*nodes).items())}


# --- the new root's gate ---------------------------------------------------------------------------------------------


def _statistics(one: Bundle, other: Bundle) -> LeafStatistics:
    """Of the leaves of both: single covariances where both have them; a pooled one weighs as its number of leaves.

    Raises:
        SettingError: A bundle has none.
    """
    first, second = _told_of_leaves(one), _told_of_leaves(other)
    counts = _side_by_side(first.counts, second.counts)
    means = _side_by_side(first.means, second.means)
    if first.kind == second.kind == "leaf":
        return LeafStatistics(counts, means, _side_by_side(first.covariances, second.covariances))
    n_leaves = len(first.counts), len(second.counts)
    pooled = np.average([first.covariance, second.covariance], axis=0, weights=n_leaves)
    return LeafStatistics(counts, means, pooled=pooled)


def _told_of_leaves(bundle: Bundle) -> LeafStatistics:
    if bundle.statistics is None or not bundle.statistics.counts:
        raise SettingError(
            f"merge: the bundle of run {bundle.run} has no statistics of its leaves, from which the gate between both "
            "runs is solved; ask the run for a bundle with them"
        )
    return bundle.statistics


def _root_gate(statistics: LeafStatistics, topology: Topology) -> Gate:
    """Solved from the leaves of both sides, its temperature modelled: no held-out scores travel in a bundle."""
    gate = solve_from_summary(statistics, topology).nodes[""]
    return replace(gate, tau=modelled_tau("", gate, statistics))

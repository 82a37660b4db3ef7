"""A leaf taken out of a bundle: its adapter, its statistics, and what was said of its text.

The tree keeps its shape, so every other leaf keeps its path and its adapters bit by bit. All gates are solved anew from
the statistics that are left, as if the leaf had never been sketched; temperatures stay those that were measured. The
gate above the leaf then sends everything to the other side. Who is sent to the leaf all the same, by its path, meets
the adapters of its ancestors, or the base.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinylora.bundle import Bundle, LeafStatistics
from tinylora.derive.files import check_output, read_source, told, write_derived
from tinylora.errors import SettingError
from tinylora.routing.gates import DEFAULT_TAU, Gates, solve_from_summary
from tinylora.tree import NodePath, ancestors, children, is_under


def drop_file(file: Path, out: Path, *, leaf: NodePath, keeps_gates: bool = False) -> list[str]:
    """Write the bundle that `drop_leaf` makes; returns sentences about it.

    Raises:
        SettingError: `out` is the input, or the leaf cannot be dropped.
        BundleError: The file is not a sound bundle.
        StorageError: `out` cannot be written.
    """
    check_output(out, [file])
    source = read_source(file)
    bundle = drop_leaf(source.bundle, leaf, keeps_gates=keeps_gates)
    dtype = write_derived(bundle, out, [source])
    size = f"{len(bundle.nodes)} adapters, {dtype}, {out.stat().st_size} bytes"
    return [f"{out}: without leaf {leaf}, {size}", *_remarks(source.bundle, bundle, leaf)]


def drop_leaf(bundle: Bundle, leaf: NodePath, *, keeps_gates: bool = False) -> Bundle:
    """The same tree without a leaf's adapter, statistics and notes, its gates solved from what is left.

    Args:
        bundle: Of any kind.
        leaf: Must not be the last one with an adapter or statistics of its own.
        keeps_gates: Leave all gates as they are: text is sent to the leaf as before, and meets what lies above it.

    Raises:
        SettingError: There is no such leaf, it has nothing of its own, it is the last one, or no statistics are there
            from which the gates could be solved.
    """
    _check_leaf(bundle, leaf)
    statistics = _without(bundle.statistics, leaf)
    gates = bundle.gates if keeps_gates else _solved(bundle, statistics)
    done = {
        "leaf": leaf,
        "gates": "kept" if keeps_gates else "solved anew",
        "is_exact": keeps_gates or (bundle.statistics is not None and bundle.statistics.kind == "leaf"),
    }
    return replace(
        bundle,
        nodes={path: state for path, state in bundle.nodes.items() if path != leaf},
        gates=gates,
        statistics=statistics,
        data_notes={path: notes for path, notes in bundle.data_notes.items() if path != leaf},
        versions={name: number for name, number in bundle.versions.items() if name != f"node.{leaf}"},
        report=told({"drop": done}, whole=bundle.report),
    )


def _check_leaf(bundle: Bundle, leaf: NodePath) -> None:
    leaves = bundle.topology.leaves
    if leaf not in leaves:
        what = "an inner node; its leaves are dropped one by one" if leaf in bundle.topology.nodes else "no such leaf"
        known = ", ".join(map(repr, bundle.topology.leaves_below(leaf)[:16] or leaves[:16]))
        raise SettingError(f"drop: {leaf!r}: {what}; expected one of {known}")
    sketched = bundle.statistics.counts if bundle.statistics else {}
    own = {path for path in leaves if path in bundle.nodes or path in sketched}
    if leaf not in own:
        raise SettingError(f"drop: leaf {leaf!r}: has neither adapter nor statistics, so there is nothing to drop")
    if own == {leaf}:
        raise SettingError(f"drop: leaf {leaf!r}: is the last one that anybody trained, so nothing would be left")


def _without(statistics: LeafStatistics | None, leaf: NodePath) -> LeafStatistics | None:
    if statistics is None:
        return None
    left = [path for path in statistics.counts if path != leaf]

    def of(found: Mapping[NodePath, Any]) -> dict[NodePath, Any]:
        return {path: found[path] for path in left if path in found}

    kept = replace(
        statistics, counts=of(statistics.counts), means=of(statistics.means), covariances=of(statistics.covariances)
    )
    return kept if left else None


def _solved(bundle: Bundle, statistics: LeafStatistics | None) -> Gates:
    """From what is left; a gate that has text on both sides keeps its temperature, which was measured."""
    if statistics is None or not statistics.counts:
        raise SettingError(
            f"drop: the bundle of run {bundle.run} has no statistics of other leaves, from which the gates could be "
            "solved anew; add --keep-gates, or ask the run for a bundle with statistics"
        )
    solved = solve_from_summary(statistics, bundle.topology)
    nodes = {}
    for node, gate in solved.nodes.items():
        is_told = all(any(is_under(leaf, side) for leaf in statistics.counts) for side in children(node))
        nodes[node] = replace(gate, tau=bundle.gates.nodes[node].tau if is_told else DEFAULT_TAU)
    return Gates(nodes, bundle.gates.dim)


def _remarks(before: Bundle, after: Bundle, leaf: NodePath) -> list[str]:
    """What an owner of the leaf's text should know of what stays."""
    done, found = after.report["drop"], []
    if done["gates"] == "kept":
        found.append("gates as before: they were solved with the leaf's sums, and still send text there")
    elif not done["is_exact"]:
        found.append("gates nearly as without the leaf: the bundle has one covariance for all leaves, and it stays")
    shared = [node for node in ancestors(leaf) if node in before.nodes]
    if shared:
        names = ", ".join(node or "the root" for node in shared)
        found.append(f"the adapters above it ({names}) stay, with its workers' share in them")
    if before.contributors:
        found.append("contributors stay: a bundle does not tell who trained which leaf")
    return found

"""A bundle cut to a subtree, to lower ranks, or both."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tinylora.adapters.mixing import concatenate
from tinylora.adapters.nested import cut
from tinylora.adapters.prefixes import highest_rank
from tinylora.bundle import Bundle, LeafStatistics
from tinylora.derive.files import check_output, read_source, told, write_derived
from tinylora.derive.paths import at_ranks, on_the_way, plain_states, ranks_of, spec_of
from tinylora.errors import SettingError
from tinylora.routing.gates import Gates
from tinylora.tree import NodePath, Topology, is_under


def cut_file(
    file: Path,
    out: Path,
    *,
    rank: int | None = None,
    ranks: Mapping[str, int] | None = None,
    subtree: NodePath | None = None,
    is_forced: bool = False,
) -> str:
    """Write the bundle that `cut_bundle` makes, in the dtype of the old one where it can; returns a sentence about it.

    Raises:
        SettingError: `out` is the input, or the bundle cannot be cut so.
        BundleError: The file is not a sound bundle.
        StorageError: `out` cannot be written.
    """
    check_output(out, [file])
    source = read_source(file)
    bundle = cut_bundle(source.bundle, rank, ranks, subtree=subtree, is_forced=is_forced)
    dtype = write_derived(bundle, out, [source])
    what = f"{len(bundle.nodes)} adapters cut to rank {highest_rank(bundle.spec, bundle.base)}"
    if subtree is not None:
        what = f"subtree {subtree!r}, {len(bundle.topology.leaves)} leaves, {len(bundle.nodes)} adapters of rank "
        what += f"{highest_rank(bundle.spec, bundle.base)}"
    return f"{out}: {what}, {dtype}, {out.stat().st_size} bytes"


def cut_bundle(
    bundle: Bundle,
    rank: int | None = None,
    ranks: Mapping[str, int] | None = None,
    *,
    subtree: NodePath | None = None,
    is_forced: bool = False,
) -> Bundle:
    """The same tree at lower ranks, or one of its subtrees, or a subtree at lower ranks.

    Args:
        bundle: Of any kind for a subtree; for ranks, of nested adapters.
        rank: Of every projection that is not in `ranks`; a lower one stays as it is. None lowers none.
        ranks: By projection.
        subtree: Node that becomes the new root.
        is_forced: Whether to lower the ranks of plain LoRAs too. Their first rows were not trained to do without the
            others.

    Raises:
        SettingError: Nothing is to be cut, the node is not there, the kind has no usable prefixes, a rank is above the
            bundle's, or a projection is not there.
    """
    if rank is None and not ranks and subtree is None:
        raise SettingError("cut: nothing to cut: expected --subtree, --rank or --ranks")
    made = bundle
    if rank is not None or ranks:
        made = _at_lower_ranks(made, rank, ranks or {}, is_forced=is_forced)
    if subtree is not None:
        made = _subtree(made, subtree)
    done = {"subtree": subtree, "ranks": {name: made.spec.rank_of(name) for name in sorted(made.base.projections)}}
    return replace(made, report=told({"cut": done}, whole=bundle.report))


# --- ranks -----------------------------------------------------------------------------------------------------------


def _at_lower_ranks(bundle: Bundle, rank: int | None, ranks: Mapping[str, int], *, is_forced: bool) -> Bundle:
    """The first rows of every adapter alone; kind and scale stay.

    `spec.rank` stays too: it is the reference of the scale. What the adapters have left stands in `spec.ranks`.
    """
    spec, known = bundle.spec, bundle.base.projections
    if spec.kind == "tied":
        raise SettingError(f"cut: the bundle of run {bundle.run} is of kind {spec}, whose prefixes are no adapters")
    if spec.kind == "lora" and not is_forced:
        raise SettingError(
            f"cut: the bundle of run {bundle.run} holds plain LoRAs, whose first rows were not trained to do without "
            "the others; train with adapter = nested, or add --force"
        )
    highest = highest_rank(spec, bundle.base)
    rank = highest if rank is None else rank
    if not 1 <= rank <= highest:
        raise SettingError(f"cut: rank {rank}: expected 1 to {highest}, the rank of the bundle")
    strange = sorted(ranks.keys() - known.keys())
    if strange:
        raise SettingError(f"cut: {strange[0]}: no such projection; the bundle has {', '.join(sorted(known))}")
    wanted = {name: ranks.get(name, min(rank, spec.rank_of(name))) for name in sorted(known)}
    nodes = {path: cut(state, spec, wanted) for path, state in bundle.nodes.items()}
    left = {name: kept for name, kept in wanted.items() if kept != spec.rank}
    return replace(bundle, spec=replace(spec, ranks=left), nodes=nodes)


# --- subtrees --------------------------------------------------------------------------------------------------------


def _subtree(bundle: Bundle, top: NodePath) -> Bundle:
    """The tree below `top`, whose adapter is the sum of all on the way to it."""
    if top not in bundle.topology.nodes:
        raise SettingError(
            f"cut: subtree {top!r}: no such node; the leaves of the tree are {_some(bundle.topology.leaves)}"
        )
    made = _with_one_root(bundle, top)
    below = {path: state for path, state in made.nodes.items() if is_under(path, top)}

    def shortened(path: NodePath) -> NodePath:
        return path[len(top) :]

    gates = {shortened(node): gate for node, gate in bundle.gates.below(top).nodes.items()}
    notes = {shortened(leaf): told_of for leaf, told_of in bundle.data_notes.items() if is_under(leaf, top)}
    prefix = f"node.{top}"
    versions = {name: number for name, number in bundle.versions.items() if not name.startswith("node.")}
    versions |= {
        f"node.{name.removeprefix(prefix)}": number
        for name, number in bundle.versions.items()
        if name.startswith(prefix)
    }
    return replace(
        made,
        topology=Topology(tuple(map(shortened, bundle.topology.leaves_below(top)))),
        nodes={shortened(path): state for path, state in below.items()},
        gates=Gates(gates, bundle.gates.dim),
        statistics=statistics_below(bundle.statistics, top),
        data_notes=notes,
        versions=versions,
    )


def _with_one_root(bundle: Bundle, top: NodePath) -> Bundle:
    """The bundle with all adapters on the way to `top` in the one of `top`.

    One alone moves as it is. Several stand side by side, and as all adapters of a bundle have the same ranks, those
    below get rows of zeros: they become plain LoRAs.
    """
    way = on_the_way(bundle, top)
    if len(way) < 2:
        moved = {top: bundle.nodes[way[0]]} if way else {}
        return replace(bundle, nodes={path: bundle.nodes[path] for path in bundle.nodes if path not in way} | moved)
    below = [path for path in sorted(bundle.nodes) if is_under(path, top) and path != top]
    root = concatenate(plain_states(bundle, way))
    cure = "cut a subtree that is nearer to the root, or to a lower rank"
    spec = spec_of(ranks_of(root), verb="cut", cure=cure)
    plain = dict(zip(below, plain_states(bundle, below), strict=True))
    return replace(bundle, spec=spec, nodes={top: root, **at_ranks(plain, ranks_of(root))}, shared={})


def statistics_below(statistics: LeafStatistics | None, top: NodePath) -> LeafStatistics | None:
    """Of the leaves below `top`, under the names that they have in the subtree; pooled ones stay those of all."""
    if statistics is None:
        return None
    below = [leaf for leaf in statistics.counts if is_under(leaf, top)]
    if not below:
        return None

    def of(found: Mapping[NodePath, object]) -> dict:
        return {leaf[len(top) :]: found[leaf] for leaf in below if leaf in found}

    return replace(
        statistics, counts=of(statistics.counts), means=of(statistics.means), covariances=of(statistics.covariances)
    )


def _some(paths: tuple[NodePath, ...]) -> str:
    return ", ".join(map(repr, paths[:16])) + (" ..." if len(paths) > 16 else "")

"""A bundle becomes another bundle: cut to lower ranks, or many leaves mixed into one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from tinylora.adapters.mixing import compress, concatenate, uniform_merge
from tinylora.adapters.nested import cut
from tinylora.adapters.prefixes import highest_rank
from tinylora.adapters.spec import AdapterSpec
from tinylora.adapters.tied import expand
from tinylora.bundle import Bundle, inspect, read_bundle, write_bundle
from tinylora.config import MAX_RANK
from tinylora.errors import SettingError
from tinylora.routing.gates import Gates
from tinylora.tensors import Tensors
from tinylora.tree import NodePath, Topology, is_under

How: TypeAlias = Literal["uniform", "concat"]


@dataclass(frozen=True)
class Mixed:
    """A bundle of one leaf, and how far its update is from what was asked for."""

    bundle: Bundle
    relative_error: float
    """Frobenius norm of the lost part over the whole; 0 where no rank was given."""


# --- cutting ---------------------------------------------------------------------------------------------------------


def cut_file(
    file: Path, out: Path, *, rank: int, ranks: Mapping[str, int] | None = None, is_forced: bool = False
) -> str:
    """Write the bundle that `cut_bundle` makes, in the dtype of the old one; returns a sentence about it.

    Raises:
        SettingError: `out` is the input, or the bundle cannot be cut so.
        BundleError: The file is not a sound bundle.
        StorageError: `out` cannot be written.
    """
    _check_is_other(file, out)
    bundle = cut_bundle(read_bundle(file), rank, ranks or {}, is_forced=is_forced)
    write_bundle(bundle, out, dtype=inspect(file)["dtype"])
    return f"{out}: {len(bundle.nodes)} adapters cut to rank {rank}, {out.stat().st_size} bytes"


def cut_bundle(bundle: Bundle, rank: int, ranks: Mapping[str, int], *, is_forced: bool = False) -> Bundle:
    """The same tree with the first rows of every adapter alone; kind and scale stay.

    `spec.rank` stays too: it is the reference of the scale. What the adapters have left stands in `spec.ranks`.

    Args:
        bundle: Of nested adapters.
        rank: Of every projection that is not in `ranks`; a lower one stays as it is.
        ranks: By projection.
        is_forced: Whether to cut plain LoRAs too. Their first rows were not trained to do without the others.

    Raises:
        SettingError: The kind has no usable prefixes, a rank is above the bundle's, or a projection is not there.
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
    if not 1 <= rank <= highest:
        raise SettingError(f"cut: rank {rank}: expected 1 to {highest}, the rank of the bundle")
    strange = sorted(ranks.keys() - known.keys())
    if strange:
        raise SettingError(f"cut: {strange[0]}: no such projection; the bundle has {', '.join(sorted(known))}")
    wanted = {name: ranks.get(name, min(rank, spec.rank_of(name))) for name in sorted(known)}
    nodes = {path: cut(state, spec, wanted) for path, state in bundle.nodes.items()}
    left = {name: kept for name, kept in wanted.items() if kept != spec.rank}
    return replace(bundle, spec=replace(spec, ranks=left), nodes=nodes, report={"cut": wanted, "whole": bundle.report})


# --- mixing ----------------------------------------------------------------------------------------------------------


def mush_file(
    file: Path, out: Path, *, how: str = "uniform", rank: int | None = None, leaves: Sequence[NodePath] | None = None
) -> str:
    """Write the bundle that `mush_bundle` makes, in the dtype of the old one; returns a sentence about it.

    Raises:
        SettingError: `out` is the input, or the leaves cannot be mixed so.
        BundleError: The file is not a sound bundle.
        StorageError: `out` cannot be written.
    """
    _check_is_other(file, out)
    mixed = mush_bundle(read_bundle(file), how, rank=rank, leaves=leaves)
    write_bundle(mixed.bundle, out, dtype=inspect(file)["dtype"])
    used = ", ".join(mixed.bundle.report["mush"]["leaves"]) or "the root"
    lost = f"relative error {mixed.relative_error:.3g}" if rank else "exact"
    return f"{out}: leaves {used} in one adapter of rank {mixed.bundle.spec.rank}, {how}, {lost}"


def mush_bundle(
    bundle: Bundle, how: str = "uniform", *, rank: int | None = None, leaves: Sequence[NodePath] | None = None
) -> Mixed:
    """A tree of one leaf, whose adapter is the mean ("uniform") or the sum ("concat") of several leaves' updates.

    A leaf's update includes those of its ancestors. Nothing is routed any more, so gates and statistics are left out.

    Args:
        bundle: Of any kind; tied adapters are written out as plain LoRAs.
        how: "uniform" or "concat".
        rank: Compress to it; None keeps all ranks side by side, which is exact.
        leaves: Those to mix; None is all that have been trained.

    Raises:
        SettingError: Another way of mixing, a leaf that is not there or has nothing, or a rank out of range.
    """
    if how not in get_args(How):
        raise SettingError(f"mush: how {how!r}: expected uniform or concat")
    if rank is not None and not 1 <= rank <= MAX_RANK:
        raise SettingError(f"mush: rank {rank}: expected 1 to {MAX_RANK}")
    chosen = _chosen(bundle, leaves)
    states = [leaf_state(bundle, leaf) for leaf in chosen]
    state, error = uniform_merge(states) if how == "uniform" else concatenate(states), 0.0
    if rank is not None:
        compressed = compress(state, rank)
        state, error = compressed.state, compressed.relative_error
    report = {"mush": {"how": how, "leaves": list(chosen), "relative_error": error}, "whole": bundle.report}
    mixed = replace(
        bundle,
        topology=Topology(("",)),
        spec=_spec_of(state),
        nodes={"": state},
        gates=Gates({}, bundle.base.feature_dim),
        policy="soft",
        statistics=None,
        versions={},
        report=report,
        shared={},
    )
    return Mixed(mixed, error)


def leaf_state(bundle: Bundle, leaf: NodePath) -> Tensors:
    """The plain LoRA of a leaf with all its ancestors: their ranks side by side.

    Raises:
        SettingError: Nobody has trained an adapter on the way to the leaf.
    """
    on_the_way = [path for path in sorted(bundle.nodes, key=len) if is_under(leaf, path)]
    if not on_the_way:
        raise SettingError(f"leaf {leaf!r}: nobody has trained it, so there is nothing to mix; leave it out")
    states = [bundle.nodes[path] for path in on_the_way]
    if bundle.spec.kind == "tied":
        shared = {name: tensor.float() for name, tensor in bundle.shared.items()}
        states = [
            expand({name: tensor.float() for name, tensor in state.items()}, bundle.spec, shared, bundle.base)
            for state in states
        ]
    return concatenate(states)


def _chosen(bundle: Bundle, leaves: Sequence[NodePath] | None) -> tuple[NodePath, ...]:
    known = bundle.topology.leaves
    if leaves is None:
        leaves = [leaf for leaf in known if any(is_under(leaf, path) for path in bundle.nodes)]
        if not leaves:
            raise SettingError(f"mush: the bundle of run {bundle.run} has no trained leaf")
    strange = [leaf for leaf in leaves if leaf not in known]
    if strange:
        raise SettingError(f"mush: leaf {strange[0]!r}: no such leaf; the bundle has {', '.join(map(repr, known))}")
    if len(set(leaves)) < len(leaves) or not leaves:
        raise SettingError(f"mush: expected leaves, each once, got {', '.join(map(repr, leaves)) or 'none'}")
    return tuple(sorted(leaves))


def _spec_of(state: Tensors) -> AdapterSpec:
    """What a plain state is: the highest rank, and the others by projection."""
    ranks = {name.removesuffix(".lora_A"): tensor.shape[1] for name, tensor in state.items() if name.endswith("A")}
    highest = max(ranks.values())
    if highest > MAX_RANK:
        raise SettingError(
            f"mush: rank {highest} in all: expected at most {MAX_RANK}; add --rank, or name fewer --leaves"
        )
    return AdapterSpec("lora", highest, {name: rank for name, rank in sorted(ranks.items()) if rank != highest})


def _check_is_other(file: Path, out: Path) -> None:
    if file.resolve() == out.resolve() or (out.exists() and file.exists() and out.samefile(file)):
        raise SettingError(f"--out {out}: is the bundle that is read; choose another name")

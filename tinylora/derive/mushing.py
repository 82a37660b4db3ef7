"""Many leaves of a bundle mixed into one adapter, nothing routed any more."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from tinylora.adapters.mixing import compress, concatenate, uniform_merge
from tinylora.bundle import Bundle
from tinylora.config import MAX_RANK
from tinylora.derive.files import check_output, read_source, told, write_derived
from tinylora.derive.paths import leaf_state, ranks_of, spec_of
from tinylora.errors import SettingError
from tinylora.routing.gates import Gates
from tinylora.tree import NodePath, Topology, is_under

How: TypeAlias = Literal["uniform", "concat"]


@dataclass(frozen=True)
class Mixed:
    """A bundle of one leaf, and how far its update is from what was asked for."""

    bundle: Bundle
    relative_error: float
    """Frobenius norm of the lost part over the whole; 0 where no rank was given."""


def mush_file(
    file: Path, out: Path, *, how: str = "uniform", rank: int | None = None, leaves: Sequence[NodePath] | None = None
) -> str:
    """Write the bundle that `mush_bundle` makes, in the dtype of the old one; returns a sentence about it.

    Raises:
        SettingError: `out` is the input, or the leaves cannot be mixed so.
        BundleError: The file is not a sound bundle.
        StorageError: `out` cannot be written.
    """
    check_output(out, [file])
    source = read_source(file)
    mixed = mush_bundle(source.bundle, how, rank=rank, leaves=leaves)
    write_derived(mixed.bundle, out, [source], dtype=source.dtype)
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
    done = {"how": how, "leaves": list(chosen), "relative_error": error}
    notes = tuple(dict.fromkeys(note for leaf in chosen for note in bundle.data_notes.get(leaf, ())))
    mixed = replace(
        bundle,
        topology=Topology(("",)),
        spec=spec_of(ranks_of(state), verb="mush", cure="add --rank, or name fewer --leaves"),
        nodes={"": state},
        gates=Gates({}, bundle.base.feature_dim),
        policy="soft",
        statistics=None,
        versions={},
        report=told({"mush": done}, whole=bundle.report),
        shared={},
        data_notes={"": notes} if notes else {},
    )
    return Mixed(mixed, error)


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

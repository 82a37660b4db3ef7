"""A PEFT adapter comes in: as a bundle of one leaf, or as a leaf of a bundle that is there."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinylora.adapters.mixing import concatenate
from tinylora.adapters.spec import AdapterSpec
from tinylora.bundle import AdapterDtype, Bundle, inspect, read_bundle, write_bundle
from tinylora.derive.paths import at_ranks, plain_states, ranks_of, spec_of
from tinylora.errors import SettingError, StorageError
from tinylora.export.leaf import trained_nodes
from tinylora.export.places import Places, check_shapes
from tinylora.export.reading import PlainAdapter, read_adapter
from tinylora.routing.gates import Gates
from tinylora.tree import NodePath, Topology


@dataclass(frozen=True)
class Imported:
    """What came of an adapter."""

    file: Path
    leaf: NodePath
    rank: int
    """Of the bundle, the highest of its projections."""
    n_modules: int
    """Linears that the adapter was on."""
    n_without: int
    """Linears of the base that it was not on: zeros there."""
    notes: tuple[str, ...]
    """What a person must know besides; each a sentence."""


def import_peft(
    adapter_dir: Path,
    out: Path,
    *,
    base: str | Path,
    into: Path | None = None,
    leaf: NodePath | None = None,
    is_forced: bool = False,
) -> Imported:
    """Write a bundle in which a leaf does what a PEFT adapter does.

    Args:
        adapter_dir: As PEFT's `save_pretrained` writes it, with safetensors.
        out: The bundle to write.
        base: Folder or hub id of the adapter's base. For a new bundle it is loaded, to name it by its fingerprint;
            with `into` its config is enough.
        into: A bundle on that base; its leaf is filled or replaced, all else stays.
        leaf: Of `into`; may be left out where it has one.
        is_forced: Whether `out` may be replaced.

    Raises:
        SettingError: It is no plain LoRA, or the leaf is not there.
        ShapeMismatch: It is for a base of another shape.
        ProtocolError: A file of it breaks a rule.
        BaseModelError: The base is not there.
        BundleError: `into` is not a sound bundle.
        StorageError: `out` is there, or cannot be written.
    """
    _check_out(out, into, is_forced=is_forced)
    from tinylora.base_model import find_structure  # transformers takes seconds to load

    found = find_structure(base)
    places = Places(modules=found.modules, is_transposed=found.is_transposed)
    if into is None:
        if leaf:
            raise SettingError(f"--leaf {leaf}: a new bundle has the root alone; name a bundle with --into")
        adapter = read_adapter(adapter_dir, places, found.shapes)
        bundle, leaf, dtype, notes = _new_bundle(adapter, base, adapter_dir), "", adapter.dtype, ()
    else:
        old = read_bundle(into)
        check_shapes(old, found.shapes, str(base))
        leaf = _leaf_of(old, leaf)
        adapter = read_adapter(adapter_dir, places, found.shapes, scale=old.scale)
        bundle, notes = fill_leaf(old, leaf, adapter, adapter_dir.resolve().name)
        bundle = replace(bundle, derived_from=(*old.derived_from, _sha256(into)))
        is_as_stored = old.spec.kind != "tied" and adapter.dtype == inspect(into)["dtype"]
        dtype: AdapterDtype = adapter.dtype if is_as_stored else "F32"
    write_bundle(bundle, out, dtype=dtype)
    rank = max(bundle.spec.rank_of(name) for name in bundle.base.projections)
    return Imported(out, leaf, rank, adapter.n_modules, adapter.n_without, (*_other_base(adapter, base), *notes))


def fill_leaf(bundle: Bundle, leaf: NodePath, adapter: PlainAdapter, name: str) -> tuple[Bundle, tuple[str, ...]]:
    """A bundle whose leaf does what the adapter does, and what else changed, in sentences.

    What the leaf's ancestors add is taken off again by the leaf, so the ranks grow by theirs. All adapters are padded
    with zeros to common ranks, and are plain LoRAs from then on.

    Args:
        bundle: Of any kind.
        leaf: Its path.
        adapter: Its scale that of the bundle.
        name: What the adapter is called in the report.

    Raises:
        SettingError: There is no such leaf, or the rank is above what a bundle holds.
    """
    above = [node for node in trained_nodes(bundle, leaf) if node != leaf]
    others = tuple(path for path in sorted(bundle.nodes) if path != leaf)
    nodes = dict(zip(others, plain_states(bundle, others), strict=True))
    own = adapter.state
    if above:
        own = concatenate([own, *(nodes[node] for node in above)], [1.0, *[-1.0] * len(above)])
    nodes[leaf] = own
    found = [ranks_of(state) for state in nodes.values()]
    ranks = {projection: max(one[projection] for one in found) for projection in sorted(bundle.base.projections)}
    notes = tuple(_notes(bundle, leaf, above))
    filled = replace(
        bundle,
        spec=_spec(ranks),
        nodes=at_ranks(dict(sorted(nodes.items())), ranks),
        shared={},
        versions={what: version for what, version in bundle.versions.items() if what != f"node.{leaf}"},
        data_notes=bundle.data_notes | {leaf: (_note(name),)},
        licences=_with(bundle.licences, adapter.licence),
        report={"import": _told(name, leaf, adapter), "whole": bundle.report},
    )
    return filled, notes


def _new_bundle(adapter: PlainAdapter, base: str | Path, adapter_dir: Path) -> Bundle:
    from tinylora.base_model import load_base

    loaded = load_base(base, dtype=None)
    name = adapter_dir.resolve().name
    return Bundle(
        run=name,
        topology=Topology(("",)),
        base=loaded.facts,
        spec=_spec(ranks_of(adapter.state)),
        scale=adapter.scale,
        nodes={"": adapter.state},
        gates=Gates({}, loaded.facts.feature_dim),
        projection=loaded.routing_feature.projection,
        data_notes={"": (_note(name),)},
        licences=_with((), adapter.licence),
        report={"import": _told(name, "", adapter)},
    )


def _spec(ranks: Mapping[str, int]) -> AdapterSpec:
    return spec_of(ranks, verb="import", cure="import it into a bundle of its own")


def _notes(bundle: Bundle, leaf: NodePath, above: list[NodePath]) -> list[str]:
    notes = []
    if bundle.spec.kind != "lora":
        notes.append(f"the adapters were of kind {bundle.spec} and are plain LoRAs now")
    if above:
        told = ", ".join(node or "root" for node in above)
        notes.append(f"the leaf takes off again what {told} above it adds")
    if bundle.statistics is not None and leaf in bundle.statistics.counts:
        notes.append("the gates still send the leaf the text of those who trained it before")
    return notes


def _other_base(adapter: PlainAdapter, base: str | Path) -> list[str]:
    """Its makers may have called the same base otherwise, so that is no error: the shapes fit."""
    named, given = (Path(str(name)).name for name in (adapter.base, base))
    return [f"the adapter says that its base is {adapter.base[:200]!r}"] if named and named != given else []


def _told(name: str, leaf: NodePath, adapter: PlainAdapter) -> dict[str, Any]:
    """For the report: what was imported; no path of this machine is in it."""
    return {"adapter": name, "leaf": leaf, "modules": adapter.n_modules, "without": adapter.n_without}


def _note(name: str) -> str:
    return f"imported PEFT adapter {name}"


def _with(licences: tuple[str, ...], licence: str) -> tuple[str, ...]:
    return tuple(sorted({*licences, licence} - {""}))


def _leaf_of(bundle: Bundle, leaf: NodePath | None) -> NodePath:
    if leaf is None and len(bundle.topology.leaves) > 1:
        known = ", ".join(bundle.topology.leaves[:16])
        raise SettingError(f"--leaf: the bundle has several leaves; name one of {known}")
    return next(iter(bundle.topology.leaves)) if leaf is None else leaf


def _check_out(out: Path, into: Path | None, *, is_forced: bool) -> None:
    if out.is_dir():
        raise StorageError(f"{out}: is a folder; expected a file name such as bundle.safetensors")
    if into is not None and out.exists() and into.exists() and out.samefile(into):
        raise SettingError(f"--out {out}: is the bundle that is read; choose another name")
    if out.exists() and not is_forced:
        raise StorageError(f"{out}: is there already; choose another name, or add --force to replace it")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

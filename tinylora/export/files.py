"""`tinylora export`: a bundle's file in, a folder out, and what to say about it."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from tinylora.bundle import Bundle, inspect, read_bundle
from tinylora.derive import cut_bundle
from tinylora.errors import BaseModelError, SettingError
from tinylora.export.card import Card
from tinylora.export.folder import check_free
from tinylora.export.leaf import export_leaf
from tinylora.export.merged import export_merged
from tinylora.export.origin import Origin, find_origin
from tinylora.export.places import Places, check_shapes
from tinylora.export.vllm import export_vllm
from tinylora.tree import NodePath

Format: TypeAlias = Literal["peft", "vllm", "merged"]


@dataclass(frozen=True)
class Written:
    """What an export made."""

    facts: Mapping[str, Any]
    """Ready for JSON."""
    sentences: tuple[str, ...]
    """For people."""
    command: str = ""
    """What serves it, where there is one."""


def export_file(
    file: Path,
    out: Path,
    *,
    form: str = "peft",
    leaf: str | None = None,
    base: str = "",
    base_id: str = "",
    default_base: str = "",
    nested_rank: int | None = None,
    is_forced: bool = False,
) -> Written:
    """Write a bundle, or a leaf of it, in somebody else's format.

    Args:
        file: The bundle.
        out: Folder to write.
        form: "peft", "vllm" or "merged".
        leaf: Its path, "root" for the root's; may be left out where there is one leaf. None for vllm, which takes all.
        base: Folder or hub id; if not given, what the bundle names, or else `default_base`.
        base_id: What the base is to be called in what is written; if not given, as it is found.
        default_base: Tried last.
        nested_rank: Cut nested adapters to this rank first.
        is_forced: Whether an earlier export in `out` may be replaced.

    Raises:
        SettingError: No such format or leaf, nobody has trained it, or the base is another one.
        BundleError: The file is not a sound bundle.
        BaseModelError: The base is not on this machine, or cannot be merged into.
        StorageError: `out` cannot be written.
    """
    if form not in get_args(Format):
        raise SettingError(f"--format {form}: expected {', '.join(get_args(Format))}")
    if form == "vllm" and leaf is not None:
        raise SettingError("--leaf: --format vllm takes all leaves; leave it out")
    check_free(out, is_forced=is_forced)
    path = None if form == "vllm" else _leaf_of(inspect(file)["leaves"], leaf)
    bundle = read_bundle(file, leaves=None if path is None else (path,))
    if nested_rank is not None:
        bundle = _cut(bundle, nested_rank)
    seen = _look_at(bundle, base, default_base)
    origin = replace(seen.origin, base=base_id) if base_id else seen.origin
    card = Card(bundle_sha256=_sha256(file))
    if path is None:
        made = export_vllm(
            bundle, out, places=seen.places, base=origin, card=card, architecture=seen.architecture, is_forced=is_forced
        )
        told = f"{out}: {len(made.leaves)} leaves, --max-lora-rank {made.rank}, {made.n_bytes} bytes"
        return Written(_facts(made), (told, *made.notes), made.command)
    name = path or "root"
    if form == "merged":
        merged = export_merged(bundle, path, out, base=seen.where, origin=origin, card=card, is_forced=is_forced)
        return Written(_facts(merged), (f"{out}: leaf {name} merged into {origin.base}, {merged.n_bytes} bytes",))
    written = export_leaf(bundle, path, out, places=seen.places, base=origin, card=card, is_forced=is_forced)
    told = f"{out}: leaf {name} as a PEFT adapter of rank {written.rank} for {origin.base}, {written.n_bytes} bytes"
    return Written(_facts(written), (told,))


def _cut(bundle: Bundle, rank: int) -> Bundle:
    if bundle.spec.kind != "nested":
        raise SettingError(
            f"--nested-rank: the bundle holds adapters of kind {bundle.spec}, whose first rows were not trained to do "
            "without the others; leave it out"
        )
    return cut_bundle(bundle, rank=rank, ranks={})


@dataclass(frozen=True)
class _Seen:
    """A base, looked at without its weights."""

    where: str
    places: Places
    architecture: str
    origin: Origin = field(repr=False)


def _look_at(bundle: Bundle, base: str, default_base: str) -> _Seen:
    from tinylora.base_model import find_structure  # transformers takes seconds to load

    named = bundle.base.base_id
    tried = [base] if base else [*([named] if "/" in named else []), *([default_base] if default_base else [])]
    for where in tried:
        try:
            found = find_structure(where)
        except BaseModelError as error:
            if where == tried[-1]:
                raise BaseModelError(f"{error}; give a folder, or fetch it first: hf download {where}") from None
            continue
        check_shapes(bundle, found.shapes, where)
        places = Places(modules=found.modules, is_transposed=found.is_transposed)
        return _Seen(where, places, found.architecture, find_origin(where))
    raise SettingError(f"the bundle's base is {named}, which is not on this machine; name it with --base")


def _leaf_of(leaves: Any, leaf: str | None) -> NodePath:
    """The path that a person named: "01", "root", or as servers call it, "leaf-01"."""
    if leaf is None:
        if len(leaves) > 1:
            raise SettingError(f"--leaf: the bundle has several leaves; name one of {', '.join(leaves[:16])}")
        return leaves[0]
    path = leaf.removeprefix("leaf-")
    return "" if path == "root" else path


def _facts(made: Any) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(made).items()}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

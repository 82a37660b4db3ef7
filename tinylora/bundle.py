"""The released file: a whole tree of adapters with its gates, in one safetensors file that checks itself.

Tensors, all of them little-endian:

* `node.<path>.<projection>.lora_A` (n_layers, rank, in) and `.lora_B` (n_layers, out, rank): one adapter, stacked over
  layers; BF16 unless asked otherwise. A leaf that nobody has trained has none, and adds nothing. Tied
  adapters have one A (rank, in) and B (out, rank) for all layers, and `.lora_u` (n_layers, rank) and `.lora_v`
  (n_layers, out); a node holds those of them that were trained;
* `shared.<projection>.lora_A` and `.lora_B`: the others, once for all nodes, in the same dtype;
* `router.<path>.w` (feature,), `.b` (1,), `.tau` (1,): one gate per inner node. F64, as they were solved: a few
  kilobytes, and a reader routes exactly as the run did;
* `router.projection` (feature, embedding) F32: only where the routing feature is projected;
* `leaf.<path>.count` (1,), `leaf.<path>.mean` (feature,) and `router.covariance` (feature, feature), all F64: what the
  leaves' texts look like to the router, unless statistics were left out.

The header has exactly one metadata key, `tinylora`: canonical JSON with everything else (see `Description`), among it a
sha256 per tensor and one over the JSON itself. Reading compares the header with the one that we would write, byte for
byte, so not a single byte of the file can change unnoticed. Equal bundles are equal bytes: no time, duration or host is
in them. These sums guard against accidents; who made a bundle is what a signature would say.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import safetensors
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tinylora import tensors
from tinylora.adapters.prefixes import highest_rank
from tinylora.adapters.shapes import adapter_manifest, shared_shapes
from tinylora.adapters.spec import AdapterSpec
from tinylora.config import MAX_RANK, BaseFacts
from tinylora.durable import flush_folder
from tinylora.errors import (
    BaseModelError,
    BundleError,
    DiskFull,
    ProtocolError,
    SettingError,
    ShapeMismatch,
    StorageError,
)
from tinylora.failpoints import around, reach
from tinylora.protocol.documents import Count, Finite, Manifest, PathText, Sha256
from tinylora.routing.decision import Policy
from tinylora.routing.features import possible_hashes
from tinylora.routing.gates import Gates
from tinylora.routing.statistics import RouterStatistics
from tinylora.tensors import Tensors
from tinylora.tree import NodePath, Topology

around("bundle.write", "bundle.flush", "bundle.rename", "bundle.folder")

FORMAT = 1
METADATA_KEY = "tinylora"
AdapterDtype = Literal["BF16", "F16", "F32"]


@dataclass(frozen=True, eq=False)
class LeafStatistics:
    """What a bundle tells of its leaves' texts, enough to solve gates anew: see `summarise`."""

    counts: dict[NodePath, float]
    means: dict[NodePath, Float[np.ndarray, " feature"]]
    covariance: Float[np.ndarray, "feature feature"]
    """Within leaves, pooled: each leaf counts once."""


@dataclass(frozen=True, eq=False)
class Bundle:
    """A tree ready to be used on its base."""

    run: str
    topology: Topology
    base: BaseFacts
    spec: AdapterSpec
    scale: float
    nodes: dict[NodePath, Tensors]
    """Adapters by node, as `adapters.lora` has them; usually of the leaves, never trained ones missing."""
    gates: Gates
    policy: str = "soft"
    projection: torch.Tensor | None = None
    """(feature, embedding), where the base's embeddings are wider than the routing feature."""
    statistics: LeafStatistics | None = None
    contributors: tuple[str, ...] = ()
    versions: dict[str, int] = field(default_factory=dict)
    """What the run calls this state: "topology", "router", "node.<path>"."""
    report: dict[str, Any] = field(default_factory=dict)
    shared: Tensors = field(default_factory=dict)
    """Frozen factors that all nodes have in common, by name such as `<projection>.lora_B`: in tied adapters alone."""


class Description(BaseModel):
    """The metadata of a bundle, but for the format number and the sum over itself."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: str
    """Of the adapters, as `AdapterSpec.parse` reads it."""
    run: str
    base: BaseFacts
    leaves: tuple[PathText, ...]
    nodes: tuple[PathText, ...]
    """Those that have an adapter."""
    rank: Annotated[int, Field(ge=1, le=MAX_RANK)]
    ranks: dict[str, int] = {}
    """By projection; the others have `rank`."""
    scale: Finite
    dtype: AdapterDtype
    """Of the adapters."""
    policy: str
    embed_dim: Annotated[int, Field(ge=1)] | None
    """Columns of the projection; None where there is none."""
    statistics: tuple[PathText, ...] | None
    """Leaves with a count and a mean; None where statistics were left out."""
    contributors: tuple[str, ...]
    versions: dict[str, Count]
    report: dict[str, Any]
    tensors: dict[str, Sha256]

    @property
    def topology(self) -> Topology:
        """The tree.

        Raises:
            SettingError: The leaves are none of a full binary tree.
        """
        return Topology(self.leaves)

    @property
    def spec(self) -> AdapterSpec:
        """Kind and ranks of the adapters.

        Raises:
            SettingError: No such kind, or a rank is out of range.
        """
        return AdapterSpec.parse(self.kind, self.rank, self.ranks)


# --- writing ---------------------------------------------------------------------------------------------------------


def write_bundle(bundle: Bundle, file: Path, *, dtype: AdapterDtype = "BF16") -> str:
    """Write a bundle so that `file` holds all of it, or what it held before; returns the file's sha256.

    Raises:
        StorageError: The disk is full or the place cannot be written; nothing is left behind.
        ProtocolError: The bundle contradicts itself: a tensor is missing, of another shape, or not finite.
        SettingError: The policy is none.
    """
    named, metadata = _contents(bundle, dtype)
    return _write_atomically(file, tensors.to_pieces(named, metadata))


def to_bytes(bundle: Bundle, *, dtype: AdapterDtype = "BF16") -> bytes:
    """The bytes that `write_bundle` writes.

    Raises:
        ProtocolError: The bundle contradicts itself: a tensor is missing, of another shape, or not finite.
        SettingError: The policy is none.
    """
    return tensors.to_bytes(*_contents(bundle, dtype))


def summarise(statistics: Mapping[NodePath, RouterStatistics]) -> LeafStatistics | None:
    """What a bundle keeps of the summed statistics of its leaves; leaves without rows are left out."""
    seen = {leaf: statistics[leaf] for leaf in sorted(statistics) if statistics[leaf].n > 0}
    if not seen:
        return None
    covariance = np.mean([item.covariance() for item in seen.values()], axis=0)
    return LeafStatistics(
        {leaf: float(item.n) for leaf, item in seen.items()},
        {leaf: item.mean() for leaf, item in seen.items()},
        covariance,
    )


def _contents(bundle: Bundle, dtype: AdapterDtype) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata of the file, checked by the rules of the reader."""
    named = _named_tensors(bundle, dtype)
    description = _describe(bundle, dtype, {name: tensors.tensor_sha256(named[name]) for name in sorted(named)})
    where = f"bundle of run {bundle.run}"
    tensors.check_manifest(named, _expected_manifest(description), where=where)
    tensors.check_finite(named, where=where)
    _check_meaning(description, named, where=where)
    return named, {METADATA_KEY: _metadata_text(description)}


def _named_tensors(bundle: Bundle, dtype: AdapterDtype) -> Tensors:
    named: Tensors = {}
    for path, state in bundle.nodes.items():
        cast = {name: tensor.detach().to(tensors.DTYPES[dtype]) for name, tensor in state.items()}
        named |= tensors.with_prefix(cast, f"node.{path}.")
    frozen = {name: tensor.detach().to(tensors.DTYPES[dtype]) for name, tensor in bundle.shared.items()}
    named |= tensors.with_prefix(frozen, "shared.")
    named |= {name: _double(array) for name, array in bundle.gates.to_arrays(prefix="router.").items()}
    if bundle.projection is not None:
        named["router.projection"] = bundle.projection.detach().float()
    if bundle.statistics is not None:
        named |= _statistics_tensors(bundle.statistics)
    return named


def _statistics_tensors(statistics: LeafStatistics) -> Tensors:
    named = {"router.covariance": _double(statistics.covariance)}
    for leaf, count in statistics.counts.items():
        named[f"leaf.{leaf}.count"] = _double(np.array([count]))
        named[f"leaf.{leaf}.mean"] = _double(statistics.means[leaf])
    return named


def _double(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float64))


def _describe(bundle: Bundle, dtype: AdapterDtype, sums: dict[str, str]) -> Description:
    return Description(
        kind=str(bundle.spec),
        run=bundle.run,
        base=bundle.base,
        leaves=bundle.topology.leaves,
        nodes=tuple(sorted(bundle.nodes)),
        rank=bundle.spec.rank,
        ranks=dict(bundle.spec.ranks),
        scale=bundle.scale,
        dtype=dtype,
        policy=bundle.policy,
        embed_dim=None if bundle.projection is None else bundle.projection.shape[-1],
        statistics=None if bundle.statistics is None else tuple(sorted(bundle.statistics.counts)),
        contributors=tuple(sorted(bundle.contributors)),
        versions=bundle.versions,
        report=bundle.report,
        tensors=sums,
    )


def _expected_manifest(description: Description) -> Manifest:
    """Every tensor that a bundle so described has, with dtype and shape.

    Raises:
        SettingError: The leaves are none of a full binary tree.
        ShapeMismatch: An adapter or a statistic of a node that is not in the tree.
    """
    topology, base = description.topology, description.base
    _check_nodes("adapter", description.nodes, topology.nodes)
    _check_nodes("statistics", description.statistics or (), topology.leaves)
    manifest: Manifest = {}
    for node in description.nodes:
        manifest |= adapter_manifest(base, description.spec, path=node, dtype=description.dtype)
    shared = shared_shapes(base, description.spec)
    manifest |= {f"shared.{name}": (description.dtype, shape) for name, shape in shared.items()}
    for node in topology.inner:
        manifest |= {f"router.{node}.w": ("F64", (base.feature_dim,))}
        manifest |= {f"router.{node}.{name}": ("F64", (1,)) for name in ("b", "tau")}
    if description.embed_dim is not None:
        manifest["router.projection"] = ("F32", (base.feature_dim, description.embed_dim))
    if description.statistics is not None:
        manifest["router.covariance"] = ("F64", (base.feature_dim, base.feature_dim))
    for leaf in description.statistics or ():
        manifest |= {f"leaf.{leaf}.count": ("F64", (1,)), f"leaf.{leaf}.mean": ("F64", (base.feature_dim,))}
    return manifest


def _check_meaning(description: Description, named: Tensors, *, where: str) -> None:
    """What dtypes and shapes do not show: the gates work, the policy exists, and the projection is the base's own.

    Raises:
        ProtocolError: A temperature is not positive, or the projection is missing or another one.
        SettingError: The policy is none.
    """
    _gates_of(description, named)
    Policy.parse(description.policy)
    base, projection = description.base, named.get("router.projection")
    if base.feature_hash not in possible_hashes(projection, base.feature_dim):
        raise ShapeMismatch(
            f"{where}: tensor router.projection is {'missing' if projection is None else 'not the one'} that the base "
            f"{base.base_id} needs: the hash of the routing feature differs",
            rule="projection",
        )


def _check_nodes(what: str, paths: Iterable[NodePath], known: tuple[NodePath, ...]) -> None:
    strange = sorted(set(paths) - set(known))
    if strange:
        raise ShapeMismatch(
            f"{what} of node {strange[0]!r}: no such node; the tree has {', '.join(map(repr, known))}", rule="node"
        )


def _metadata_text(description: Description) -> str:
    fields = description.model_dump(mode="json") | {"format": FORMAT}
    return _canonical(fields | {"metadata_sha256": _metadata_sum(fields)})


def _metadata_sum(fields: dict[str, Any]) -> str:
    """sha256 of the metadata without the field that holds it: a rule for every format, past and future."""
    rest = {key: value for key, value in fields.items() if key != "metadata_sha256"}
    return hashlib.sha256(_canonical(rest).encode()).hexdigest()


def _canonical(fields: dict[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _write_atomically(file: Path, pieces: Iterable[bytes | memoryview]) -> str:
    """Write beside `file`, make it durable, then rename: at every moment the old content or the new is there."""
    if file.exists() and not file.is_file():
        raise StorageError(f"{file}: not a file; expected a file name to write the bundle to")
    # One name, not a random one: what a killed process left behind is overwritten by the next.
    unfinished = file.with_name(f".{file.name}.part")
    digest = hashlib.sha256()
    try:
        with unfinished.open("wb") as stream:
            reach("bundle.write.before")
            for piece in pieces:
                digest.update(piece)
                stream.write(piece)
            stream.flush()
            reach("bundle.write.after")
            reach("bundle.flush.before")
            os.fsync(stream.fileno())
        reach("bundle.flush.after")
        reach("bundle.rename.before")
        os.replace(unfinished, file)
        reach("bundle.rename.after")
        flush_folder(file.parent, name="bundle")
    except OSError as error:
        kind = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
        raise kind(f"{file}: cannot be written: {_reason(error, file)}") from None
    finally:
        with suppress(OSError):
            unfinished.unlink()
    return digest.hexdigest()


def _reason(error: OSError, file: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space or choose another place"
    if isinstance(error, FileNotFoundError):
        return f"there is no folder {file.parent}; make it or choose another place"
    return f"{error.strerror or error}; choose another place"


# --- reading ---------------------------------------------------------------------------------------------------------


def read_bundle(file: Path) -> Bundle:
    """Read a bundle and check every byte of it.

    The tensors are mapped from the file, not copied; they stay readable when it is replaced.

    Raises:
        BundleError: Missing, truncated, altered, no bundle, or of a format that this version does not read.
    """
    header, description = _read_description(file)
    try:
        expected = _expected_manifest(description)
        tensors.compare_manifests(header.manifest, expected, where=str(file))
        _check_sums_are_there(file, description, expected)
        named = _read_tensors(file, description)
        tensors.check_finite(named, where=str(file))
        _check_meaning(description, named, where=str(file))
        return _assemble(description, named)
    except (ProtocolError, SettingError) as error:
        reason = f"{_told_of(file, error)}; the file contradicts its own metadata"
        raise BundleError(reason, rule=error.rule or "contradiction") from None


def inspect(file: Path) -> dict[str, Any]:
    """What a bundle says of itself. The header is checked; the numbers are not read.

    Raises:
        BundleError: Missing, truncated, no bundle, or its header was altered.
    """
    header, description = _read_description(file)
    told = description.model_dump(mode="json", exclude={"tensors"})
    sizes = {"n_tensors": len(header.entries), "n_bytes": file.stat().st_size}
    return {"format": FORMAT, **told, **sizes}


def verify(file: Path) -> list[str]:
    """Check every byte of a bundle; returns sentences about what was found.

    Raises:
        BundleError: Missing, truncated, altered, no bundle, or of a format that this version does not read.
    """
    bundle, facts = read_bundle(file), inspect(file)
    rank = highest_rank(bundle.spec, bundle.base)
    findings = [
        f"{facts['n_tensors']} tensors in {facts['n_bytes']} bytes, each as its sha256 says",
        f"{len(bundle.topology.leaves)} leaves, {len(bundle.nodes)} nodes with an adapter of rank {rank}",
        f"made for base {bundle.base.base_id}, fingerprint {bundle.base.fingerprint}",
    ]
    findings += [
        f"leaf {leaf} has no adapter: text that is routed there meets the base alone"
        for leaf in bundle.topology.leaves
        if not any(leaf.startswith(node) for node in bundle.nodes)
    ]
    return findings


def check_base(bundle: Bundle, facts: BaseFacts) -> None:
    """Check that a bundle was made for this very base.

    Raises:
        BaseModelError: It was made for another one.
    """
    needed = bundle.base
    if needed.fingerprint != facts.fingerprint:
        raise BaseModelError(
            f"the bundle of run {bundle.run} needs the base {needed.base_id} (fingerprint {needed.fingerprint[:12]}), "
            f"got {facts.base_id} ({facts.fingerprint[:12]}); name the base that the bundle was trained on"
        )
    if needed.feature_hash != facts.feature_hash:
        raise BaseModelError(
            f"the bundle of run {bundle.run} routes by features of {needed.feature_dim} numbers "
            f"({needed.feature_hash[:12]}), got {facts.feature_dim} ({facts.feature_hash[:12]}); load the base "
            f"{needed.base_id} with feature_dim {needed.feature_dim}"
        )


def _read_description(file: Path) -> tuple[tensors.Header, Description]:
    """The header and the metadata of a file, neither changed by a single byte since they were written."""
    header, raw = _read_header(file)
    fields = _parse_metadata(file, header.metadata.get(METADATA_KEY))
    if fields.get("format") != FORMAT:
        raise BundleError(
            f"{file}: a bundle of format {fields.get('format')!r}, this version of TinyLoRA reads format {FORMAT}; "
            "install the version that wrote it, or a newer one",
            rule="format",
        )
    if tensors.header_bytes(header.manifest, header.metadata) != raw:
        raise _altered(file, "the header is not laid out as TinyLoRA writes it", "layout")
    try:
        return header, Description.model_validate(_without(fields, "format", "metadata_sha256"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = f"{file}: metadata field {where}: {first['msg']}; no bundle of format {FORMAT}"
        raise BundleError(reason, rule="description") from None


def _read_header(file: Path) -> tuple[tensors.Header, bytes]:
    if not file.is_file():
        what = "a folder" if file.is_dir() else "no such file"
        raise BundleError(f"{file}: {what}; expected a bundle, such as bundle.safetensors", rule="no_file")
    try:
        header = tensors.read_file_header(file)
        with file.open("rb") as stream:
            return header, stream.read(header.n_bytes)
    except ProtocolError as error:
        raise BundleError(f"{_told_of(file, error)}; it is no whole bundle, fetch it again", rule=error.rule) from None
    except OSError as error:
        raise BundleError(f"{file}: cannot be read: {error.strerror or error}") from None


def _parse_metadata(file: Path, text: str | None) -> dict[str, Any]:
    """The metadata as JSON, after the check of its own sum."""
    if text is None:
        raise BundleError(
            f"{file}: a safetensors file, but no bundle: it has no metadata key {METADATA_KEY!r}", rule="no_metadata"
        )
    if text.count("[") + text.count("{") > tensors.MAX_TENSORS:  # before parsing, which takes memory for each of them
        raise BundleError(
            f"{file}: metadata: expected at most {tensors.MAX_TENSORS} lists and objects", rule="many_values"
        )
    fields = _load_canonical(text)
    if fields is None or fields.get("metadata_sha256") != _metadata_sum(fields):
        raise _altered(file, "the metadata do not fit their sha256", "metadata_sum")
    return fields


def _load_canonical(text: str) -> dict[str, Any] | None:
    """The object that `text` is the canonical JSON of, or None."""
    try:
        fields = json.loads(text)
        return fields if isinstance(fields, dict) and _canonical(fields) == text else None
    except (ValueError, RecursionError):
        return None


def _check_sums_are_there(file: Path, description: Description, expected: Manifest) -> None:
    wrong = sorted(description.tensors.keys() ^ expected.keys())
    if wrong:
        reason = f"{file}: the metadata have a sha256 for other tensors than the file has, first {wrong[0]}"
        raise BundleError(reason, rule="sums")


def _read_tensors(file: Path, description: Description) -> Tensors:
    """All tensors that the description names, each checked against its sha256."""
    try:
        with safetensors.safe_open(file, framework="pt") as stored:
            named = {name: stored.get_tensor(name) for name in sorted(description.tensors)}
    except (safetensors.SafetensorError, OSError) as error:
        raise BundleError(f"{file}: cannot be read: {error}", rule="not_readable") from None
    for name, tensor in named.items():
        if tensors.tensor_sha256(tensor) != description.tensors[name]:
            raise _altered(file, f"tensor {name} does not fit its sha256", "tensor_sum")
    return named


def _assemble(description: Description, named: Tensors) -> Bundle:
    return Bundle(
        run=description.run,
        topology=description.topology,
        base=description.base,
        spec=description.spec,
        scale=description.scale,
        nodes={node: tensors.strip_prefix(named, f"node.{node}.") for node in description.nodes},
        gates=_gates_of(description, named),
        policy=description.policy,
        projection=named.get("router.projection"),
        statistics=_assemble_statistics(description, named),
        contributors=description.contributors,
        versions=description.versions,
        report=description.report,
        shared=tensors.strip_prefix(named, "shared."),
    )


def _gates_of(description: Description, named: Tensors) -> Gates:
    names = [f"router.{node}.{part}" for node in description.topology.inner for part in ("w", "b", "tau")]
    return Gates.from_arrays({name: _array(named[name]) for name in names}, dim=description.base.feature_dim)


def _array(tensor: torch.Tensor) -> np.ndarray:
    """A copy of its own, independent of the file."""
    return tensor.numpy().copy()


def _assemble_statistics(description: Description, named: Tensors) -> LeafStatistics | None:
    if description.statistics is None:
        return None
    return LeafStatistics(
        {leaf: float(named[f"leaf.{leaf}.count"]) for leaf in description.statistics},
        {leaf: _array(named[f"leaf.{leaf}.mean"]) for leaf in description.statistics},
        _array(named["router.covariance"]),
    )


def _altered(file: Path, what: str, rule: str) -> BundleError:
    return BundleError(f"{file}: altered since it was written: {what}; fetch it again", rule=rule)


def _told_of(file: Path, error: Exception) -> str:
    """A reader's sentence, with the file in front of it."""
    text = str(error).removeprefix("tensors: ")
    return text if text.startswith(str(file)) else f"{file}: {text}"


def _without(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key not in names}

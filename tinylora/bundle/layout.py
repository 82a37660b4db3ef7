"""Which tensors a bundle has, by name, dtype and shape; a bundle as such tensors, and back."""

from collections.abc import Collection, Iterable

import numpy as np
import torch

from tinylora import tensors
from tinylora.adapters.shapes import adapter_manifest, shared_shapes
from tinylora.bundle.contents import Bundle, LeafStatistics, check_statistics, packed_size
from tinylora.bundle.metadata import MAX_NOTES, AdapterDtype, Description, as_line
from tinylora.errors import ProtocolError, ShapeMismatch
from tinylora.protocol.documents import Manifest
from tinylora.routing.decision import Policy
from tinylora.routing.features import possible_hashes
from tinylora.routing.gates import Gates
from tinylora.tensors import Tensors
from tinylora.tree import NodePath, is_under

PROJECTION = "router.projection"
_POOLED = "router.covariance"


# --- what must be there ----------------------------------------------------------------------------------------------


def expected_manifest(description: Description) -> Manifest:
    """Every tensor that a bundle so described has, with dtype and shape.

    Raises:
        SettingError: The leaves are none of a full binary tree, or the policy is none.
        ShapeMismatch: An adapter, a statistic or a note of a node that is not in the tree.
        ProtocolError: There are more tensors than a file may hold.
    """
    Policy.parse(description.policy)
    topology, base = description.topology, description.base
    _check_nodes("adapter", description.nodes, topology.nodes)
    _check_nodes("statistics", description.sketched, topology.leaves)
    _check_nodes("a note on the data", description.data_notes, topology.leaves)
    if len(description.nodes) * len(base.projections) > tensors.MAX_TENSORS:  # before they are all named
        raise ProtocolError(
            f"adapters of {len(description.nodes)} nodes on {len(base.projections)} projections: expected at most "
            f"{tensors.MAX_TENSORS} tensors",
            rule="many_tensors",
        )
    manifest: Manifest = {}
    for node in description.nodes:
        manifest |= adapter_manifest(base, description.spec, path=node, dtype=description.dtype)
    shared = shared_shapes(base, description.spec)
    manifest |= {f"shared.{name}": (description.dtype, shape) for name, shape in shared.items()}
    for node in topology.inner:
        manifest |= {f"router.{node}.w": ("F64", (base.feature_dim,))}
        manifest |= {f"router.{node}.{name}": ("F64", (1,)) for name in ("b", "tau")}
    if description.embed_dim is not None:
        manifest[PROJECTION] = ("F32", (base.feature_dim, description.embed_dim))
    return manifest | _statistics_manifest(description)


def _statistics_manifest(description: Description) -> Manifest:
    dim, kind = description.base.feature_dim, description.statistics
    manifest: Manifest = {_POOLED: ("F64", (dim, dim))} if kind == "pooled" else {}
    for leaf in description.sketched:
        manifest |= {f"leaf.{leaf}.count": ("F64", (1,)), f"leaf.{leaf}.mean": ("F64", (dim,))}
        if kind == "leaf":
            manifest[f"leaf.{leaf}.covariance"] = ("F64", (packed_size(dim),))
    return manifest


def _check_nodes(what: str, paths: Iterable[NodePath], known: tuple[NodePath, ...]) -> None:
    strange = sorted(set(paths) - set(known))
    if strange:
        told = ", ".join(map(repr, known[:16])) + (" ..." if len(known) > 16 else "")
        raise ShapeMismatch(f"{what} of node {strange[0]!r}: no such node; the tree has {told}", rule="node")


def names_on_the_way(description: Description, leaves: Collection[NodePath]) -> list[str]:
    """Names of the adapters that these leaves add up, and of the projection; no gates and no statistics."""
    nodes = [node for node in description.nodes if any(is_under(leaf, node) for leaf in leaves)]
    needed = (PROJECTION, "shared.", *(f"node.{node}." for node in nodes))
    return [name for name in sorted(description.tensors) if name.startswith(needed)]


def gate_names(description: Description) -> list[str]:
    """Names of the tensors that are the gates."""
    return [f"router.{node}.{part}" for node in description.topology.inner for part in ("w", "b", "tau")]


def check_meaning(description: Description, named: Tensors, *, where: str) -> None:
    """What dtypes and shapes do not show: the projection is the base's own, and the statistics are of text.

    Raises:
        ProtocolError: They are not.
    """
    base, projection = description.base, named.get(PROJECTION)
    if base.feature_hash not in possible_hashes(projection, base.feature_dim):
        raise ShapeMismatch(
            f"{where}: tensor {PROJECTION} is {'missing' if projection is None else 'not the one'} that the base "
            f"{base.base_id} needs: the hash of the routing feature differs",
            rule="projection",
        )
    statistics = statistics_of(description, named)
    if statistics is not None:
        check_statistics(statistics, where=where)


# --- a bundle as tensors ---------------------------------------------------------------------------------------------


def named_tensors(bundle: Bundle, dtype: AdapterDtype) -> Tensors:
    """All tensors of the file, by name."""
    named: Tensors = {}
    for path, state in bundle.nodes.items():
        cast = {name: tensor.detach().to(tensors.DTYPES[dtype]) for name, tensor in state.items()}
        named |= tensors.with_prefix(cast, f"node.{path}.")
    frozen = {name: tensor.detach().to(tensors.DTYPES[dtype]) for name, tensor in bundle.shared.items()}
    named |= tensors.with_prefix(frozen, "shared.")
    named |= {name: _double(array) for name, array in bundle.gates.to_arrays(prefix="router.").items()}
    if bundle.projection is not None:
        named[PROJECTION] = bundle.projection.detach().float()
    if bundle.statistics is not None:
        named |= _statistics_tensors(bundle.statistics)
    return named


def _statistics_tensors(statistics: LeafStatistics) -> Tensors:
    named = {} if statistics.pooled is None else {_POOLED: _double(statistics.pooled)}
    for leaf, count in statistics.counts.items():
        named[f"leaf.{leaf}.count"] = _double(np.array([count]))
        named[f"leaf.{leaf}.mean"] = _double(statistics.means[leaf])
    return named | {f"leaf.{leaf}.covariance": _double(packed) for leaf, packed in statistics.covariances.items()}


def _double(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float64))


def describe(bundle: Bundle, dtype: AdapterDtype, sums: dict[str, str], *, signed_by: str) -> Description:
    """What the metadata say of a bundle; texts for people are made plain.

    Raises:
        ValidationError: A field is none that the reader would take.
    """
    notes = {leaf: tuple(map(as_line, notes[:MAX_NOTES])) for leaf, notes in bundle.data_notes.items() if notes}
    return Description(
        kind=str(bundle.spec),
        run=as_line(bundle.run),
        base=bundle.base.model_copy(update={"base_id": as_line(bundle.base.base_id)}),
        leaves=bundle.topology.leaves,
        nodes=tuple(sorted(bundle.nodes)),
        rank=bundle.spec.rank,
        ranks=dict(bundle.spec.ranks),
        scale=bundle.scale,
        dtype=dtype,
        policy=bundle.policy,
        embed_dim=None if bundle.projection is None else bundle.projection.shape[-1],
        statistics="none" if bundle.statistics is None else bundle.statistics.kind,
        sketched=() if bundle.statistics is None else tuple(sorted(bundle.statistics.counts)),
        contributors=tuple(sorted(map(as_line, bundle.contributors))),
        versions=bundle.versions,
        report=bundle.report,
        data_notes=notes,
        licences=tuple(sorted({as_line(licence) for licence in bundle.licences})),
        derived_from=bundle.derived_from,
        signed_by=signed_by,
        tensors=sums,
    )


# --- tensors as a bundle ---------------------------------------------------------------------------------------------


def assemble(description: Description, named: Tensors, gates: Gates) -> Bundle:
    """The bundle that these tensors and gates are; adapters and statistics that were not read are missing."""
    states: dict[NodePath, Tensors] = {}
    for name in sorted(named):
        if name.startswith("node."):
            _, node, rest = name.split(".", 2)
            states.setdefault(node, {})[rest] = named[name]
    return Bundle(
        run=description.run,
        topology=description.topology,
        base=description.base,
        spec=description.spec,
        scale=description.scale,
        nodes=states,
        gates=gates,
        policy=description.policy,
        projection=named.get(PROJECTION),
        statistics=statistics_of(description, named),
        contributors=description.contributors,
        versions=description.versions,
        report=description.report,
        shared=tensors.strip_prefix(named, "shared."),
        data_notes=description.data_notes,
        licences=description.licences,
        derived_from=description.derived_from,
    )


def gates_of(description: Description, named: Tensors) -> Gates:
    """The gates, copied out of the file."""
    arrays = {name: _array(named[name]) for name in gate_names(description)}
    return Gates.from_arrays(arrays, dim=description.base.feature_dim)


def statistics_of(description: Description, named: Tensors) -> LeafStatistics | None:
    """The leaves' statistics, copied out of the file; None where there are none, or they were not read."""
    leaves = description.sketched
    if description.statistics == "none" or any(f"leaf.{leaf}.count" not in named for leaf in leaves):
        return None
    is_pooled = description.statistics == "pooled"
    return LeafStatistics(
        {leaf: float(named[f"leaf.{leaf}.count"]) for leaf in leaves},
        {leaf: _array(named[f"leaf.{leaf}.mean"]) for leaf in leaves},
        {} if is_pooled else {leaf: _array(named[f"leaf.{leaf}.covariance"]) for leaf in leaves},
        _array(named[_POOLED]) if is_pooled else None,
    )


def _array(tensor: torch.Tensor) -> np.ndarray:
    """A copy of its own, independent of the file."""
    return tensor.numpy().copy()

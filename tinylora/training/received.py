"""What a worker was sent, checked against what it holds before anything is computed with it."""

from dataclasses import dataclass, field

import numpy as np
import torch

from tinylora.adapters.lora import init_adapter
from tinylora.adapters.nested import cut
from tinylora.adapters.prefixes import highest_rank, prefix_spec
from tinylora.adapters.shapes import adapter_manifest, check_projections
from tinylora.config import BaseFacts
from tinylora.errors import BaseModelError, ProtocolError, SettingError
from tinylora.protocol.documents import Manifest, WorkUnit, sha256
from tinylora.routing.gates import Gates
from tinylora.tensors import (
    Tensors,
    check_finite,
    check_manifest,
    compare_manifests,
    from_bytes,
    manifest_of,
    strip_prefix,
    with_prefix,
)
from tinylora.tree import NodePath, Topology, ancestors, is_under

_FLOATS = ("F32", "BF16", "F16")


@dataclass(frozen=True)
class Received:
    """A unit's payload, opened: its adapters, and gates of the inner nodes above and below its node."""

    adapters: dict[NodePath, Tensors]
    gates: Gates
    """`router.*`: what the run routes by."""
    averaged: Gates
    """`weights_router.*`: gates by averaged weights, where the run keeps them."""
    candidates: dict[NodePath, Tensors] = field(default_factory=dict)
    """Of a probe: the adapters that are to be scored."""

    @property
    def present(self) -> Gates:
        """The gates that text is routed by now."""
        return self.gates if self.gates.nodes else self.averaged


def check_unit(unit: WorkUnit, facts: BaseFacts, *, max_rank: int = 0, max_leaves: int = 0) -> None:
    """Check that this worker can do what the unit asks for.

    Args:
        unit: The unit.
        facts: Of this worker's base.
        max_rank: Highest rank that this worker can train; 0 is any.
        max_leaves: Leaves that this worker can train together; 0 is any.

    Raises:
        BaseModelError: The unit is for another base or tokenizer.
        ProtocolError: It is for another routing feature, or a field contradicts another one or the base.
    """
    where = f"unit {unit.unit_id}"
    hint = "start the worker with the base of the run"
    for what, wanted, held in (
        ("base", unit.base_fingerprint, facts.fingerprint),
        ("tokenizer", unit.tokenizer_fingerprint, facts.tokenizer_fingerprint),
    ):
        if wanted != held:
            reason = f"expected the {what} {wanted[:12]}, this worker has {held[:12]} of {facts.base_id}"
            raise BaseModelError(f"{where}: {reason}; {hint}")
    if unit.feature_hash != facts.feature_hash:
        reason = f"expected the routing feature {unit.feature_hash[:12]}, this worker makes {facts.feature_hash[:12]}"
        raise ProtocolError(f"{where}: {reason}; update tinylora on the older side")
    if unit.window_tokens > facts.max_window_tokens:
        reason = f"windows of {unit.window_tokens} tokens, but {facts.base_id} attends to {facts.max_window_tokens}"
        raise ProtocolError(f"{where}: {reason}; lower window_tokens in the run's settings")
    if unit.kind == "train":
        _check_positive(unit, ("rank", "n_steps", "total_steps", "batch_windows", "learning_rate"), where)
        _check_tree(unit, facts, where)
        _check_nodes(unit, where)
        _check_rank(unit, facts, max_rank, where)
        if unit.is_subtree and 0 < max_leaves < len(unit.leaves):
            reason = f"a subtree of {len(unit.leaves)} leaves, this worker trains {max_leaves} at most"
            raise ProtocolError(f"{where}: {reason}")
    if unit.kind == "probe":
        _check_positive(unit, ("rank", "probe_windows"), where)
        _check_tree(unit, facts, where)
        _check_nodes(unit, where)


def _check_positive(unit: WorkUnit, names: tuple[str, ...], where: str) -> None:
    for name in names:
        if not getattr(unit, name) > 0:
            raise ProtocolError(f"{where}: {name}: expected more than 0, got {getattr(unit, name)}")


def _check_tree(unit: WorkUnit, facts: BaseFacts, where: str) -> None:
    try:
        check_projections(facts, unit.spec)
    except SettingError as error:
        raise ProtocolError(f"{where}: {error}") from None
    if unit.window_tokens < 2:
        raise ProtocolError(f"{where}: window_tokens: expected at least 2, got {unit.window_tokens}")
    try:
        below = Topology(unit.topology_leaves).leaves_below(unit.node)
    except SettingError as error:
        raise ProtocolError(f"{where}: topology_leaves: {error}") from None
    if not below or below != tuple(unit.leaves):
        reason = f"expected {below} below node {unit.node!r} of its tree, got {tuple(unit.leaves)}"
        raise ProtocolError(f"{where}: leaves: {reason}")


def _check_nodes(unit: WorkUnit, where: str) -> None:
    """The adapters of a unit lie on the way to its node and at its leaves, each once and with a version."""
    known = {*unit.leaves, *ancestors(unit.node), unit.node}
    named = (*unit.nodes, *unit.frozen)
    strange = sorted(set(named) - known)
    if strange:
        raise ProtocolError(f"{where}: node {strange[0]!r} is neither on the way to {unit.node!r} nor a leaf below it")
    if len(set(named)) < len(named) or (unit.node_versions and len(unit.node_versions) != len(unit.nodes)):
        reason = f"trained {unit.nodes} of versions {unit.node_versions}, frozen {unit.frozen}"
        raise ProtocolError(f"{where}: expected each node once and a version of each that is trained, got {reason}")
    if not unit.is_subtree and not all(is_under(unit.node, node) for node in unit.applied):
        reason = "expected all leaves of the subtree, or nodes of one path"
        raise ProtocolError(f"{where}: {reason} to {unit.node!r}; got {unit.applied}")


def _check_rank(unit: WorkUnit, facts: BaseFacts, max_rank: int, where: str) -> None:
    if unit.prefix_rank and unit.spec.kind != "nested":
        reason = f"a prefix of {unit.prefix_rank} rows of an adapter of kind {unit.spec}"
        raise ProtocolError(f"{where}: {reason}; only prefixes of nested ones can be trained")
    rank = highest_rank(prefix_spec(unit.spec, facts, unit.prefix_rank), facts)
    if 0 < max_rank < rank:
        raise ProtocolError(f"{where}: adapters of rank {rank}, this worker trains rank {max_rank} at most")


def open_payload(unit: WorkUnit, payload: bytes, facts: BaseFacts) -> Received:
    """Read a unit's payload; nodes without a version yet begin from the run's seed, alike on every machine.

    Raises:
        ProtocolError: The payload is not the one the unit speaks of, cannot be read, or holds NaN or infinity.
        ShapeMismatch: Its tensors are not those that the unit, its rank and the base ask for.
    """
    where = f"unit {unit.unit_id}"
    if sha256(payload) != unit.payload_sha256:
        reason = f"expected sha256 {unit.payload_sha256[:12]}, got {sha256(payload)[:12]}"
        raise ProtocolError(f"{where}: payload: {reason}; it was altered on its way, ask for the unit again")
    tensors = from_bytes(payload) if payload else {}
    check_manifest(tensors, unit.manifest, where=where)
    check_finite(tensors, where=where)
    return Received(
        adapters={node: _adapter(unit, node, tensors, facts) for node in unit.applied},
        candidates={node: _adapter(unit, node, tensors, facts, "candidate") for node in _scored(unit)},
        gates=Gates.from_arrays(_gates(tensors, "router."), "router.", dim=facts.feature_dim),
        averaged=Gates.from_arrays(
            _gates(tensors, "weights_router."), "weights_router.", dim=facts.feature_dim, with_tau=False
        ),
    )


def _scored(unit: WorkUnit) -> tuple[NodePath, ...]:
    return tuple(unit.trained) if unit.kind == "probe" else ()


def _gates(tensors: Tensors, prefix: str) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in tensors.items() if name.startswith(prefix)}


def _adapter(unit: WorkUnit, node: NodePath, tensors: Tensors, facts: BaseFacts, kind: str = "node") -> Tensors:
    prefix, spec = f"{kind}.{node}.", prefix_spec(unit.spec, facts, unit.prefix_rank)
    if unit.trained.get(node) == 0 and kind == "node":
        drawn = init_adapter(facts, unit.spec, seed=unit.seed, path=node)
        return cut(drawn, unit.spec, spec.ranks) if unit.prefix_rank else drawn
    state = strip_prefix({name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}, prefix)
    got = manifest_of(with_prefix(state, f"node.{node}."))
    expected = adapter_manifest(facts, spec, path=node, dtype=_float_of(got))
    compare_manifests(got, expected, where=f"unit {unit.unit_id}")
    return {name: tensor.to(torch.float32) for name, tensor in state.items()}


def _float_of(manifest: Manifest) -> str:
    """The one float dtype that all tensors should have: that of the first, if it is one that adapters travel in."""
    first = next(iter(manifest.values()), ("F32", ()))[0]
    return first if first in _FLOATS else "F32"

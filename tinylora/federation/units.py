"""What a unit says and carries, from the state of the run. Pure; the loop adds the bytes.

The fold drafts a unit when it is leased, and keeps the draft while the lease is open: whatever happens to the run in
the meantime, the same unit can be sent again.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinylora.adapters.prefixes import highest_rank
from tinylora.federation.state import Campaign, Draft, Lease, Worker
from tinylora.protocol.documents import Factor, Manifest, WorkUnit, sha256
from tinylora.tree import NodePath, by_level, is_under

NO_PAYLOAD = sha256(b"")


@dataclass(frozen=True)
class Task:
    """What a unit trains."""

    nodes: tuple[NodePath, ...] = ()
    """Nodes whose adapters are trained, upper ones first."""
    frozen: tuple[NodePath, ...] = ()
    """Nodes above them whose adapters are applied as they are."""
    parts: tuple[NodePath, ...] = ()
    """What moves on by it, upper ones first; the schedule is that of the last one."""


def task(state: Campaign, node: NodePath, *, is_adopted: bool) -> Task:
    """What a holder of `node` trains next; of an adopted node its own adapter, or those of all leaves below it.

    A node of the trunk that has no adapter yet is not among the frozen ones: it adds nothing.
    """
    parts = (state.top_of(node),) if is_adopted else state.stage(node)
    trained = [path for top in parts for path in ((top,) if state.is_trunk(top) else state.leaves_below(node))]
    above = [top for top in state.way_to(node) if state.is_trunk(top) and any(is_under(path, top) for path in trained)]
    frozen = tuple(top for top in above if top not in trained and state.nodes[top].blob)
    return Task(tuple(trained), frozen, parts)


def factors_of(state: Campaign, top: NodePath) -> tuple[Factor, ...]:
    """What the present version of a node is trained in: () for all factors.

    In alternating runs a node with replicas has B trained in its even versions and A in its odd ones. Then the factor
    that is averaged stands beside one that all replicas have in common, and the mean of the products is the product of
    the means. A node with a single holder has nothing to average, and trains both.

    Source:
        Koo et al. 2024, LoRA-A2, arXiv:2410.22815, section 4.1: alternating freeze, B first.
    """
    node = state.nodes[top]
    if node.factors is not None:
        return node.factors
    is_alternating = state.settings.replicas == "alternate" and state.replicas(top) > 1
    return (("lora_A",) if node.version % 2 else ("lora_B",)) if is_alternating else ()


def prefix_rank_of(state: Campaign, worker: str) -> int:
    """How many rows of every adapter a worker can train; 0 for all of them."""
    spec, most = state.settings.spec, state.workers[worker].max_rank
    return most if spec.kind == "nested" and 0 < most < highest_rank(spec, state.base) else 0


def unit_id(number: int) -> str:
    """Name of the run's `number`-th unit; sorted by name is sorted by age."""
    return f"u{number:08d}"


def was_issued(state: Campaign, text: str) -> bool:
    """Whether a unit of this name was ever leased in the run."""
    digits = text.removeprefix("u")
    return digits.isascii() and digits.isdigit() and unit_id(int(digits[:15])) == text and int(digits) < state.n_units


def simple_nonce(run: str, seed: int, unit: str) -> str:
    """A nonce that only repeats itself: right for simulations. A coordinator draws random ones."""
    return hashlib.sha256(f"{run}/{seed}/{unit}".encode()).hexdigest()[:32]


def draft(state: Campaign, lease: Lease) -> Draft:
    """The unit of a lease that is about to be given, or has just been.

    Its payload: for training, the current adapters that it trains or applies, and the gates on the way to them; for a
    probe, these adapters, those of the candidate, and all gates; nothing for a sketch. Of training the size grows with
    the subtree and the depth, never with the tree.
    """
    document = _document(state, lease)
    if lease.kind == "sketch":
        return Draft(document)
    nodes = (*lease.frozen, *state.trained_by(lease))
    parts = by_level({state.top_of(node) for node in nodes})
    blobs = tuple(blob for blob in (*(state.nodes[top].blob for top in parts), state.router.blob) if blob)
    adapters = tuple(f"node.{node}." for node in nodes)
    if lease.kind == "probe":
        unit = _with_probe(state, lease, _with_nodes(state, lease, document))
        return Draft(unit, blobs, (*adapters, "router."), state.pending[lease.subject].update.blob)
    gates = tuple(f"{name}.{inner}." for inner in state.gates_of(lease.node) for name in ("router", "weights_router"))
    return Draft(_with_training(state, lease, _with_nodes(state, lease, document)), blobs, (*adapters, *gates))


def finished(draft: Draft, payload: bytes, manifest: Manifest) -> WorkUnit:
    """The document that goes to the worker with `payload`."""
    return draft.unit.model_copy(update={"manifest": manifest, "payload_sha256": sha256(payload)})


def training(state: Campaign, worker: str, node: NodePath, *, is_adopted: bool) -> dict[str, Any]:
    """What the lease of a train unit says of the work."""
    work = task(state, node, is_adopted=is_adopted)
    part = state.nodes[work.parts[-1]]
    left = min(state.budget(top) - state.nodes[top].steps for top in work.parts)
    return {
        "topology_version": state.topology_version,
        "router_version": state.router.version,
        "node_version": version_of(state, work.parts[-1]),
        "first_step": part.steps,
        "n_steps": min(state.settings.unit_steps, left),
        "nodes": work.nodes,
        "frozen": work.frozen,
        "factors": factors_of(state, work.parts[-1]),
        "prefix_rank": prefix_rank_of(state, worker),
    }


def probing(state: Campaign, subject: str) -> dict[str, Any]:
    """What the lease of a probe says of the work: what the unit under scrutiny trained, beside the same ancestors."""
    scored = state.pending[subject].lease
    return {
        "topology_version": state.topology_version,
        "router_version": state.router.version,
        "node_version": scored.node_version,
        "n_steps": 0,
        "nodes": state.trained_by(scored),
        "frozen": scored.frozen,
        "subject": subject,
    }


def version_of(state: Campaign, top: NodePath) -> int:
    """The version that a unit on this part begins from; 0, from the run's seed, where it has no adapters (any more)."""
    node = state.nodes[top]
    return node.version if node.blob else 0


def home_of(state: Campaign, worker: Worker) -> NodePath | None:
    """The node that all of a worker's text belongs to, if there is one."""
    return None if worker.is_mixed else worker.node


def _document(state: Campaign, lease: Lease) -> WorkUnit:
    settings, base = state.settings, state.base
    return WorkUnit(
        unit_id=lease.unit_id,
        run=state.run,
        kind=lease.kind,
        node=lease.node,
        nonce=lease.nonce,
        deadline_s=lease.deadline_s - lease.at_s,
        base_fingerprint=base.fingerprint,
        tokenizer_fingerprint=base.tokenizer_fingerprint,
        feature_hash=base.feature_hash,
        feature_dim=base.feature_dim,
        window_tokens=settings.window_tokens,
        sketch_min_sequences=settings.min_sequences,
        seed=settings.seed,
        router_sync=settings.router_sync,
        payload_sha256=NO_PAYLOAD,
    )


def _with_nodes(state: Campaign, lease: Lease, document: WorkUnit) -> WorkUnit:
    """With the adapters that it is about, and where they are in the tree."""
    settings = state.settings
    return _changed(
        document,
        {
            "leaves": state.leaves_below(lease.node),
            "nodes": lease.nodes,
            "node_versions": tuple(version_of(state, state.top_of(node)) for node in lease.nodes),
            "frozen": lease.frozen,
            "topology_leaves": state.leaves,
            "topology_version": lease.topology_version,
            "router_version": lease.router_version,
            "node_version": lease.node_version,
            "adapter": settings.adapter,
            "rank": settings.rank,
            "ranks": settings.ranks,
            "scale": settings.scale,
        },
    )


def _with_training(state: Campaign, lease: Lease, document: WorkUnit) -> WorkUnit:
    settings = state.settings
    return _changed(
        document,
        {
            "prefix_rank": lease.prefix_rank,
            "factors": lease.factors,
            "has_new_axes": any(state.nodes[top].has_new_axes for top in state.parts_of(lease)),
            "first_step": lease.first_step,
            "n_steps": lease.n_steps,
            "total_steps": state.budget(state.parts_of(lease)[-1]),
            "batch_windows": settings.batch_windows,
            "learning_rate": settings.learning_rate,
            "warmup_steps": settings.warmup_steps,
            "is_adopted": lease.is_adopted,
        },
    )


def _with_probe(state: Campaign, lease: Lease, document: WorkUnit) -> WorkUnit:
    home = home_of(state, state.workers[lease.worker])
    return _changed(document, {"subject": lease.subject, "probe_windows": state.settings.probe_windows, "home": home})


def _changed(document: WorkUnit, fields: Mapping[str, Any]) -> WorkUnit:
    return document.model_copy(update=dict(fields))

"""What a unit says and carries, from the state of the run. Pure; the loop adds the bytes."""

import hashlib
from dataclasses import dataclass

from tinylora.adapters.prefixes import highest_rank
from tinylora.federation.campaign import Campaign, Lease
from tinylora.protocol.documents import Factor, Manifest, WorkUnit, sha256
from tinylora.tree import NodePath, by_level, is_under


@dataclass(frozen=True)
class Contents:
    """What a unit's payload holds: blobs to take tensors from, and the prefixes of their names."""

    blobs: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()


def contents(state: Campaign, lease: Lease) -> Contents:
    """The current adapters that a unit trains or applies, and the gates on the way to them; nothing for a sketch.

    Its size grows with the subtree and the depth, never with the tree.
    """
    if lease.kind != "train":
        return Contents()
    nodes = (*lease.frozen, *state.trained_by(lease))
    parts = by_level({state.top_of(node) for node in nodes})
    blobs = (*(state.nodes[top].blob for top in parts), state.router.blob)
    adapters = [f"node.{node}." for node in nodes]
    gates = [f"{name}.{inner}." for inner in state.gates_of(lease.node) for name in ("router", "weights_router")]
    return Contents(tuple(blob for blob in blobs if blob), (*adapters, *gates))


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

    A node of the trunk that has no version yet is not among the frozen ones: it adds nothing.
    """
    parts = (state.top_of(node),) if is_adopted else state.stage(node)
    trained = [path for top in parts for path in ((top,) if state.is_trunk(top) else state.leaves_below(node))]
    above = [top for top in state.way_to(node) if state.is_trunk(top) and any(is_under(path, top) for path in trained)]
    frozen = tuple(top for top in above if top not in trained and state.nodes[top].version)
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


def make_unit(state: Campaign, lease: Lease, payload: bytes, manifest: Manifest) -> WorkUnit:
    """The document that goes to the worker with `payload`."""
    settings, base = state.settings, state.base
    document = WorkUnit(
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
        manifest=manifest,
        payload_sha256=sha256(payload),
    )
    return document if lease.kind == "sketch" else _with_training(state, lease, document)


def _with_training(state: Campaign, lease: Lease, document: WorkUnit) -> WorkUnit:
    settings = state.settings
    return document.model_copy(
        update={
            "leaves": state.leaves_below(lease.node),
            "nodes": lease.nodes,
            "node_versions": tuple(state.nodes[state.top_of(node)].version for node in lease.nodes),
            "frozen": lease.frozen,
            "prefix_rank": lease.prefix_rank,
            "topology_leaves": state.leaves,
            "topology_version": lease.topology_version,
            "router_version": lease.router_version,
            "node_version": lease.node_version,
            "adapter": settings.adapter,
            "rank": settings.rank,
            "ranks": settings.ranks,
            "scale": settings.scale,
            "factors": lease.factors,
            "has_new_axes": any(state.nodes[top].has_new_axes for top in state.parts_of(lease)),
            "first_step": lease.first_step,
            "n_steps": lease.n_steps,
            "total_steps": state.budget(state.parts_of(lease)[-1]),
            "batch_windows": settings.batch_windows,
            "learning_rate": settings.learning_rate,
            "warmup_steps": settings.warmup_steps,
            "is_adopted": lease.is_adopted,
        }
    )

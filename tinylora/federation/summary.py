"""What a report says of a run, from its events alone."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tinylora.federation.events import (
    Event,
    GatesSolved,
    LeafSplit,
    LeaseExpired,
    LeavesMerged,
    NodeAveraged,
    RunFinished,
    SplitKept,
    SubtreeDivided,
    TopologySet,
    UnitLeased,
    UpdateAccepted,
    UpdateProbed,
    UpdateRejected,
    WorkerAssigned,
    WorkerErased,
    WorkerJoined,
    WorkerLost,
    WorkerQuarantined,
    WorkerRevoked,
)
from tinylora.tree import Topology, is_under

_FROM_UPDATE = (
    "unit_id",
    "worker",
    "kind",
    "node",
    "node_version",
    "router_version",
    "shard_tokens",
    "tokens",
    "n_steps",
    "seconds",
    "base_loads",
    "heldout_nll_before",
    "heldout_nll_after",
    "bytes_received",
    "at_s",
)


_GROWN = (LeafSplit, LeavesMerged, SubtreeDivided)
_SHAPES = (TopologySet, *_GROWN)


def summarise(events: Iterable[Event]) -> dict[str, Any]:
    """A run as tables, ready for JSON.

    Returns:
        `units` (accepted ones, in order), `workers` (totals), `rounds` (router versions), `averages` (versions of
        nodes, and how far averaged factors are off the averaged function), `topology` (leaves, assignment, steps by
        node), `rejected` and `expired` (every case with its reason), `trust` (what was probed, who was taken out),
        `finished` (why, or nothing).
    """
    known = tuple(events)
    units = _units(known)
    return {
        "units": units,
        "workers": _workers(known, units),
        "rounds": _rounds(known),
        "averages": _averages(known),
        "topology": _topology(known),
        "rejected": _rejected(known),
        "expired": _expired(known),
        "trust": _trust(known),
        "finished": next((event.reason for event in known if isinstance(event, RunFinished)), ""),
    }


def _leases(events: Sequence[Event]) -> dict[str, UnitLeased]:
    return {event.unit_id: event for event in events if isinstance(event, UnitLeased)}


def _names(events: Sequence[Event]) -> dict[str, str]:
    return {event.worker: event.name for event in events if isinstance(event, WorkerJoined)}


def _units(events: Sequence[Event]) -> list[dict[str, Any]]:
    """One row for each accepted update."""
    leases, names, topology = _leases(events), _names(events), _tree(events)
    rows = []
    for event in events:
        if not isinstance(event, UpdateAccepted):
            continue
        lease = leases[event.unit_id]
        leaves = topology.leaves_below(event.node) if topology and event.kind == "train" else ()
        rows.append(
            {
                **{field: getattr(event, field) for field in _FROM_UPDATE},
                "name": names.get(event.worker, ""),
                "leaves": list(leaves),
                "nodes": list(event.nodes or leaves),
                "factors": list(lease.factors),
                "prefix_rank": lease.prefix_rank,
                "losses": list(event.losses),
                "first_step": lease.first_step,
                "is_adopted": lease.is_adopted,
                "bytes_sent": lease.bytes_sent,
                "elapsed_s": event.at_s - lease.at_s,
            }
        )
    return rows


def _workers(events: Sequence[Event], units: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each worker: what it was given, what it brought, what it cost."""
    rows = []
    for worker, name in sorted(_names(events).items()):
        mine = [unit for unit in units if unit["worker"] == worker]
        trained = [unit for unit in mine if unit["kind"] == "train"]
        rows.append(
            {
                "worker": worker,
                "name": name,
                "node": _node_of(events, worker),
                "units": len(trained),
                "nodes": sorted({unit["node"] for unit in trained}),
                "tokens": sum(unit["tokens"] for unit in mine),
                "seconds": sum(unit["seconds"] for unit in mine),
                "bytes_sent": sum(lease.bytes_sent for lease in _leases(events).values() if lease.worker == worker),
                "bytes_received": sum(unit["bytes_received"] for unit in mine),
                "base_loads": max((unit["base_loads"] for unit in mine), default=0),
                "shard_tokens": max((unit["shard_tokens"] for unit in mine), default=0),
                "rejected": sum(isinstance(event, UpdateRejected) and event.worker == worker for event in events),
                "probes": sum(unit["kind"] == "probe" for unit in mine),
                "dropped": sum(
                    isinstance(event, UpdateProbed) and event.worker == worker and not event.is_kept for event in events
                ),
                "lost": sum(isinstance(event, WorkerLost) and event.worker == worker for event in events),
            }
        )
    return rows


def _node_of(events: Sequence[Event], worker: str) -> str | None:
    """The node that a worker holds, by the latest word on it; None for a worker that never got one."""
    node = None
    for event in events:
        if isinstance(event, TopologySet):
            node = event.assignment.get(worker)
        elif isinstance(event, _GROWN):
            node = event.assignment.get(worker, node)
        elif isinstance(event, WorkerAssigned) and event.worker == worker:
            node = event.node
    return node


def _rounds(events: Sequence[Event]) -> list[dict[str, Any]]:
    """One row for each router version, and how many workers it reached."""
    leases = _leases(events).values()
    return [
        {
            "version": event.version,
            "contributors": list(event.contributors),
            "drift": event.drift,
            "reason": event.reason,
            "n_workers": len({lease.worker for lease in leases if lease.router_version == event.version}),
            "n_leases": sum(lease.router_version == event.version for lease in leases),
        }
        for event in events
        if isinstance(event, GatesSolved)
    ]


def _averages(events: Sequence[Event]) -> list[dict[str, Any]]:
    """One row for each version of a node."""
    fields = ("node", "version", "n_steps", "mismatch")
    return [
        {**{field: getattr(event, field) for field in fields}, "contributors": list(event.contributors)}
        for event in events
        if isinstance(event, NodeAveraged)
    ]


def _topology(events: Sequence[Event]) -> dict[str, Any]:
    """The tree, who got what at first and later, and the state of each node."""
    first = next((event for event in events if isinstance(event, TopologySet)), None)
    if first is None:
        return {"version": 0, "leaves": [], "assignment": {}, "later": {}, "nodes": {}, "changes": []}
    last = next(event for event in reversed(events) if isinstance(event, _SHAPES))
    latest = {event.node: event for event in events if isinstance(event, NodeAveraged)}
    later = {event.worker: event.node for event in events if isinstance(event, WorkerAssigned)}
    for event in events:
        later |= dict(event.assignment) if isinstance(event, _GROWN) else {}
    held = set(({**first.assignment, **later}).values())
    nodes = {
        node: {
            "version": latest[node].version if node in latest else 0,
            "n_steps": latest[node].n_steps if node in latest else 0,
            "leaves": [leaf for leaf in last.leaves if is_under(leaf, node)] if node in held else [],
            "contributors": sorted(_contributors(events, node)),
            "mismatch": latest[node].mismatch if node in latest else None,
        }
        for node in sorted(held | latest.keys())
    }
    return {
        "version": last.version,
        "leaves": list(last.leaves),
        "assignment": dict(first.assignment),
        "later": later,
        "nodes": nodes,
        "changes": _changes(events),
    }


def _changes(events: Sequence[Event]) -> list[dict[str, Any]]:
    """How the tree grew: leaves that split, splits that stayed, leaves that became one."""
    return [
        event.model_dump(mode="json", include={"type", "node", "leaves", "heldout_nll", "reason"})
        for event in events
        if isinstance(event, (SplitKept, *_GROWN))
    ]


def _contributors(events: Sequence[Event], node: str) -> set[str]:
    return {
        worker
        for event in events
        if isinstance(event, NodeAveraged) and event.node == node
        for worker in event.contributors
    }


def _tree(events: Sequence[Event]) -> Topology | None:
    last = next((event for event in reversed(events) if isinstance(event, _SHAPES)), None)
    return Topology(last.leaves) if last else None


def _rejected(events: Sequence[Event]) -> dict[str, Any]:
    found = [event for event in events if isinstance(event, UpdateRejected)]
    fields = ("unit_id", "worker", "code", "reason", "at_s")
    cases = [{field: getattr(event, field) for field in fields} for event in found]
    return {"n": len(found), "by_code": dict(sorted(Counter(event.code for event in found).items())), "cases": cases}


def _trust(events: Sequence[Event]) -> dict[str, Any]:
    """What others made of the updates, and who was taken out: why, and when."""
    probed = [event for event in events if isinstance(event, UpdateProbed)]
    removed = [event for event in events if isinstance(event, WorkerQuarantined | WorkerRevoked | WorkerErased)]
    fields = {"worker", "code", "reason", "at_s"}
    return {
        "probed": len(probed),
        "dropped": sum(not event.is_kept for event in probed),
        "votes": sum(event.n_votes for event in probed),
        "unscored": sum(not event.n_votes for event in probed),
        "quarantined": [e.model_dump(include=fields) for e in removed if isinstance(e, WorkerQuarantined)],
        "revoked": [e.model_dump(include=fields) for e in removed if isinstance(e, WorkerRevoked)],
        "erased": [e.model_dump(include=fields) for e in removed if isinstance(e, WorkerErased)],
    }


def _expired(events: Sequence[Event]) -> dict[str, Any]:
    leases = _leases(events)
    cases = [
        {
            "unit_id": event.unit_id,
            "worker": leases[event.unit_id].worker,
            "kind": leases[event.unit_id].kind,
            "node": leases[event.unit_id].node,
            "reason": event.reason,
            "at_s": event.at_s,
        }
        for event in events
        if isinstance(event, LeaseExpired)
    ]
    return {"n": len(cases), "cases": cases}

"""Events in one line each, for the operator's log. Pure."""

from tinylora.federation.events import (
    Event,
    GatesSolved,
    LeafSplit,
    LeaseExpired,
    LeavesMerged,
    NodeAveraged,
    RunFinished,
    RunStarted,
    SplitKept,
    SubtreeDivided,
    TopologySet,
    UnitLeased,
    UpdateAccepted,
    UpdateRejected,
    WorkerAssigned,
    WorkerJoined,
    WorkerLost,
    WorkerReturned,
)


def tell(event: Event) -> str:
    """What happened, or nothing where it is not worth a line."""
    match event:
        case RunStarted():
            return f"run {event.run} begins, depth {event.settings.depth}, base {event.base.base_id}"
        case WorkerJoined():
            return f"{event.worker} joined{f' ({event.name})' if event.name else ''}"
        case WorkerLost():
            return f"{event.worker} went offline"
        case WorkerReturned():
            return f"{event.worker} is back"
        case UnitLeased():
            return f"{event.unit_id} {event.kind} {_node(event.node)}-> {event.worker}"
        case LeaseExpired():
            return f"{event.unit_id} is free again: {event.reason}"
        case UpdateAccepted():
            loss = f", loss {event.losses[-1]:.3f}" if event.losses else ""
            return f"{event.unit_id} {event.kind} {_node(event.node)}<- {event.worker}: {event.tokens} tokens{loss}"
        case UpdateRejected():
            return f"{event.unit_id} of {event.worker} refused ({event.code}): {event.reason}"
        case TopologySet():
            held = ", ".join(f"{worker} {node or 'root'}" for worker, node in sorted(event.assignment.items()))
            return f"tree of {len(event.leaves)} leaves: {held}"
        case LeafSplit():
            return f"leaf {event.node or 'root'} stopped at {event.heldout_nll:.4f} and splits in two"
        case SplitKept():
            return f"the split of node {event.node or 'root'} paid and stays"
        case SubtreeDivided():
            return f"the leaves below node {event.node or 'root'} go to workers of their own"
        case LeavesMerged():
            return f"the leaves below {event.node or 'root'} are one again: {event.reason}"
        case WorkerAssigned():
            return f"{event.worker} holds {event.node or 'root'}"
        case GatesSolved():
            return f"routers version {event.version}: {len(event.contributors)} contributors, moved {event.drift:.1%}"
        case NodeAveraged():
            return f"node {event.node or 'root'} version {event.version}, {event.n_steps} steps"
        case RunFinished():
            return f"finished: {event.reason}"


def _node(path: str) -> str:
    return f"{path} " if path else ""

"""Events in one line each, for the operator's log. Pure."""

from tinylora.federation.events import (
    BlobsPruned,
    BundlePublished,
    Event,
    GatesSolved,
    LeafSplit,
    LeaseExpired,
    LeavesMerged,
    NodeAveraged,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
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
    WorkerReturned,
    WorkerRevoked,
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
        case BundlePublished():
            return f"bundle {event.sha256[:12]} is of the first {event.n_events} events"
        case UpdateProbed():
            what = "counts" if event.is_kept else f"does not count: {event.reason}"
            return f"{event.unit_id} of {event.worker}: {event.n_votes} votes, it {what}"
        case WorkerQuarantined():
            return f"{event.worker} gets no more units ({event.code}): {event.reason}"
        case WorkerRevoked():
            return f"{event.worker} was removed{f': {event.reason}' if event.reason else ''}"
        case WorkerErased():
            return f"{event.worker}: {len(event.blobs)} blobs erased"
        case BlobsPruned():
            return f"{len(event.blobs)} blobs pruned: {event.reason}"
        case RunPaused():
            return "paused: no more units are given out"
        case RunResumed():
            return "resumed"


def _node(path: str) -> str:
    return f"{path} " if path else ""

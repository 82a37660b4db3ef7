"""What the operator orders: carried out as events, each harmless to repeat."""

from pydantic import ValidationError

from tinylora.federation.events import (
    BundlePublished,
    LeaseExpired,
    RunFinished,
    RunPaused,
    RunResumed,
    WorkerAssigned,
    WorkerErased,
    WorkerRevoked,
)
from tinylora.federation.making import Making
from tinylora.federation.ports import Desk, Order
from tinylora.federation.record import Record
from tinylora.federation.retention import owned, reachable
from tinylora.federation.state import Campaign, Worker

RELEASE_REST_S = 30.0
"""A worker whose unit was released gets nothing for so long; who is idle meanwhile takes the unit at once."""
MAX_REASON = 200


def carry_out(desk: Desk, record: Record, making: Making) -> None:
    """Carry out what lies on the desk, oldest first, and say what came of it.

    Raises:
        DiskFull: There is no room; the order stays on the desk.
    """
    for order in desk.orders():
        desk.done(order, _outcome(order, record, making))


def _outcome(order: Order, record: Record, making: Making) -> str:
    match order.kind:
        case "pause":
            return _pause(record)
        case "resume":
            return _resume(record)
        case "finish":
            return _finish(order, record)
        case "revoke":
            return _revoke(order, record, making)
        case "erase":
            return _erase(order, record, making)
        case "release":
            return _release(order, record)
        case "reassign":
            return _reassign(order, record)
        case "record":
            return _record(order, record)


def _pause(record: Record) -> str:
    if record.state.finished:
        return f"the run is over: {record.state.finished}"
    if record.state.is_paused:
        return "the run was paused already"
    record.emit(RunPaused(at_s=record.clock.now()))
    return f"paused; {len(record.state.leases)} units are under way and may come back"


def _resume(record: Record) -> str:
    if not record.state.is_paused:
        return "the run was not paused"
    record.emit(RunResumed(at_s=record.clock.now()))
    return "units are given out again"


def _finish(order: Order, record: Record) -> str:
    if record.state.finished:
        return f"the run was over already: {record.state.finished}"
    record.emit(RunFinished(reason=order.reason or "the operator asked for the end", at_s=record.clock.now()))
    return "finished"


def _revoke(order: Order, record: Record, making: Making) -> str:
    worker = record.state.workers.get(order.worker)
    if worker is None:
        return _unknown(order, record)
    if worker.standing in ("revoked", "erased"):
        return f"worker {order.worker} was revoked already"
    nodes = [top or "root" for top, node in record.state.nodes.items() if order.worker in node.before]
    record.emit(WorkerRevoked(worker=order.worker, reason=order.reason, at_s=record.clock.now()))
    _solve(record, making, f"worker {order.worker} was revoked")
    back = f"; went back to versions without it: {', '.join(nodes)}" if nodes else ""
    return f"revoked worker {order.worker}{back}"


def _erase(order: Order, record: Record, making: Making) -> str:
    """Revoke it, then delete what only it brought: the event first, so that a crash between the two loses no name."""
    worker = record.state.workers.get(order.worker)
    if worker is None:
        return _unknown(order, record)
    if worker.standing not in ("revoked", "erased"):
        _revoke(order, record, making)
    _solve(record, making, f"worker {order.worker} was erased")
    blobs = tuple(sorted(owned(record.ledger.events(), order.worker) - reachable(record.state)))
    if worker.standing != "erased":
        record.emit(WorkerErased(worker=order.worker, blobs=blobs, at_s=record.clock.now()))
    record.ledger.drop_blobs(blobs)
    return f"erased worker {order.worker}: {len(blobs)} blobs deleted"


def _release(order: Order, record: Record) -> str:
    worker = record.state.workers.get(order.worker)
    if worker is None:
        return _unknown(order, record)
    if not worker.unit_id:
        return f"worker {order.worker} has no unit under way"
    record.emit(_given_back(worker, order, record, rest_s=RELEASE_REST_S))
    return f"unit {worker.unit_id} of worker {order.worker} is free for others"


def _given_back(worker: Worker, order: Order, record: Record, *, rest_s: float) -> LeaseExpired:
    why = f": {order.reason[:MAX_REASON]}" if order.reason else ""
    reason = f"the operator released it{why}"
    now = record.clock.now()
    return LeaseExpired(unit_id=worker.unit_id, reason=reason, is_returned=True, rest_s=rest_s, at_s=now)


def _reassign(order: Order, record: Record) -> str:
    worker = record.state.workers.get(order.worker)
    if worker is None:
        return _unknown(order, record)
    if refusal := _why_not_move(record.state, worker, order.node):
        return refusal
    freed = [_given_back(worker, order, record, rest_s=0.0)] if worker.unit_id else []
    record.emit(*freed, WorkerAssigned(worker=worker.worker, node=order.node))
    unit = f"; its unit {worker.unit_id} is free for others" if freed else ""
    return f"worker {worker.worker} holds leaf {order.node or 'root'}{unit}"


def _why_not_move(state: Campaign, worker: Worker, node: str) -> str:
    """Why a worker cannot be given a node, if so.

    Only leaves are given by hand: who gets a subtree deals its text to the leaves anew, and two who do that each for
    himself mean different texts by the same leaf.
    """
    name, told = worker.worker, node or "root"
    if state.finished:
        return f"the run is over: {state.finished}"
    if worker.refusal:
        return f"worker {name} gets no more units: {worker.refusal}"
    if worker.node == node:
        return f"worker {name} holds {told} already"
    if state.topology is None or node not in state.topology.nodes:
        known = ", ".join(leaf or "root" for leaf in state.leaves[:16])
        return f"the tree has no node {told}: {f'its leaves are {known}' if known else 'it was not set yet'}"
    if node not in state.leaves:
        below = ", ".join(state.leaves_below(node)[:16])
        return f"node {told} is no leaf, and only leaves are given by hand; below it are {below}"
    if not worker.sketch:
        return f"worker {name} was not sketched yet, so nobody knows its text; try again later"
    if state.is_done(state.top_of(node)):
        return f"leaf {told} has had all its steps"
    return ""


def _record(order: Order, record: Record) -> str:
    """Name a bundle in the log, if it was made of this very log."""
    try:
        made = BundlePublished.model_validate_json(order.reason)
    except ValidationError:
        return "no bundle is described by this order"
    if made.sha256 in record.state.bundles:
        return f"bundle {made.sha256[:12]} is in the log already"
    if made.n_events > record.state.n_events or made.router_version > record.state.router.version:
        return f"bundle {made.sha256[:12]} is of a longer log than this one"
    if record.ledger.chain_at(made.n_events) != made.log_sha256:
        return f"bundle {made.sha256[:12]} was made of another log"
    record.emit(made.model_copy(update={"at_s": record.clock.now()}))
    return f"bundle {made.sha256[:12]} is in the log"


def _solve(record: Record, making: Making, reason: str) -> None:
    """New gates at once, so that whatever is released from here on knows nothing of the worker."""
    if record.state.router.version and record.state.router.has_news:
        making.solve(reason)


def _unknown(order: Order, record: Record) -> str:
    known = ", ".join(sorted(record.state.workers)) or "none yet"
    return f"no worker {order.worker!r} in this run; known: {known}"

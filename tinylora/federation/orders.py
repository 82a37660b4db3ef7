"""What the operator orders: carried out as events, each harmless to repeat."""

from tinylora.federation.events import (
    RunFinished,
    RunPaused,
    RunResumed,
    WorkerErased,
    WorkerRevoked,
)
from tinylora.federation.making import Making
from tinylora.federation.ports import Desk, Order
from tinylora.federation.record import Record
from tinylora.federation.retention import owned, reachable


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


def _solve(record: Record, making: Making, reason: str) -> None:
    """New gates at once, so that whatever is released from here on knows nothing of the worker."""
    if record.state.router.version and record.state.router.has_news:
        making.solve(reason)


def _unknown(order: Order, record: Record) -> str:
    known = ", ".join(sorted(record.state.workers)) or "none yet"
    return f"no worker {order.worker!r} in this run; known: {known}"

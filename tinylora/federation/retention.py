"""Which blobs a run still needs, and which were one worker's. Pure."""

from collections.abc import Iterable, Iterator

from tinylora.federation.events import (
    BlobsPruned,
    Event,
    GatesSolved,
    LeafSplit,
    LeavesMerged,
    NodeAveraged,
    UpdateAccepted,
    WorkerErased,
    WorkerQuarantined,
    WorkerRevoked,
)
from tinylora.federation.state import Campaign, Draft, Node, Worker
from tinylora.tree import NodePath, are_in_line, is_under


def reachable(state: Campaign) -> frozenset[str]:
    """Blobs that the run needs to go on, to be taken up, to do without any of its workers, and to be released.

    The last versions of each part and those to go back to, updates that wait, workers' sums, the gates, and what open
    leases were sent, so that it can be sent again.
    """
    return frozenset(blob for blob in _needed(state) if blob)


def _needed(state: Campaign) -> Iterator[str]:
    yield state.router.blob
    for blobs in state.router.weights.values():
        yield from blobs.values()
    for worker in state.workers.values():
        yield from _of_worker(worker)
    for node in (*state.nodes.values(), *(trial.before for trial in state.trials.values())):
        yield from _of_node(node)
    for draft in state.drafts.values():
        yield from _of_draft(draft)
    for pending in state.pending.values():
        yield pending.update.blob


def _of_worker(worker: Worker) -> Iterator[str]:
    yield from (worker.sketch, worker.leaf_statistics, worker.histogram)


def _of_node(node: Node) -> Iterator[str]:
    yield from (node.blob, node.momentum, *node.earlier)
    yield from (version.blob for version in node.before.values())
    yield from (update.blob for update in node.contributions)


def _of_draft(draft: Draft) -> Iterator[str]:
    yield from (*draft.blobs, draft.candidate)


class Stored:
    """Names of the blobs that a log says are stored."""

    def __init__(self, events: Iterable[Event]) -> None:
        self.names: set[str] = set()
        for event in events:
            self.note(event)

    def note(self, event: Event) -> None:
        """One more event."""
        if isinstance(event, BlobsPruned | WorkerErased):
            self.names.difference_update(event.blobs)
        else:
            self.names.update(named(event))


def named(event: Event) -> tuple[str, ...]:
    """Blobs that were stored for an event."""
    match event:
        case UpdateAccepted() | GatesSolved() | LeafSplit() | LeavesMerged():
            return (event.blob,)
        case NodeAveraged():
            return (event.blob, event.momentum) if event.momentum else (event.blob,)
        case _:
            return ()


def owned(events: Iterable[Event], worker: str) -> frozenset[str]:
    """Blobs that only this worker brought, or that were made of what it brought: all to go when it is erased.

    Its sketches, updates and answers; the versions of parts that it contributed to, and those that were built on them;
    the gates that were solved while it took part. What others have brought just so, byte by byte, is theirs too.
    """
    own: set[str] = set()
    others: set[str] = set()
    tainted: set[NodePath] = set()
    takes_part = False
    for event in events:
        if isinstance(event, GatesSolved):
            is_own = takes_part
        elif isinstance(event, NodeAveraged | LeafSplit | LeavesMerged):
            is_own = _is_made_of(event, worker, tainted)
        else:
            is_own = isinstance(event, UpdateAccepted) and event.worker == worker
            takes_part = (takes_part or is_own) and not _is_removal(event, worker)
        tainted = _tainted_after(event, worker, tainted, is_own=is_own)
        (own if is_own else others).update(named(event))
    return frozenset(own - others)


def _is_removal(event: Event, worker: str) -> bool:
    return isinstance(event, WorkerQuarantined | WorkerRevoked) and event.worker == worker


def _is_made_of(event: NodeAveraged | LeafSplit | LeavesMerged, worker: str, tainted: set[NodePath]) -> bool:
    if isinstance(event, NodeAveraged):
        return worker in event.contributors or any(is_under(event.node, node) for node in tainted)
    return any(are_in_line(event.node, node) for node in tainted)


def _tainted_after(event: Event, worker: str, tainted: set[NodePath], *, is_own: bool) -> set[NodePath]:
    """Parts whose present version has something of the worker in it; none once it was revoked."""
    if isinstance(event, WorkerRevoked) and event.worker == worker:
        return set()
    if is_own and isinstance(event, NodeAveraged | LeafSplit | LeavesMerged):
        return tainted | {event.node}
    return tainted

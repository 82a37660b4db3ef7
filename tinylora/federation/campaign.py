"""The fold: the state of a run after its events, and nothing else.

`apply` believes every event; whether one may happen is decided before it is written (`decisions`, `acceptance`). What
the state holds is in `state`; how a worker is taken out of it again in `removal`.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from tinylora.errors import StorageError
from tinylora.federation.events import (
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
from tinylora.federation.growth import mean_loss
from tinylora.federation.removal import close_probes, erased, quarantined, revoked
from tinylora.federation.standing import BENIGN_CODES, CLASS_OF, FINAL_CODES, with_result
from tinylora.federation.state import (
    Campaign,
    Lease,
    Node,
    Pending,
    Router,
    Trial,
    Version,
    Vote,
    Worker,
)
from tinylora.federation.units import draft
from tinylora.protocol.documents import UnitKind
from tinylora.tree import NodePath, Topology, ancestors, are_in_line, by_level, is_under

__all__ = ["Campaign", "Lease", "Node", "Router", "Worker", "apply", "fold"]

AnyItem = TypeVar("AnyItem")

FIRST_REST_S = 5.0
"""Rest after a unit that a worker did not bring back; it doubles with each further one in a row. And the time that an
update has to arrive whose worker was cut off and is back."""
LONGEST_REST_S = 600.0
MOST_DOUBLINGS = 7
"""After so many a rest is the longest one; a worker may miss thousands, and powers of two would overflow."""
N_OBSERVATIONS = 64
"""Observed times kept for each kind of unit, the latest ones."""


def fold(events: Iterable[Event]) -> Campaign | None:
    """The state after all these events; None when there are none."""
    state: Campaign | None = None
    for event in events:
        state = apply(state, event)
    return state


def apply(state: Campaign | None, event: Event) -> Campaign:
    """The state after one more event.

    Raises:
        StorageError: The first event is not `run_started`, or a later one is.
    """
    if isinstance(event, RunStarted) != (state is None):
        position = "first" if state is None else "later"
        raise StorageError(f"ledger: {position} event is {event.type}; a run begins with run_started, once")
    after = _start(event) if isinstance(event, RunStarted) else _follow(_known(state), event)
    latest_at_s = max(after.latest_at_s, getattr(event, "at_s", 0.0))
    return replace(after, n_events=after.n_events + 1, latest_at_s=latest_at_s)


def _known(state: Campaign | None) -> Campaign:
    if state is None:
        raise StorageError("ledger: no run_started event")
    return state


def _start(event: RunStarted) -> Campaign:
    return Campaign(event.run, event.settings, event.base)


def _follow(state: Campaign, event: Event) -> Campaign:
    match event:
        case WorkerJoined():
            return _joined(state, event)
        case WorkerLost():
            return _lost(state, event)
        case WorkerReturned():
            return _returned(state, event)
        case UnitLeased():
            return _leased(state, event)
        case LeaseExpired():
            return _expired(state, event)
        case UpdateAccepted():
            return _accepted(state, event)
        case UpdateRejected():
            return _rejected(state, event)
        case UpdateProbed():
            return _probed(state, event)
        case WorkerQuarantined():
            return quarantined(state, event)
        case WorkerRevoked():
            return revoked(state, event)
        case WorkerErased():
            return erased(state, event)
        case RunPaused():
            return replace(state, is_paused=True)
        case RunResumed():
            return replace(state, is_paused=False, progress_at_s=event.at_s)
        case TopologySet():
            return _topology_set(state, event)
        case WorkerAssigned():
            return _assigned(state, event)
        case GatesSolved():
            return replace(state, router=Router(event.version, event.blob, accuracy=event.accuracy))
        case NodeAveraged():
            return _averaged(state, event)
        case LeafSplit():
            return _split(state, event)
        case SplitKept():
            return replace(state, trials=_without(state.trials, event.node))
        case LeavesMerged():
            return _merged(state, event)
        case SubtreeDivided():
            return _divided(state, event)
        case RunFinished():
            return replace(state, finished=event.reason or "finished")
        case BundlePublished():
            return replace(state, bundles=(*state.bundles, event.sha256))
        case _:
            return state


# --- workers ---------------------------------------------------------------------------------------------------------


def _joined(state: Campaign, event: WorkerJoined) -> Campaign:
    worker = Worker(event.worker, event.name, event.public_key, event.token)
    return replace(_put(state, worker), progress_at_s=event.at_s)


def _lost(state: Campaign, event: WorkerLost) -> Campaign:
    worker = state.workers[event.worker]
    return _put(_release(state, worker.unit_id), replace(worker, is_online=False, unit_id=""))


def _returned(state: Campaign, event: WorkerReturned) -> Campaign:
    """Who was cut off may have done its unit meanwhile: nothing takes its place before it had time to arrive."""
    is_late = any(lease.worker == event.worker and lease.kind == "train" for lease in state.late.values())
    rests_until_s = event.at_s + FIRST_REST_S if is_late else 0.0
    worker = replace(state.workers[event.worker], is_online=True, misses=0, rests_until_s=rests_until_s)
    return replace(_put(state, worker), progress_at_s=event.at_s)


def _assigned(state: Campaign, event: WorkerAssigned) -> Campaign:
    before = state.workers[event.worker]
    state = state if before.node is None else _without_late(state, event.worker)
    worker = replace(before if before.node is None else _uprooted(before, event.node), node=event.node)
    return replace(_put(state, worker), router=replace(state.router, has_news=True))


def _without_late(state: Campaign, worker: str) -> Campaign:
    """What it was sent for its old node counts no more."""
    return replace(state, late={unit: lease for unit, lease in state.late.items() if lease.worker != worker})


def _uprooted(worker: Worker, node: NodePath) -> Worker:
    """A holder that is moved: the router scores it told were those of a holder of another node.

    Who dealt his text to the leaves of a subtree, and gets one of them, has text of several leaves from now on. Of any
    other the whole text speaks for the new leaf.
    """
    is_mixed = worker.is_mixed or (bool(worker.leaf_statistics) and is_under(node, worker.node or ""))
    leaf_statistics = worker.leaf_statistics if is_mixed else ""
    return replace(worker, histogram="", is_mixed=is_mixed, leaf_statistics=leaf_statistics)


def _put(state: Campaign, worker: Worker) -> Campaign:
    return replace(state, workers={**state.workers, worker.worker: worker})


# --- leases ----------------------------------------------------------------------------------------------------------


def _leased(state: Campaign, event: UnitLeased) -> Campaign:
    worker = replace(state.workers[event.worker], unit_id=event.unit_id)
    late = {unit: lease for unit, lease in state.late.items() if not _takes_place_of(event, lease)}
    leases = {**state.leases, event.unit_id: event}
    after = replace(
        _put(state, worker),
        leases=leases,
        late=late,
        drafts={**state.drafts, event.unit_id: draft(state, event)},
        n_units=state.n_units + 1,
    )
    if event.kind == "probe":
        return _asked(after, event)
    return replace(after, nodes=_with_factors(state, event)) if event.kind == "train" else after


def _asked(state: Campaign, lease: Lease) -> Campaign:
    pending = state.pending[lease.subject]
    asked = replace(pending, asked=(*pending.asked, lease.worker))
    return replace(state, pending={**state.pending, lease.subject: asked})


def _with_factors(state: Campaign, lease: Lease) -> Mapping[NodePath, Node]:
    """The first lease on a version settles what all others on it train too: only like updates can be averaged."""
    settled = {
        top: replace(state.nodes[top], factors=lease.factors)
        for top in state.parts_of(lease)
        if state.nodes[top].factors is None
    }
    return {**state.nodes, **settled}


def _takes_place_of(new: Lease, old: Lease) -> bool:
    """Whether the work of an expired lease is given out again with `new`: to its worker, or on one of its leaves."""
    if new.kind != old.kind:
        return False
    return new.worker == old.worker or (new.kind == "train" and are_in_line(new.node, old.node))


def _expired(state: Campaign, event: LeaseExpired) -> Campaign:
    lease = state.leases.get(event.unit_id)
    if lease is None:
        return state
    worker = state.workers[lease.worker]
    if event.is_returned:
        late = _without(_release(state, event.unit_id).late, event.unit_id)
        rests_until_s = max(worker.rests_until_s, event.at_s + event.rest_s) if event.rest_s else worker.rests_until_s
        worker = replace(worker, unit_id="", rests_until_s=rests_until_s)
        return _put(replace(_release(state, event.unit_id), late=late), worker)
    rest_s = min(FIRST_REST_S * 2.0 ** min(worker.misses, MOST_DOUBLINGS), LONGEST_REST_S)
    worker = replace(worker, unit_id="", misses=worker.misses + 1, rests_until_s=event.at_s + rest_s)
    return _put(_release(state, event.unit_id), worker)


def _release(state: Campaign, unit_id: str) -> Campaign:
    """Close an open lease; its update may still come, and counts if nothing took its place (`late`)."""
    lease = state.leases.get(unit_id)
    if lease is None:
        return state
    return replace(
        state,
        leases=_without(state.leases, unit_id),
        drafts=_without(state.drafts, unit_id),
        late={**state.late, unit_id: lease},
    )


def _rejected(state: Campaign, event: UpdateRejected) -> Campaign:
    """What came from the worker for certain is held against it, and frees its lease; anything else changes nothing."""
    worker = state.workers.get(event.worker)
    if worker is None or event.code in BENIGN_CODES or not event.is_proven:
        return state
    lease = state.leases.get(event.unit_id)
    if worker.unit_id == event.unit_id:
        worker = replace(worker, unit_id="")
        leases, drafts = _without(state.leases, event.unit_id), _without(state.drafts, event.unit_id)
        state = replace(state, leases=leases, drafts=drafts)
    if event.code == "declined" and lease is not None and lease.kind == "probe":
        return _put(state, replace(worker, can_probe=False))
    refusal = event.reason if event.code in FINAL_CODES and not worker.refusal else worker.refusal
    results = with_result(worker.results, CLASS_OF.get(event.code.partition(".")[0], "fault"))
    return _put(state, replace(worker, results=results, last_fault=event.reason, refusal=refusal))


# --- updates ---------------------------------------------------------------------------------------------------------


def _accepted(state: Campaign, event: UpdateAccepted) -> Campaign:
    lease = state.leases.get(event.unit_id) or state.late[event.unit_id]
    state = replace(
        state,
        leases=_without(state.leases, event.unit_id),
        drafts=_without(state.drafts, event.unit_id),
        late=_without(state.late, event.unit_id),
        observed_s=_observe(state, lease, event.at_s),
        progress_at_s=event.at_s,
    )
    if event.kind == "sketch":
        return _sketched(state, event)
    if event.kind == "probe":
        return _voted(state, event)
    state = _put(state, _in_good_standing(state, event))
    if event.is_pending:
        return replace(state, pending={**state.pending, event.unit_id: Pending(event, lease)})
    return _believed(state, event)


def _observe(state: Campaign, lease: Lease, at_s: float) -> Mapping[UnitKind, tuple[float, ...]]:
    seconds = (at_s - lease.at_s) / max(lease.n_steps, 1)
    latest = (*state.observed_s.get(lease.kind, ()), seconds)[-N_OBSERVATIONS:]
    return {**state.observed_s, lease.kind: latest}


def _in_good_standing(state: Campaign, event: UpdateAccepted) -> Worker:
    worker = state.workers[event.worker]
    return replace(
        worker,
        unit_id="" if worker.unit_id == event.unit_id else worker.unit_id,
        misses=0,
        rests_until_s=0.0,
        shard_version=event.shard_version,
        shard_tokens=event.shard_tokens,
        max_rank=event.max_rank,
        max_leaves=event.max_leaves,
        n_accepted=worker.n_accepted + 1,
        last_accepted=event.unit_id,
    )


def _sketched(state: Campaign, event: UpdateAccepted) -> Campaign:
    worker = _in_good_standing(state, event)
    worker = replace(
        worker,
        results=with_result(worker.results, "ok"),
        sketch=event.blob,
        sketch_version=event.shard_version,
        log_volume=event.log_volume,
        data_note=event.data_note,
        data_licence=event.data_licence,
        leaf_statistics="",
    )
    first_at_s = event.at_s if state.first_sketch_at_s is None else state.first_sketch_at_s
    router = replace(state.router, has_news=state.router.has_news or worker.node is not None)
    return replace(_put(state, worker), first_sketch_at_s=first_at_s, router=router)


def _believed(state: Campaign, event: UpdateAccepted) -> Campaign:
    """A train update counts: it waits for its round to end, and what it says of its worker's text is taken."""
    worker = state.workers[event.worker]
    parts = event.parts if _speaks_for_its_node(worker, event) else ()
    is_news = "statistics" in parts and not worker.leaf_statistics
    worker = replace(
        worker,
        n_trained=worker.n_trained + 1,
        results=with_result(worker.results, "ok"),
        leaf_statistics=event.blob if "statistics" in parts else worker.leaf_statistics,
        histogram=event.blob if "histogram" in parts else worker.histogram,
    )
    waiting = {top: _with_contribution(state.nodes[top], event) for top in state.parts_of(event)}
    nodes = {**state.nodes, **waiting}
    return replace(_put(state, worker), nodes=nodes, router=_router_after(state.router, event, is_news))


def _speaks_for_its_node(worker: Worker, event: UpdateAccepted) -> bool:
    """Whether what an update says of its worker's text holds where the worker is now: it may have been moved since."""
    return worker.node is None or are_in_line(event.node, worker.node)


def _voted(state: Campaign, event: UpdateAccepted) -> Campaign:
    """Somebody scored a pending update, and told on the way where the gates send its own text."""
    worker = _in_good_standing(state, event)
    if event.probe is not None:
        versions = (state.topology_version, event.router_version)
        worker = replace(worker, mass=dict(event.probe.mass), mass_versions=versions)
    if "histogram" in event.parts and worker.node in state.leaves and not worker.is_mixed:
        worker = replace(worker, histogram=event.blob)
    state = _put(state, worker)
    pending = state.pending.get(event.subject)
    if pending is None or event.probe is None:
        return state
    votes = sorted((*pending.votes, Vote(event.worker, event.probe)), key=lambda vote: vote.worker)
    return replace(state, pending={**state.pending, event.subject: replace(pending, votes=tuple(votes))})


def _probed(state: Campaign, event: UpdateProbed) -> Campaign:
    """The votes were counted: the update counts from here on, or is held against its worker."""
    pending = state.pending.get(event.unit_id)
    if pending is None:
        return state
    state = close_probes(replace(state, pending=_without(state.pending, event.unit_id)), event.unit_id)
    told = () if event.change is None else (event.change,)
    state = replace(
        state,
        progress_at_s=max(state.progress_at_s, event.at_s),
        changes=(*state.changes, *told)[-N_OBSERVATIONS:],
    )
    if event.is_kept:
        return _believed(state, pending.update)
    worker = state.workers[event.worker]
    return _put(state, replace(worker, results=with_result(worker.results, "harm"), last_fault=event.reason))


def _with_contribution(node: Node, event: UpdateAccepted) -> Node:
    waiting = list(node.contributions)
    insort(waiting, event, key=lambda update: (update.worker, update.node))
    return replace(node, contributions=tuple(waiting))


def _router_after(router: Router, event: UpdateAccepted, is_news: bool) -> Router:
    brings_weights = "weights_router" in event.parts
    return replace(
        router,
        n_updates=router.n_updates + 1,
        has_news=router.has_news or is_news,
        contributors=_with_name(router.contributors, event.worker),
        weights=_with_weights(router, event) if brings_weights else router.weights,
    )


def _with_name(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    """Sorted names, and one more in its place."""
    place = bisect_left(names, name)
    return names if names[place : place + 1] == (name,) else (*names[:place], name, *names[place:])


def _with_weights(router: Router, event: UpdateAccepted) -> Mapping[str, Mapping[NodePath, str]]:
    return {**router.weights, event.worker: {**router.weights.get(event.worker, {}), event.node: event.blob}}


# --- the tree --------------------------------------------------------------------------------------------------------


def _topology_set(state: Campaign, event: TopologySet) -> Campaign:
    workers = {name: replace(worker, node=event.assignment.get(name)) for name, worker in state.workers.items()}
    tops = set(event.assignment.values())
    trunk = {above for top in tops for above in ancestors(top)} if state.settings.where == "path" else set()
    nodes = {top: Node() for top in by_level(tops | trunk)}
    return replace(state, workers=workers, topology=Topology(event.leaves), topology_version=event.version, nodes=nodes)


def _averaged(state: Campaign, event: NodeAveraged) -> Campaign:
    is_mixed = event.mismatch is not None and state.settings.replicas == "product"
    before = state.nodes[event.node]
    loss = mean_loss([update.heldout_nll_after for update in before.contributions])
    node = Node(
        event.version,
        event.blob,
        event.n_steps,
        momentum=event.momentum,
        has_new_axes=is_mixed,
        history=before.history if loss is None else (*before.history, loss),
        earlier=_earlier(state, before),
        before=_before(before, event),
    )
    nodes = {**state.nodes, event.node: node}
    late = {
        unit: lease
        for unit, lease in state.late.items()
        if lease.kind != "train" or event.node not in state.parts_of(lease)
    }
    return replace(state, nodes=nodes, late=late)


def _earlier(state: Campaign, before: Node) -> tuple[str, ...]:
    """Blobs of the versions that are kept beside the latest."""
    n_kept = state.settings.keep_versions - 1
    return (*before.earlier, before.blob)[-n_kept:] if before.blob else before.earlier


def _before(node: Node, event: NodeAveraged) -> Mapping[str, Version]:
    """Who contributes for the first time could be left out by going back to the version before."""
    version = Version(node.version, node.blob, node.steps)
    return {**dict.fromkeys(event.contributors, version), **node.before}


def _split(state: Campaign, event: LeafSplit) -> Campaign:
    before = state.nodes[event.node]
    child = Node(before.version + 1, event.blob, before.steps, before=_nothing_before(before))
    tops = sorted(set(event.assignment.values()))
    trial = Trial(before, event.heldout_nll, child.version)
    return replace(
        _moved(state, event, dict.fromkeys(tops, child)),
        trials={**state.trials, event.node: trial},
    )


def _nothing_before(*nodes: Node) -> Mapping[str, Version]:
    """Where a part takes on another shape, no version of the new one is without those who made the old one."""
    return {worker: Version() for node in nodes for worker in sorted(node.before)}


def _merged(state: Campaign, event: LeavesMerged) -> Campaign:
    was = state.trials[event.node].before if event.node in state.trials else None
    below = (state.nodes[top] for top in state.parts_below(event.node))
    before = was.before if was and was.blob == event.blob else _nothing_before(*below)
    parent = Node(event.node_version, event.blob, event.n_steps, before=before)
    return replace(
        _moved(state, event, {event.node: parent}),
        trials=_without(state.trials, event.node),
        barren=state.barren | {event.node},
    )


def _divided(state: Campaign, event: SubtreeDivided) -> Campaign:
    before = state.nodes[event.node]
    leaf = Node(before.version + 1, before.blob, before.steps, before=before.before)
    told = {name: state.workers[name].leaf_statistics for name in event.assignment}
    state = _moved(state, event, dict.fromkeys(state.leaves_below(event.node), leaf))
    mixed = {
        name: replace(state.workers[name], is_mixed=True, leaf_statistics=blob) for name, blob in sorted(told.items())
    }
    return replace(state, workers={**state.workers, **mixed})


def _moved(
    state: Campaign, event: LeafSplit | LeavesMerged | SubtreeDivided, parts: Mapping[NodePath, Node]
) -> Campaign:
    """The parts below a node are others, and so are its workers' nodes; what was sent out for the old ones is void."""
    workers = {
        name: replace(worker, node=event.assignment[name], leaf_statistics="") if name in event.assignment else worker
        for name, worker in state.workers.items()
    }
    kept = {top: node for top, node in state.nodes.items() if not is_under(top, event.node)}
    late = {
        unit: lease
        for unit, lease in state.late.items()
        if lease.kind != "train" or not are_in_line(lease.node, event.node)
    }
    return replace(
        state,
        workers=workers,
        nodes=dict(sorted({**kept, **parts}.items(), key=lambda item: (len(item[0]), item[0]))),
        late=late,
        topology=Topology(event.leaves),
        topology_version=event.version,
        router=replace(state.router, has_news=True),
    )


def _without(items: Mapping[str, AnyItem], left_out: str) -> Mapping[str, AnyItem]:
    if left_out not in items:
        return items
    kept = dict(items)
    del kept[left_out]
    return kept

"""The state of a run: a pure fold of its events, and nothing else.

`apply` believes every event; whether one may happen is decided before it is written (`decisions`, `acceptance`).
Tensors are not here: events and state name blobs by their hash.

    Campaign
    ├── workers     who takes part: its node, its lease, the blobs that speak for its text, why it gets nothing more
    ├── leases      open units by id; `late` those that expired and may still be accepted
    ├── nodes       the parts of the tree that move on as one: version, blob, steps
    └── router      the current version of the gates, and what came in since

The parts: a leaf or a subtree that workers hold, named by its top; and, where adapters stand on whole paths, every node
above those tops, with an adapter of its own that all workers below it share (the trunk). A held subtree has adapters at
its leaves alone.

A part moves on in rounds: the updates of one version wait in `contributions` until each of its adapters was trained and
no lease on that version is open; then they become the next version.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias, TypeVar

from tinylora.config import BaseFacts, RunSettings
from tinylora.errors import StorageError
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
from tinylora.federation.growth import mean_loss
from tinylora.protocol.documents import Factor, UnitKind
from tinylora.tree import NodePath, Topology, ancestors, by_level, is_under

MAX_STRIKES = 3
"""Rejections in a row after which a worker gets no more units."""
FIRST_REST_S = 5.0
"""Rest after a unit that a worker did not bring back; it doubles with each further one in a row."""
LONGEST_REST_S = 600.0
N_OBSERVATIONS = 64
"""Observed times kept for each kind of unit, the latest ones."""
BENIGN_CODES = frozenset({"duplicate", "lease_closed"})
"""Rejections that a slow or stuttering network causes; they are no strikes."""
FINAL_CODES = frozenset({"shard_too_small", "rank_too_low", "declined"})
"""Rejections after which asking the same worker again is of no use."""

AnyItem = TypeVar("AnyItem")
Lease: TypeAlias = UnitLeased
"""An open lease is the event that gave it."""


@dataclass(frozen=True)
class Worker:
    """What the run knows of one worker."""

    worker: str
    name: str
    public_key: str = ""
    is_online: bool = True
    node: NodePath | None = None
    """The leaf or subtree it holds; kept while it is away."""
    unit_id: str = ""
    """Its open lease."""
    sketch: str = ""
    """Blob with the sums of its whole shard."""
    sketch_version: str = ""
    """Shard version that the sketch describes."""
    log_volume: float | None = None
    """How widely its texts differ among each other."""
    leaf_statistics: str = ""
    """Blob with the sums of its shard by leaf, from its latest subtree unit."""
    histogram: str = ""
    """Blob with its latest router scores."""
    shard_version: str = ""
    shard_tokens: int = 0
    n_accepted: int = 0
    last_accepted: str = ""
    """Unit of its latest accepted update, so that a repetition can be told from a stranger's."""
    strikes: int = 0
    """Rejections since the last accepted update."""
    misses: int = 0
    """Units not brought back since the last accepted update."""
    rests_until_s: float = 0.0
    refusal: str = ""
    """Why it gets no more units; empty for a worker in good standing."""
    is_mixed: bool = False
    """Whether its text belongs to several leaves, of which it trains one on the documents that are nearest to it."""
    max_rank: int = 0
    """Highest rank that it can train; 0 where it named none."""

    @property
    def needs_sketch(self) -> bool:
        """Whether its text is unknown, or has changed since it was sketched."""
        return not self.sketch or self.shard_version != self.sketch_version

    def is_fit(self, now: float) -> bool:
        """Whether it can be counted on: online, in good standing, not resting after a miss."""
        return self.is_online and not self.refusal and now >= self.rests_until_s

    def is_free(self, now: float) -> bool:
        """Whether it can take a unit at once."""
        return self.is_fit(now) and not self.unit_id


@dataclass(frozen=True)
class Node:
    """One part of the tree: a leaf, the top of a subtree that is held as one, or a node of the trunk above those."""

    version: int = 0
    """0: nothing was trained yet; holders start from the run's seed."""
    blob: str = ""
    """Its adapters: those of all leaves below, or of the trunk's node alone."""
    steps: int = 0
    contributions: tuple[UpdateAccepted, ...] = ()
    """Accepted updates on the current version, by worker and node."""
    factors: tuple[Factor, ...] | None = None
    """What the current version is trained in, by the first lease on it; None before, () for all factors."""
    momentum: str = ""
    """Blob with the velocity of its outer steps."""
    has_new_axes: bool = False
    """Whether its directions are others than in the version before."""
    history: tuple[float, ...] = ()
    """Held-out loss after each round since the part came to be, the mean over those who told it."""


@dataclass(frozen=True)
class Trial:
    """A split that has yet to show that it pays."""

    before: Node
    """The leaf as it was; it comes back if the split does not pay."""
    heldout_nll: float
    since: int
    """Version that the children began with."""


@dataclass(frozen=True)
class Router:
    """The current gates, and what has come in since they were solved."""

    version: int = 0
    blob: str = ""
    n_updates: int = 0
    """Train updates accepted since."""
    has_news: bool = False
    """Whether statistics arrived that the gates do not know."""
    contributors: tuple[str, ...] = ()
    """Workers with updates accepted since, sorted."""
    weights: Mapping[tuple[str, NodePath], str] = field(default_factory=dict)
    """(worker, node) to the blob with its locally trained gates, the latest since."""
    accuracy: Mapping[NodePath, float] = field(default_factory=dict)
    """How often each gate was right on held-out text, both sides weighing the same."""


@dataclass(frozen=True)
class Campaign:
    """A run after some events."""

    run: str
    settings: RunSettings
    base: BaseFacts
    workers: Mapping[str, Worker] = field(default_factory=dict)
    leases: Mapping[str, Lease] = field(default_factory=dict)
    late: Mapping[str, Lease] = field(default_factory=dict)
    topology: Topology | None = None
    topology_version: int = 0
    nodes: Mapping[NodePath, Node] = field(default_factory=dict)
    trials: Mapping[NodePath, Trial] = field(default_factory=dict)
    """Splits under trial, by the node that was split."""
    barren: frozenset[NodePath] = frozenset()
    """Nodes that were split in vain, or whose children became one again: they are not split any more."""
    router: Router = field(default_factory=Router)
    observed_s: Mapping[UnitKind, tuple[float, ...]] = field(default_factory=dict)
    """Seconds per step (per unit for sketches) between lease and update, by the coordinator's clock."""
    n_units: int = 0
    n_events: int = 0
    first_sketch_at_s: float | None = None
    latest_at_s: float = 0.0
    """Latest time of any event: where the clock of a process that takes the run up goes on from."""
    progress_at_s: float = 0.0
    """When something last went forward: a worker came, an update was accepted."""
    finished: str = ""
    """Why the run is over; empty while it goes on."""

    @property
    def leaves(self) -> tuple[NodePath, ...]:
        """Leaves of the tree, left to right; none before the topology is set."""
        return self.topology.leaves if self.topology else ()

    def leaves_below(self, node: NodePath) -> tuple[NodePath, ...]:
        """Leaves in the subtree of `node`, left to right."""
        return self.topology.leaves_below(node) if self.topology else ()

    def gates_of(self, node: NodePath) -> tuple[NodePath, ...]:
        """Inner nodes whose gates a unit on `node` needs: those above it, and those of its subtree."""
        return tuple(inner for inner in self.topology.inner if are_in_line(inner, node)) if self.topology else ()

    def top_of(self, node: NodePath) -> NodePath:
        """The part that the adapter of `node` belongs to, and that its holder holds: the deepest one above it."""
        return max((top for top in self.nodes if is_under(node, top)), key=len)

    def is_trunk(self, top: NodePath) -> bool:
        """Whether this part is a node of the trunk: there are parts below it."""
        return any(other != top and is_under(other, top) for other in self.nodes)

    def way_to(self, node: NodePath) -> tuple[NodePath, ...]:
        """The parts whose adapters add up for a holder of `node`: the trunk from the root down, then its own part."""
        return by_level(top for top in self.nodes if is_under(node, top))

    def adapters_of(self, top: NodePath) -> tuple[NodePath, ...]:
        """Nodes whose adapters this part consists of."""
        return (top,) if self.is_trunk(top) else self.leaves_below(top)

    def trained_by(self, event: "Lease | UpdateAccepted") -> tuple[NodePath, ...]:
        """Nodes whose adapters a unit trains."""
        return event.nodes or self.leaves_below(event.node)

    def parts_of(self, event: "Lease | UpdateAccepted") -> tuple[NodePath, ...]:
        """Parts that a train unit moves on, upper ones first."""
        return by_level({self.top_of(node) for node in self.trained_by(event)})

    def budget(self, top: NodePath) -> int:
        """Steps that this part is to have: all `leaf_steps`, or in a cascade its level's share of them.

        The parts on a holder's way have `leaf_steps` together, so a path costs as many tokens as a leaf alone. What the
        levels inside a held subtree would have had goes to its leaves.
        """
        levels = self.settings.level_steps
        if not self.is_cascade:
            return self.settings.leaf_steps
        if self.is_trunk(top):
            return levels[len(top)]
        return self.settings.leaf_steps - sum(levels[len(above)] for above in self.way_to(top)[:-1])

    @property
    def is_cascade(self) -> bool:
        """Whether the trunk is trained level by level, each part beside its frozen ancestors."""
        return self.settings.where == "path" and self.settings.path_training == "cascade"

    def is_done(self, top: NodePath) -> bool:
        """Whether this part has had all its steps. A trunk that is trained jointly needs no more than all below it."""
        node = self.nodes[top]
        if node.steps >= self.budget(top):
            return True
        if self.is_cascade or not self.is_trunk(top) or node.contributions:
            return False
        below = (other for other in self.nodes if other != top and is_under(other, top) and not self.is_trunk(other))
        return all(self.is_done(other) for other in below)

    def stage(self, node: NodePath) -> tuple[NodePath, ...]:
        """The parts that a holder of `node` trains now, upper ones first; none when it has nothing left to do.

        One part: its own, or in a cascade the uppermost on its way that is not done. Or all of these, jointly: whoever
        comes late does not train the trunk alone any more.
        """
        way = self.way_to(node)
        left = () if self.is_done(way[-1]) else tuple(top for top in way if not self.is_done(top))
        return left[:1] if self.is_cascade else left

    def is_due(self, top: NodePath) -> bool:
        """Whether this part can be trained by itself now, without what is above it."""
        *above, _ = self.way_to(top)
        if self.is_done(top) or (self.is_trunk(top) and not self.is_cascade):
            return False
        return not self.is_cascade or all(self.is_done(other) for other in above)

    def parts_below(self, node: NodePath) -> tuple[NodePath, ...]:
        """The parts in the subtree of `node`, itself included."""
        return tuple(top for top in self.nodes if is_under(top, node))

    def holders(self, top: NodePath) -> tuple[str, ...]:
        """Workers that hold this part and no other, wherever they are now."""
        return tuple(name for name, worker in sorted(self.workers.items()) if worker.node == top)

    def is_resting(self, top: NodePath) -> bool:
        """Whether nothing is under way on this part: no open lease, no update that waits for others."""
        return not self.open_leases(self.adapters_of(top)) and not self.nodes[top].contributions

    def replicas(self, top: NodePath) -> int:
        """Workers that train this part of the tree or some of it, and can be reached."""
        held = (worker.node for worker in self.workers.values() if worker.is_online and not worker.refusal)
        return sum(node is not None and are_in_line(node, top) for node in held)

    def open_leases(self, nodes: Collection[NodePath]) -> tuple[Lease, ...]:
        """Open leases that train the adapter of one of these nodes, in the order they were given."""
        found = (
            lease
            for lease in self.leases.values()
            if lease.kind == "train" and not set(nodes).isdisjoint(self.trained_by(lease))
        )
        return tuple(sorted(found, key=lambda lease: lease.unit_id))


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
        case _:
            return state


# --- workers ---------------------------------------------------------------------------------------------------------


def _joined(state: Campaign, event: WorkerJoined) -> Campaign:
    worker = Worker(event.worker, event.name, event.public_key)
    return replace(_put(state, worker), progress_at_s=event.at_s)


def _lost(state: Campaign, event: WorkerLost) -> Campaign:
    worker = state.workers[event.worker]
    return _put(_release(state, worker.unit_id), replace(worker, is_online=False, unit_id=""))


def _returned(state: Campaign, event: WorkerReturned) -> Campaign:
    worker = replace(state.workers[event.worker], is_online=True, misses=0, rests_until_s=0.0)
    return replace(_put(state, worker), progress_at_s=event.at_s)


def _assigned(state: Campaign, event: WorkerAssigned) -> Campaign:
    worker = replace(state.workers[event.worker], node=event.node)
    return replace(_put(state, worker), router=replace(state.router, has_news=True))


def _put(state: Campaign, worker: Worker) -> Campaign:
    return replace(state, workers={**state.workers, worker.worker: worker})


# --- leases ----------------------------------------------------------------------------------------------------------


def _leased(state: Campaign, event: UnitLeased) -> Campaign:
    worker = replace(state.workers[event.worker], unit_id=event.unit_id)
    late = {unit: lease for unit, lease in state.late.items() if not _takes_place_of(event, lease)}
    leases = {**state.leases, event.unit_id: event}
    nodes = _with_factors(state, event) if event.kind == "train" else state.nodes
    return replace(_put(state, worker), leases=leases, late=late, nodes=nodes, n_units=state.n_units + 1)


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
    rest_s = min(FIRST_REST_S * 2.0**worker.misses, LONGEST_REST_S)
    worker = replace(worker, unit_id="", misses=worker.misses + 1, rests_until_s=event.at_s + rest_s)
    return _put(_release(state, event.unit_id), worker)


def _release(state: Campaign, unit_id: str) -> Campaign:
    """Close an open lease; its update may still come, and counts if nothing took its place (`late`)."""
    lease = state.leases.get(unit_id)
    if lease is None:
        return state
    return replace(state, leases=_without(state.leases, unit_id), late={**state.late, unit_id: lease})


def _rejected(state: Campaign, event: UpdateRejected) -> Campaign:
    worker = state.workers.get(event.worker)
    if worker is None or event.code in BENIGN_CODES:
        return state
    if worker.unit_id == event.unit_id:
        worker = replace(worker, unit_id="")
        state = replace(state, leases=_without(state.leases, event.unit_id))
    strikes = worker.strikes + 1
    refusal = event.reason if event.code in FINAL_CODES else worker.refusal
    if strikes >= MAX_STRIKES and not refusal:
        refusal = f"{strikes} updates in a row were rejected, the last one because: {event.reason}"
    return _put(state, replace(worker, strikes=strikes, refusal=refusal))


# --- updates ---------------------------------------------------------------------------------------------------------


def _accepted(state: Campaign, event: UpdateAccepted) -> Campaign:
    lease = state.leases.get(event.unit_id) or state.late[event.unit_id]
    state = replace(
        state,
        leases=_without(state.leases, event.unit_id),
        late=_without(state.late, event.unit_id),
        observed_s=_observe(state, lease, event.at_s),
        progress_at_s=event.at_s,
    )
    return _sketched(state, event) if event.kind == "sketch" else _trained(state, event)


def _observe(state: Campaign, lease: Lease, at_s: float) -> Mapping[UnitKind, tuple[float, ...]]:
    seconds = (at_s - lease.at_s) / max(lease.n_steps, 1)
    latest = (*state.observed_s.get(lease.kind, ()), seconds)[-N_OBSERVATIONS:]
    return {**state.observed_s, lease.kind: latest}


def _in_good_standing(state: Campaign, event: UpdateAccepted) -> Worker:
    worker = state.workers[event.worker]
    return replace(
        worker,
        unit_id="" if worker.unit_id == event.unit_id else worker.unit_id,
        strikes=0,
        misses=0,
        rests_until_s=0.0,
        shard_version=event.shard_version,
        shard_tokens=event.shard_tokens,
        max_rank=event.max_rank,
        n_accepted=worker.n_accepted + 1,
        last_accepted=event.unit_id,
    )


def _sketched(state: Campaign, event: UpdateAccepted) -> Campaign:
    worker = _in_good_standing(state, event)
    worker = replace(
        worker,
        sketch=event.blob,
        sketch_version=event.shard_version,
        log_volume=event.log_volume,
        leaf_statistics="",
    )
    first_at_s = event.at_s if state.first_sketch_at_s is None else state.first_sketch_at_s
    router = replace(state.router, has_news=state.router.has_news or worker.node is not None)
    return replace(_put(state, worker), first_sketch_at_s=first_at_s, router=router)


def _trained(state: Campaign, event: UpdateAccepted) -> Campaign:
    worker = _in_good_standing(state, event)
    is_news = "statistics" in event.parts and not worker.leaf_statistics
    worker = replace(
        worker,
        leaf_statistics=event.blob if "statistics" in event.parts else worker.leaf_statistics,
        histogram=event.blob if "histogram" in event.parts else worker.histogram,
    )
    waiting = {top: _with_contribution(state.nodes[top], event) for top in state.parts_of(event)}
    nodes = {**state.nodes, **waiting}
    return replace(_put(state, worker), nodes=nodes, router=_router_after(state.router, event, is_news))


def _with_contribution(node: Node, event: UpdateAccepted) -> Node:
    waiting = sorted((*node.contributions, event), key=lambda update: (update.worker, update.node))
    return replace(node, contributions=tuple(waiting))


def _router_after(router: Router, event: UpdateAccepted, is_news: bool) -> Router:
    brings_weights = "weights_router" in event.parts
    return replace(
        router,
        n_updates=router.n_updates + 1,
        has_news=router.has_news or is_news,
        contributors=tuple(sorted({*router.contributors, event.worker})),
        weights={**router.weights, (event.worker, event.node): event.blob} if brings_weights else router.weights,
    )


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
    )
    nodes = {**state.nodes, event.node: node}
    late = {
        unit: lease
        for unit, lease in state.late.items()
        if lease.kind != "train" or event.node not in state.parts_of(lease)
    }
    return replace(state, nodes=nodes, late=late)


def _split(state: Campaign, event: LeafSplit) -> Campaign:
    before = state.nodes[event.node]
    child = Node(before.version + 1, event.blob, before.steps)
    tops = sorted(set(event.assignment.values()))
    trial = Trial(before, event.heldout_nll, child.version)
    return replace(
        _moved(state, event, dict.fromkeys(tops, child)),
        trials={**state.trials, event.node: trial},
    )


def _merged(state: Campaign, event: LeavesMerged) -> Campaign:
    parent = Node(event.node_version, event.blob, event.n_steps)
    return replace(
        _moved(state, event, {event.node: parent}),
        trials=_without(state.trials, event.node),
        barren=state.barren | {event.node},
    )


def _divided(state: Campaign, event: SubtreeDivided) -> Campaign:
    before = state.nodes[event.node]
    leaf = Node(before.version + 1, before.blob, before.steps)
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


def are_in_line(one: NodePath, other: NodePath) -> bool:
    """Whether one of the two lies on the way from the root to the other; a node is in line with itself."""
    return is_under(one, other) or is_under(other, one)


def _without(items: Mapping[str, AnyItem], left_out: str) -> Mapping[str, AnyItem]:
    return {name: item for name, item in items.items() if name != left_out}

"""The state of a run: what the fold of its events remembers, and the questions that are asked of it. Pure.

Tensors are not here: events and state name blobs by their hash.

    Campaign
    ├── workers     who takes part: its node, its lease, the blobs that speak for its text, why it gets nothing more
    ├── leases      open units by id; `late` those that expired and may still be accepted; `drafts` what was sent
    ├── pending     accepted updates that other workers are asked to score before they count
    ├── nodes       the parts of the tree that move on as one: version, blob, steps
    └── router      the current version of the gates, and what came in since

The parts: a leaf or a subtree that workers hold, named by its top; and, where adapters stand on whole paths, every node
above those tops, with an adapter of its own that all workers below it share (the trunk). A held subtree has adapters at
its leaves alone.

A part moves on in rounds: the updates of one version wait in `contributions` until each of its adapters was trained and
no lease on that version is open; then they become the next version.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from tinylora.config import BaseFacts, RunSettings
from tinylora.federation.events import UnitLeased, UpdateAccepted
from tinylora.protocol.documents import Factor, ProbeResult, UnitKind, WorkUnit
from tinylora.tree import NodePath, Topology, are_in_line, by_level, is_under

Lease: TypeAlias = UnitLeased
"""An open lease is the event that gave it."""
Standing: TypeAlias = Literal["good", "quarantined", "revoked", "erased"]
ResultClass: TypeAlias = Literal["ok", "benign", "fault", "harm", "forgery"]


@dataclass(frozen=True)
class Worker:
    """What the run knows of one worker."""

    worker: str
    name: str
    public_key: str = ""
    token: str = ""
    """Name of the join token it came with."""
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
    data_note: str = ""
    """What its owner said of the text that the sketch describes."""
    data_licence: str = ""
    """That text's licence, in the owner's words."""
    leaf_statistics: str = ""
    """Blob with the sums of its shard by leaf, from its latest subtree unit."""
    histogram: str = ""
    """Blob with its latest router scores."""
    shard_version: str = ""
    shard_tokens: int = 0
    n_accepted: int = 0
    last_accepted: str = ""
    """Unit of its latest accepted update, so that a repetition can be told from a stranger's."""
    n_trained: int = 0
    """Train updates of it that count, or did."""
    results: tuple[ResultClass, ...] = ()
    """What came of its latest units, the newest last."""
    last_fault: str = ""
    """Why the latest of them that was held against it was refused."""
    misses: int = 0
    """Units not brought back since the last accepted update."""
    rests_until_s: float = 0.0
    refusal: str = ""
    """Why it gets no more units; empty for a worker in good standing."""
    standing: Standing = "good"
    """What a refused worker's sums are worth: those of one that left in good standing stay in the routers."""
    can_probe: bool = True
    """Whether it has held-out text to score others on; it said so itself."""
    mass: Mapping[NodePath, float] = field(default_factory=dict)
    """By leaf: the share of its held-out text that the gates sent there, by its latest probe."""
    mass_versions: tuple[int, int] = (0, 0)
    """Topology and router that this was measured with."""
    is_mixed: bool = False
    """Whether its text belongs to several leaves, of which it trains one on the documents that are nearest to it."""
    max_rank: int = 0
    """Highest rank that it can train; 0 where it named none."""
    max_leaves: int = 0
    """Most leaves that it can train at once; 0 where it named no limit."""

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
class Version:
    """One version of a part, to go back to."""

    number: int = 0
    blob: str = ""
    steps: int = 0


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
    earlier: tuple[str, ...] = ()
    """Blobs of the versions before, as many as the run keeps, the newest last."""
    before: Mapping[str, Version] = field(default_factory=dict)
    """By contributor: the last version that it had no part in, directly or through what others built on it."""


@dataclass(frozen=True)
class Trial:
    """A split that has yet to show that it pays."""

    before: Node
    """The leaf as it was; it comes back if the split does not pay."""
    heldout_nll: float
    since: int
    """Version that the children began with."""


@dataclass(frozen=True)
class Vote:
    """What one worker said of a pending update."""

    worker: str
    result: ProbeResult


@dataclass(frozen=True)
class Pending:
    """An accepted update that does not count yet, because others are asked to score it first."""

    update: UpdateAccepted
    lease: Lease
    asked: tuple[str, ...] = ()
    """Workers that were asked, in that order; nobody is asked twice."""
    votes: tuple[Vote, ...] = ()
    """Answers, sorted by worker."""


@dataclass(frozen=True)
class Draft:
    """A unit as it was leased, all but the bytes of its payload, which can be put together again from the blobs."""

    unit: WorkUnit
    blobs: tuple[str, ...] = ()
    """Where the payload's tensors are."""
    prefixes: tuple[str, ...] = ()
    """What the names of those that are sent begin with."""
    candidate: str = ""
    """Of a probe: blob of the update that is to be scored."""


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
    weights: Mapping[str, Mapping[NodePath, str]] = field(default_factory=dict)
    """By worker and node: the blob with its locally trained gates, the latest since."""
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
    drafts: Mapping[str, Draft] = field(default_factory=dict)
    """What was sent out for each open lease, so that it can be sent again."""
    pending: Mapping[str, Pending] = field(default_factory=dict)
    """Updates that others are asked to score, by unit."""
    changes: tuple[float, ...] = ()
    """What the votes said of the latest updates, kept or not: medians of candidate less current, nats per token."""
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
    is_paused: bool = False
    """Whether the operator wants no more units given out."""
    finished: str = ""
    """Why the run is over; empty while it goes on."""
    bundles: tuple[str, ...] = ()
    """sha256 of the bundles that the log names, the oldest first."""

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

    def can_hold(self, worker: Worker, node: NodePath) -> bool:
        """Whether a worker can train all that hangs below a node at once."""
        return not worker.max_leaves or len(self.leaves_below(node)) <= worker.max_leaves

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
        if self.is_cascade or not self.is_trunk(top) or self.waiting(top):
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
        return not self.open_leases(self.adapters_of(top)) and not self.waiting(top)

    def pending_on(self, top: NodePath) -> tuple[UpdateAccepted, ...]:
        """Updates of this part that are being scored, in the order of their units."""
        found = (pending.update for _, pending in sorted(self.pending.items()))
        return tuple(update for update in found if top in self.parts_of(update))

    def waiting(self, top: NodePath) -> tuple[UpdateAccepted, ...]:
        """Updates of this part's present version: those that count, and those that may."""
        return (*self.nodes[top].contributions, *self.pending_on(top))

    def probes_of(self, subject: str) -> tuple[Lease, ...]:
        """Open leases of those who are scoring an update."""
        found = (lease for lease in self.leases.values() if lease.kind == "probe" and lease.subject == subject)
        return tuple(sorted(found, key=lambda lease: lease.unit_id))

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

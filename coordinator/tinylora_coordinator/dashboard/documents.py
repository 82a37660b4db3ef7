"""What the API says, field by field. The page's types are generated from these.

Times are seconds of the run's clock, which stands still while the run is not served; `Run.clock_s` is now. Losses are
nats per token. Paths are bit strings, the root's is empty. Whatever a worker said (names, texts) was validated when it
came in, and is text, never markup. Fields that are at their default are left out of the JSON.
"""

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

Path: TypeAlias = Annotated[str, Field(pattern=r"^[01]{0,32}$")]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Number: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]
Count: TypeAlias = Annotated[int, Field(ge=0)]

NodeState: TypeAlias = Literal["working", "waiting", "paused", "lost", "unassigned", "pending", "done", "router"]
"""`working`: a unit on it is under way. `waiting`, `paused`, `lost`: so are all its holders; who has left counts as
lost, because the node waits for somebody else either way. `unassigned`: nobody holds it. `pending`: an update waits for
its probes. `done`: it has had its steps. `router`: an inner node that carries a gate alone."""
WorkerStateName: TypeAlias = Literal[
    "starting", "working", "waiting", "paused", "leaving", "finished", "lost", "pending", "out"
]
"""As `protocol.standstill.WorkerState`, and as the coordinator sees it: `finished` (also, with the detail `left`, who
said that it goes and then went offline), `lost` (offline without a word), `pending` (the operator has yet to approve
it), `out` (quarantined, revoked or erased)."""
Phase: TypeAlias = Literal["waiting", "running", "paused", "finished", "stopping"]
Tone: TypeAlias = Literal["plain", "good", "warn", "bad"]
UnitState: TypeAlias = Literal["leased", "expired", "pending", "accepted", "dropped", "rejected"]
MassSource: TypeAlias = Literal["probes", "tokens", "none"]
"""`probes`: measured on held-out text of workers, by the latest probe of each in the present tree. `tokens`: from how
much text the holders of each leaf have, while nobody has measured."""
Role: TypeAlias = Literal["nobody", "viewer", "admin"]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, ser_json_inf_nan="null")


# --- the snapshot and its changes ---------------------------------------------------------------------------------


class Run(_Document):
    """The head of every page."""

    run: str
    phase: Phase
    finished: str = ""
    """Why it is over."""
    clock_s: Number = 0
    base_id: str = ""
    adapter: str = ""
    rank: Count = 0
    depth: Count = 0
    leaf_steps: Count = 0
    n_events: Count = 0
    topology_version: Count = 0
    router_version: Count = 0
    """Rounds of the routers so far."""
    n_leaves: Count = 0
    progress: Share = 0
    """Steps done over steps wanted, over all leaves."""
    eta_s: Number | None = None
    """Seconds of the clock to the end, at the pace of late; None while nobody can tell."""
    eta_low_s: Number | None = None
    eta_high_s: Number | None = None
    n_workers: Count = 0
    n_online: Count = 0
    n_working: Count = 0
    n_accepted: Count = 0
    n_rejected: Count = 0
    n_expired: Count = 0
    tokens: Count = 0
    tokens_per_s: Number = 0
    """Trained by all workers together, lately."""
    bytes_sent: Count = 0
    """Payloads to workers."""
    bytes_received: Count = 0
    loss: Number | None = None
    """Held-out loss, the mean over leaves by mass."""
    is_replay: bool = False
    replay_speed: Number = 0


class Node(_Document):
    """One node of the tree, as the overview shows it."""

    path: Path
    kind: Literal["inner", "leaf"]
    state: NodeState
    holders: tuple[str, ...] = ()
    """Workers."""
    mass: Share | None = None
    """Share of all text that is routed here."""
    loss: Number | None = None
    """Held-out loss after its latest update; training loss where nobody told that."""
    change: Number | None = None
    """Held-out loss now less what it was at first; below zero is better."""
    version: Count = 0
    n_steps: Count = 0
    accuracy: Share | None = None
    """Of an inner node: how often its gate is right on held-out text, both sides weighing the same."""


class UnitNow(_Document):
    """What a worker is at."""

    unit_id: str
    kind: str
    node: Path
    leased_s: Number
    deadline_s: Number
    n_steps: Count = 0
    step: Count | None = None
    """Steps done, as the worker reports; None where it reports nothing."""


class Worker(_Document):
    """One worker, as the table shows it."""

    worker: str
    name: str = ""
    state: WorkerStateName
    reason: str = ""
    """Why it does not work: of `protocol.standstill.Reason`; for `out`, the code."""
    detail: str = ""
    """Further words to that reason, such as the name of a program, or why it is out."""
    resumes_in_s: Number | None = None
    """Seconds until it goes on by itself, where it said so."""
    node: Path | None = None
    unit: UnitNow | None = None
    gpu: str = ""
    memory_bytes: Count = 0
    """Of its device."""
    tokens_per_s: Number | None = None
    heard_s: Number | None = None
    """When it last reported."""
    joined_s: Number = 0
    last_accepted_s: Number | None = None
    n_accepted: Count = 0
    n_rejected: Count = 0
    n_expired: Count = 0
    n_lost: Count = 0
    """How often it went offline."""
    tokens: Count = 0
    seconds: Number = 0
    bytes_sent: Count = 0
    bytes_received: Count = 0
    tags: tuple[str, ...] = ()
    """Of its join token."""
    data_note: str = ""
    """What its owner says of its text."""


class FeedItem(_Document):
    """One thing that happened."""

    number: Count
    """Of the event in the ledger; items are told once each, in this order."""
    at_s: Number
    kind: str
    """Type of the event."""
    text: str
    tone: Tone = "plain"
    node: Path | None = None
    worker: str = ""


class State(_Document):
    """`GET /api/v1/state`: everything that the overview shows."""

    position: str
    """Where the stream goes on: `<epoch>-<sequence>`."""
    run: Run
    nodes: tuple[Node, ...]
    """All nodes of the tree, by path; none before it is set."""
    workers: tuple[Worker, ...]
    feed: tuple[FeedItem, ...]
    """The latest, the newest last."""


class Patch(_Document):
    """Event `patch` of `GET /api/v1/events`; its id is `position`.

    Nodes and workers in it replace those known by the same name. A reader whose position is not `before` has missed
    something and asks for the state again.
    """

    before: str
    position: str
    run: Run
    nodes: tuple[Node, ...] = ()
    gone: tuple[Path, ...] = ()
    """Nodes that are no longer part of the tree."""
    workers: tuple[Worker, ...] = ()
    feed: tuple[FeedItem, ...] = ()


# --- one node, one worker -----------------------------------------------------------------------------------------


class UpdateRow(_Document):
    """One unit, from its lease to what became of it."""

    unit_id: str
    worker: str
    node: Path
    kind: str
    state: UnitState
    leased_s: Number
    closed_s: Number | None = None
    reason: str = ""
    n_steps: Count = 0
    tokens: Count = 0
    seconds: Number = 0
    heldout_before: Number | None = None
    heldout_after: Number | None = None
    bytes_received: Count = 0


class VersionRow(_Document):
    """One version of a node's adapter."""

    version: Count
    at_s: Number
    n_steps: Count
    contributors: tuple[str, ...]
    mismatch: Number | None = None


class Step(_Document):
    """One node on the way from the root, with its gate."""

    path: Path
    mass: Share | None = None
    accuracy: Share | None = None
    tau: Number | None = None
    """Sharpness of the gate; None below the last gate."""


class NodeDetail(_Document):
    """`GET /api/v1/nodes/{path}`; the root's path is spelled `root`."""

    node: Node
    way: tuple[Step, ...]
    """From the root to this node."""
    holders: tuple[Worker, ...]
    updates: tuple[UpdateRow, ...]
    """The latest on this node, the newest first."""
    versions: tuple[VersionRow, ...]
    """The latest, the newest first."""


class Span(_Document):
    """A worker was at a node."""

    worker: str
    start_s: Number
    end_s: Number | None = None
    """None: still."""
    outcome: Literal["working", "accepted", "expired", "rejected", "mixed"] = "working"
    """`mixed`: several units that are too short to be told apart at this width."""
    n_units: Count = 1


class Lane(_Document):
    """Who was at one node, and when."""

    path: Path
    spans: tuple[Span, ...]


class Mark(_Document):
    """Something that concerns the whole run."""

    at_s: Number
    kind: Literal["router", "topology", "lost", "returned", "paused", "resumed", "finished", "out"]
    text: str
    count: Count = 1
    """How many of them fall together at this width."""


class Timeline(_Document):
    """`GET /api/v1/timeline?start_s=&end_s=&offset=&limit=`."""

    start_s: Number
    end_s: Number
    lanes: tuple[Lane, ...]
    n_lanes: Count
    """In all; `lanes` begins with number `offset` of them, by path."""
    offset: Count
    marks: tuple[Mark, ...]


class StateSpan(_Document):
    """A worker was in one state."""

    state: WorkerStateName
    reason: str = ""
    start_s: Number
    end_s: Number | None = None


class LogLine(_Document):
    """A line of its log that a worker's owner chose to share."""

    at_s: Number
    text: str


class WorkerDetail(_Document):
    """`GET /api/v1/workers/{worker}`."""

    worker: Worker
    states: tuple[StateSpan, ...]
    """The latest, the oldest first."""
    updates: tuple[UpdateRow, ...]
    """The latest, the newest first."""
    limits: dict[str, str] = {}
    """As declared."""
    log: tuple[LogLine, ...] = ()


class WorkerList(_Document):
    """`GET /api/v1/workers`."""

    position: str
    workers: tuple[Worker, ...]


# --- numbers over time --------------------------------------------------------------------------------------------

Metric: TypeAlias = Literal[
    "loss", "train_loss", "tokens_per_s", "workers", "bytes_per_s", "progress", "entropy", "drift", "mass"
]
"""Of a node: `loss` (held-out), `train_loss`, `tokens_per_s`, `mass`. Of the run: all but `mass`."""


class Series(_Document):
    """`GET /api/v1/series?metric=&node=&start_s=&end_s=&points=`: one number over the run's clock, in equal buckets."""

    metric: Metric
    node: Path | None
    """None: of the run."""
    bucket_s: Number
    t: tuple[Number, ...]
    """Middle of each bucket that has something; the others are left out."""
    mean: tuple[Number, ...]
    low: tuple[Number, ...]
    high: tuple[Number, ...]


# --- routing ------------------------------------------------------------------------------------------------------


class LeafShare(_Document):
    """How much text goes to a leaf."""

    path: Path
    mass: Share
    data_notes: tuple[str, ...] = ()


class GateRow(_Document):
    """The gate of an inner node."""

    path: Path
    right: Share | None = None
    """Share of the text here that goes right."""
    accuracy: Share | None = None
    tau: Number | None = None


class RouterRow(_Document):
    """One version of the routers."""

    version: Count
    at_s: Number
    drift: Number
    n_contributors: Count
    reason: str
    entropy_bits: Number | None = None


class Routing(_Document):
    """`GET /api/v1/routing`."""

    source: MassSource
    leaves: tuple[LeafShare, ...]
    gates: tuple[GateRow, ...]
    versions: tuple[RouterRow, ...]
    """The latest, the newest last."""
    entropy_bits: Number | None = None
    """Of the shares of the leaves; the most is `max_entropy_bits`, where all are equal."""
    max_entropy_bits: Number = 0
    n_dead: Count = 0
    """Leaves with less than a tenth of an equal share."""
    can_look_up: bool = False
    """Whether `POST /api/v1/routing/lookup` can be asked."""
    why_not: str = ""


class LookupRequest(_Document):
    """A text to route. It is not kept."""

    text: Annotated[str, Field(min_length=1, max_length=20_000)]


class GatePass(_Document):
    """What one gate on the way says of the text."""

    path: Path
    right: Share
    """Probability of the right side."""
    went: Literal["0", "1"]


class LeafPosterior(_Document):
    """How probable a leaf is for the text."""

    path: Path
    posterior: Share
    data_notes: tuple[str, ...] = ()


class Lookup(_Document):
    """The way of a text through the tree, hard decisions; and the probabilities of all leaves."""

    path: Path
    n_tokens: Count
    gates: tuple[GatePass, ...]
    leaves: tuple[LeafPosterior, ...]
    """By probability, at most 64."""
    router_version: Count


# --- what can be taken away ---------------------------------------------------------------------------------------


class BundleRow(_Document):
    """One bundle that was written."""

    sha256: str
    bytes: Count
    n_events: Count
    """Of which length of the log it is."""
    log_sha256: str
    """The log's chain up to there."""
    router_version: Count
    at_s: Number
    is_published: bool = False
    """Whether it is what `GET /api/v1/bundle` answers with."""
    is_recorded: bool = False
    """Whether its hash stands in the ledger."""
    url: str


class LeafFile(_Document):
    """One leaf as a PEFT adapter, zipped."""

    path: Path
    version: Count
    n_steps: Count
    url: str


class Artifacts(_Document):
    """`GET /api/v1/artifacts`."""

    bundles: tuple[BundleRow, ...]
    """The newest first."""
    is_making: bool = False
    """Whether one is being written now."""
    making_error: str = ""
    leaves: tuple[LeafFile, ...]
    can_make: bool = False
    """Whether whoever asks may have a new one written."""


# --- joining, and the operator ------------------------------------------------------------------------------------


class JoinInfo(_Document):
    """`GET /api/v1/join`: what somebody needs who wants to lend a machine."""

    run: str
    address: str
    """Where workers reach this run."""
    command: str
    """To paste; the token comes from the operator."""
    base_id: str
    min_sequences: Count
    sent: tuple[str, ...]
    never_sent: tuple[str, ...]
    code: str
    """Whose code runs."""
    needs_approval: bool = False
    is_open: bool = True
    """Whether the run takes workers: it is not over."""


class Session(_Document):
    """`GET /api/v1/session`: who the server takes the reader for."""

    role: Role
    is_local: bool = False
    """Whether that is because he came by the loopback listener."""
    expires_s: Number | None = None
    """Seconds since 1970."""
    needs_token: bool = False
    """Whether nobody may look without a token."""


class SessionRequest(_Document):
    """`POST /api/v1/session`: sign in with a viewer's or an admin's token."""

    token: Annotated[str, Field(min_length=1, max_length=512)]


class TokenRow(_Document):
    """A join token, without its secret."""

    token_id: str
    state: Literal["open", "used_up", "expired", "revoked"]
    expires_unix_s: Number
    max_workers: Count
    n_workers: Count
    needs_approval: bool
    tags: tuple[str, ...]


class TokenList(_Document):
    """`GET /api/v1/admin/tokens`."""

    tokens: tuple[TokenRow, ...]


class TokenRequest(_Document):
    """`POST /api/v1/admin/tokens`."""

    uses: Annotated[int, Field(ge=1, le=10_000)] = 1
    expires: Annotated[str, Field(pattern=r"^\d{1,5}[smhd]$")] = "24h"
    tags: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=40)], ...], Field(max_length=8)] = ()
    needs_approval: bool = False


class NewToken(_Document):
    """The only time that a token's secret is seen."""

    token: str
    token_id: str
    expires_unix_s: Number
    max_workers: Count
    command: str


class PendingWorker(_Document):
    """Somebody who waits for approval."""

    worker: str
    name: str
    token_id: str
    tags: tuple[str, ...]
    since_unix_s: Number


class OrderRow(_Document):
    """An order to the rounds."""

    order_id: str
    kind: str
    worker: str = ""
    reason: str = ""
    given_unix_s: Number
    outcome: str | None = None
    """None: it waits."""


class AdminState(_Document):
    """`GET /api/v1/admin`."""

    pending: tuple[PendingWorker, ...]
    orders: tuple[OrderRow, ...]
    """The latest, the newest first."""


class OrderRequest(_Document):
    """`POST /api/v1/admin/orders`: what the operator wants done; carried out within seconds while the run is served."""

    kind: Literal["pause", "resume", "finish", "revoke", "release", "reassign"]
    worker: Annotated[str, Field(max_length=64)] = ""
    """Of `revoke`, `release` and `reassign`."""
    node: Path | None = None
    """Of `reassign`."""
    reason: Annotated[str, Field(max_length=200)] = ""


class Failure(_Document):
    """The body of every refusal."""

    error: str
    """A word for programs."""
    reason: str
    """One sentence for people."""

"""What can happen in a run. The campaign is a fold of these; nothing else is remembered.

Every event is a frozen pydantic document with a `type` tag, so that a ledger can store it as JSON and an old log can
be read again. Events hold hashes of blobs, never tensors, and no wall-clock time: `at_s` is the coordinator's own
clock since the run began, and only leases need it.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from tinylora.config import BaseFacts, RunSettings
from tinylora.protocol.documents import (
    Count,
    DataLicence,
    DataNote,
    Factor,
    Finite,
    Name,
    PathText,
    ProbeResult,
    Sha256,
    UnitKind,
)

Part = Literal["adapters", "histogram", "statistics", "weights_router"]


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RunStarted(_Event):
    """The first event of every ledger."""

    type: Literal["run_started"] = "run_started"
    run: Name
    settings: RunSettings
    base: BaseFacts


class WorkerJoined(_Event):
    """A worker was seen for the first time."""

    type: Literal["worker_joined"] = "worker_joined"
    worker: Name
    name: str
    public_key: str = ""
    """Its key for signing, PEM or OpenSSH text, pinned from here on. Empty: the transport vouches for it."""
    token: str = ""
    """Name of the join token that it came with; those who share one are counted as one voice."""
    at_s: Finite = 0.0


class WorkerLost(_Event):
    """A worker went offline; its open lease is released."""

    type: Literal["worker_lost"] = "worker_lost"
    worker: Name
    at_s: Finite = 0.0


class WorkerReturned(_Event):
    """A lost worker is online again."""

    type: Literal["worker_returned"] = "worker_returned"
    worker: Name
    at_s: Finite = 0.0


class UnitLeased(_Event):
    """A unit was handed to a worker."""

    type: Literal["unit_leased"] = "unit_leased"
    unit_id: Name
    worker: Name
    kind: UnitKind
    node: PathText
    nonce: Name
    topology_version: Count
    router_version: Count
    node_version: Count
    first_step: Count = 0
    n_steps: Count = 0
    nodes: tuple[PathText, ...] = ()
    """Nodes whose adapters are trained, upper ones first; none named means the leaves below `node`."""
    frozen: tuple[PathText, ...] = ()
    """Nodes above them whose adapters are applied as they are."""
    factors: tuple[Factor, ...] = ()
    """Factors of the adapters that are trained; none named means all."""
    prefix_rank: Count = 0
    """How many rows of every adapter are trained: what the worker's memory allows; 0 means all."""
    is_adopted: bool = False
    subject: str = ""
    """Of a probe: the unit whose update is scored."""
    at_s: Finite
    deadline_s: Finite
    """Absolute, on the coordinator's clock."""
    bytes_sent: Count = 0


class LeaseExpired(_Event):
    """The deadline passed, or the worker said it cannot; the unit may be leased again."""

    type: Literal["lease_expired"] = "lease_expired"
    unit_id: Name
    reason: str
    is_returned: bool = False
    """Whether it is given back in good order, by its worker or the operator: nothing is held against the worker, and no
    update of it counts any more."""
    rest_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """With `is_returned`: for so long its worker gets nothing, so that somebody else may have the unit."""
    at_s: Finite = 0.0


class UpdateAccepted(_Event):
    """An update passed every check; its payload is in the ledger's blobs."""

    type: Literal["update_accepted"] = "update_accepted"
    unit_id: Name
    worker: Name
    kind: UnitKind
    node: PathText
    node_version: Count
    router_version: Count
    shard_version: Sha256
    shard_tokens: Count
    tokens: Count
    n_steps: Count
    seconds: Finite
    base_loads: Count
    nodes: tuple[PathText, ...] = ()
    """Nodes whose adapters it brings; none named means the leaves below `node`."""
    max_rank: Count = 0
    """Highest rank that the worker can train; 0 where it named none."""
    max_leaves: Count = 0
    """Most leaves that it can train at once; 0 where it named no limit."""
    heldout_nll_before: Finite | None = None
    heldout_nll_after: Finite | None = None
    log_volume: Finite | None = None
    data_note: DataNote = ""
    """Of a sketch: what the owner says of the text."""
    data_licence: DataLicence = ""
    """Of a sketch: the text's licence, in the owner's words."""
    losses: tuple[Finite, ...] = ()
    parts: tuple[Part, ...] = ()
    """What the payload holds, so that a fold need not open blobs."""
    is_pending: bool = False
    """Whether other workers are asked to score it before it counts."""
    subject: str = ""
    """Of a probe: the unit whose update was scored."""
    probe: ProbeResult | None = None
    """Of a probe: what it said."""
    blob: Sha256
    bytes_received: Count
    at_s: Finite


class UpdateRejected(_Event):
    """An update failed a check; the run's state is untouched but for the freed lease."""

    type: Literal["update_rejected"] = "update_rejected"
    unit_id: Name
    worker: Name
    code: Name
    reason: str
    is_proven: bool = True
    """Whether it came from this worker for certain; otherwise it is held against nobody."""
    at_s: Finite


class UpdateProbed(_Event):
    """The votes on a pending update were counted: it counts from here on, or never will."""

    type: Literal["update_probed"] = "update_probed"
    unit_id: Name
    worker: Name
    node: PathText
    is_kept: bool
    n_votes: Count
    """0: nobody could be asked, and it is believed unscored."""
    change: Finite | None = None
    """Median over the votes of candidate less current, in nats per token."""
    reason: str = ""
    at_s: Finite = 0.0


class WorkerQuarantined(_Event):
    """A worker gets no more units, by rule; what it taught the routers is taken out."""

    type: Literal["worker_quarantined"] = "worker_quarantined"
    worker: Name
    code: Name
    reason: str
    at_s: Finite = 0.0


class WorkerRevoked(_Event):
    """The operator removed a worker: its sums are subtracted, its nodes fall back to the versions without it."""

    type: Literal["worker_revoked"] = "worker_revoked"
    worker: Name
    reason: str = ""
    at_s: Finite = 0.0


class WorkerErased(_Event):
    """A revoked worker's blobs are gone, on request; the log keeps their hashes."""

    type: Literal["worker_erased"] = "worker_erased"
    worker: Name
    blobs: tuple[Sha256, ...] = ()
    at_s: Finite = 0.0


class BlobsPruned(_Event):
    """Blobs that nothing needs any more are gone; the log keeps their hashes."""

    type: Literal["blobs_pruned"] = "blobs_pruned"
    blobs: tuple[Sha256, ...]
    reason: str = ""


class RunPaused(_Event):
    """The operator wants no more units given out; those under way may come back."""

    type: Literal["run_paused"] = "run_paused"
    at_s: Finite = 0.0


class RunResumed(_Event):
    """Units are given out again."""

    type: Literal["run_resumed"] = "run_resumed"
    at_s: Finite = 0.0


class TopologySet(_Event):
    """The tree and who owns what: worker to node (a leaf, or the top of a subtree)."""

    type: Literal["topology_set"] = "topology_set"
    version: Count
    leaves: tuple[PathText, ...]
    assignment: dict[str, PathText]


class WorkerAssigned(_Event):
    """A worker got a leaf, which it trains beside whoever holds it already.

    It came after the topology; or the operator moved it: what it was sent for its old node counts no more, what of it
    was accepted there stays.
    """

    type: Literal["worker_assigned"] = "worker_assigned"
    worker: Name
    node: PathText


class GatesSolved(_Event):
    """A new router version: who contributed, and how far the gates moved."""

    type: Literal["gates_solved"] = "gates_solved"
    version: Count
    contributors: tuple[Name, ...]
    drift: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Relative change of all gates against the version before; 1 for the first."""
    blob: Sha256
    """Named tensors `router.*`, and `weights_router.*` where the run keeps averaged weights."""
    reason: str = ""
    accuracy: dict[PathText, Annotated[float, Field(ge=0, le=1)]] = {}
    """By inner node: how often its gate was right on held-out text, both sides weighing the same."""


class NodeAveraged(_Event):
    """A node's next version: the average of the updates of all that held it (one holder: passed through bit by bit)."""

    type: Literal["node_averaged"] = "node_averaged"
    node: PathText
    version: Count
    contributors: tuple[Name, ...]
    blob: Sha256
    """Adapters of all leaves below `node`; of `node` alone where it is inside a path."""
    n_steps: Count
    """Steps that the node has had in all: those of a round count once, however many replicas trained it."""
    mismatch: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """|mean(B A) - mean(B) mean(A)| / |mean(B A)| over the replicas' pairs; None where nothing was averaged."""
    momentum: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    """Blob with the velocity of the outer steps, tensors named as those of the adapters; empty where there is none."""


class LeafSplit(_Event):
    """A leaf that had stopped improving became an inner node; its children begin as what it was."""

    type: Literal["leaf_split"] = "leaf_split"
    node: PathText
    version: Count
    """Of the topology."""
    leaves: tuple[PathText, ...]
    assignment: dict[str, PathText]
    """Its workers to a child each; a lone worker keeps `node`, and holds both children."""
    blob: Sha256
    """Adapters of both children."""
    heldout_nll: Finite
    """The leaf's last held-out loss, which its children must better."""


class SplitKept(_Event):
    """A split paid, and stays."""

    type: Literal["split_kept"] = "split_kept"
    node: PathText
    heldout_nll: Finite | None = None


class LeavesMerged(_Event):
    """Two sibling leaves became one: a split that did not pay is undone, or their gate cannot tell them apart."""

    type: Literal["leaves_merged"] = "leaves_merged"
    node: PathText
    version: Count
    """Of the topology."""
    leaves: tuple[PathText, ...]
    assignment: dict[str, PathText]
    blob: Sha256
    """The parent's adapter as it was before the split, or both children's in one."""
    node_version: Count
    n_steps: Count
    reason: str


class SubtreeDivided(_Event):
    """A subtree that one worker held falls apart into its leaves, because others hold some of them."""

    type: Literal["subtree_divided"] = "subtree_divided"
    node: PathText
    version: Count
    """Of the topology."""
    leaves: tuple[PathText, ...]
    assignment: dict[str, PathText]
    """Those who held it all, to a leaf each; they train on those own documents that are nearest to it."""


class RunFinished(_Event):
    """Every leaf has had its steps, or the operator asked for the end."""

    type: Literal["run_finished"] = "run_finished"
    reason: str
    at_s: Finite = 0.0


class BundlePublished(_Event):
    """A bundle was made of the run as it stood after so many events; whoever has the file can compare."""

    type: Literal["bundle_published"] = "bundle_published"
    sha256: Sha256
    bytes: Count
    n_events: Count
    """Length of the log that it was made of."""
    log_sha256: Sha256
    """The log's chain up to there."""
    router_version: Count
    at_s: Finite = 0.0


Event = Annotated[
    RunStarted
    | WorkerJoined
    | WorkerLost
    | WorkerReturned
    | UnitLeased
    | LeaseExpired
    | UpdateAccepted
    | UpdateRejected
    | UpdateProbed
    | WorkerQuarantined
    | WorkerRevoked
    | WorkerErased
    | BlobsPruned
    | RunPaused
    | RunResumed
    | TopologySet
    | WorkerAssigned
    | GatesSolved
    | NodeAveraged
    | LeafSplit
    | SplitKept
    | LeavesMerged
    | SubtreeDivided
    | RunFinished
    | BundlePublished,
    Field(discriminator="type"),
]

_adapter: TypeAdapter[Event] = TypeAdapter(Event)


def event_to_json(event: Event) -> str:
    """One line of JSON, keys in field order."""
    return event.model_dump_json()


def event_from_json(text: str) -> Event:
    """Read an event back from a ledger."""
    return _adapter.validate_json(text)

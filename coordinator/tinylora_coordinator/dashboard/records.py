"""What the projection remembers of a run: small records that the fold changes, and that lie in the projection's file.

They hold what is shown and what it takes to go on; the campaign's state (`tinylora.federation.state`) is the one that
decides.
"""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from tinylora.protocol.documents import UnitKind
from tinylora.protocol.report import WorkerReport
from tinylora.tree import NodePath
from tinylora_coordinator.dashboard.documents import UnitState

Roster: TypeAlias = Literal["", "pending", "approved", "revoked"]
MAX_PACE = 64
"""Points of the progress that are kept for the forecast."""


@dataclass(slots=True)
class Version:
    """One version of a part, to go back to."""

    number: int = 0
    blob: str = ""
    steps: int = 0


@dataclass(slots=True)
class Told:
    """What an accepted update that waits for its round said of its losses, nats per token."""

    worker: str
    node: NodePath
    before: float | None = None
    after: float | None = None
    train: float | None = None


@dataclass(slots=True)
class Part:
    """One part of the tree that moves on as one; as `federation.state.Node`."""

    version: int = 0
    blob: str = ""
    steps: int = 0
    loss: float | None = None
    is_heldout: bool = False
    """Whether `loss` was measured on held-out text."""
    first_loss: float | None = None
    """Held-out loss before anything was trained here."""
    waiting: list[Told] = field(default_factory=list)
    before: dict[str, Version] = field(default_factory=dict)
    """By contributor: the last version without it."""


@dataclass(slots=True)
class Unit:
    """An open lease, or an update that waits for its probes."""

    unit_id: str
    worker: str
    kind: UnitKind
    node: NodePath
    trained: tuple[NodePath, ...]
    """Nodes whose adapters it trains: leaves, or nodes of the trunk."""
    leased_s: float
    deadline_s: float
    n_steps: int
    subject: str = ""
    is_pending: bool = False
    told: Told | None = None


@dataclass(slots=True)
class Worker:
    """One worker, by the ledger, by its own reports, and by the operator's store."""

    worker: str
    name: str = ""
    is_joined: bool = False
    """Whether the ledger knows it."""
    is_online: bool = False
    out: str = ""
    """Code for which it gets no more units."""
    out_reason: str = ""
    standing: Literal["good", "quarantined", "revoked", "erased"] = "good"
    node: NodePath | None = None
    unit_id: str = ""
    joined_s: float = 0.0
    last_accepted_s: float | None = None
    last_trained_s: float | None = None
    speed: float | None = None
    """Tokens per second of its latest train update."""
    shard_tokens: int = 0
    n_accepted: int = 0
    n_rejected: int = 0
    n_expired: int = 0
    n_lost: int = 0
    tokens: int = 0
    seconds: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0
    report: WorkerReport | None = None
    """Without its log lines."""
    heard_s: float | None = None
    is_current: bool = False
    """Whether nothing happened since that makes the report's state out of date."""
    roster: Roster = ""
    """What the operator's store says."""
    is_listed: bool = False
    """Whether it is shown: it took part, or asked to, or told of itself. Who was shown once stays."""
    shown_state: tuple[str, str] = ("", "")
    """State and reason, as last shown."""
    tags: tuple[str, ...] = ()


@dataclass(slots=True)
class Measured:
    """Where the gates send one worker's held-out text, by its latest probe."""

    topology_version: int
    router_version: int
    mass: dict[NodePath, float]


@dataclass(slots=True)
class Trial:
    """A split that has yet to show that it pays: the leaf as it was."""

    before: Part


@dataclass(slots=True)
class Head:
    """The run as a whole."""

    run: str = ""
    base_id: str = ""
    adapter: str = ""
    rank: int = 0
    depth: int = 0
    leaf_steps: int = 0
    is_path: bool = False
    """Whether every node of a path has an adapter."""
    is_cascade: bool = False
    level_steps: tuple[int, ...] = ()
    n_events: int = 0
    latest_s: float = 0.0
    """Time of the latest event."""
    topology_version: int = 0
    leaves: tuple[NodePath, ...] = ()
    lanes: tuple[NodePath, ...] = ()
    """Nodes that somebody held or trained at any time."""
    router_version: int = 0
    drift: float = 0.0
    accuracy: dict[NodePath, float] = field(default_factory=dict)
    n_accepted: int = 0
    n_rejected: int = 0
    n_expired: int = 0
    tokens: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    is_paused: bool = False
    finished: str = ""
    longest_s: float = 0.0
    """From a lease to its end, at most so far."""
    training_s: float | None = None
    """When the first train unit was leased."""
    progress: float = 0.0
    pace: list[tuple[float, float]] = field(default_factory=list)
    """(time, progress) at some moments, the latest last."""
    loss: float | None = None
    mass_source: Literal["probes", "tokens", "none"] = "none"
    mass_s: float | None = None
    """When the mass that is shown was reckoned."""
    mass_recorded_s: float | None = None
    is_mass_old: bool = False
    entropy_bits: float | None = None


@dataclass(slots=True)
class UnitChange:
    """What is to be written about a unit; None leaves a column as it is."""

    unit_id: str
    state: UnitState
    closed_s: float | None = None
    reason: str | None = None
    n_steps: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    heldout_before: float | None = None
    heldout_after: float | None = None
    train_loss: float | None = None
    bytes_received: int | None = None
    worker: str | None = None
    """Whose unit it must be."""
    only_from: tuple[UnitState, ...] = ("leased", "expired")
    """States in which this is still possible."""


@dataclass(slots=True)
class Point:
    """One value of a metric."""

    metric: str
    node: NodePath | None
    at_s: float
    value: float


@dataclass(slots=True)
class Amount:
    """Something that was made between two moments, such as tokens."""

    metric: str
    node: NodePath | None
    start_s: float
    end_s: float
    amount: float

"""The ports of the loop: ledger, transport and clock, each with a real and a simulated adapter, and the numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np

from tinylora.adapters.spec import AdapterSpec
from tinylora.config import BaseFacts, Replicas
from tinylora.federation.events import Event
from tinylora.protocol.documents import Manifest, WorkUnit
from tinylora.tree import NodePath


@dataclass(frozen=True)
class WorkerInfo:
    """A worker that the transport can reach now."""

    worker: str
    """Its identity, the same after a restart."""
    name: str
    """What its owner calls it; shown, never trusted."""
    public_key: bytes = b""
    """PEM or OpenSSH text, for checking signatures on its updates; empty where the transport vouches for it."""
    token: str = ""
    """Name of the join token that it came with, where there is one."""


@dataclass(frozen=True)
class Reply:
    """What came back for one unit: an update document with its payload, or the reason why there is none."""

    worker: str
    unit_id: str
    update_json: str = ""
    payload: bytes = b""
    file: Path | None = None
    """Where the payload was spooled, flushed to disk; it is read when its turn comes, and the ledger takes it over."""
    sha256: str = ""
    """Of the file's bytes, from who wrote it."""
    error: str = ""
    is_final: bool = False
    """With `error`: asking this worker again is of no use (its shard is too small, it does not fit the base)."""
    is_returned: bool = False
    """With `error`: its owner needs the machine, and the unit is whole; nothing is held against it."""


@runtime_checkable
class Transport(Protocol):
    """Carries units out and replies back. Nothing in it decides anything."""

    def workers(self) -> Sequence[WorkerInfo]:
        """Workers that are online now, sorted by identity."""
        ...

    def send(self, worker: str, unit: WorkUnit, payload: bytes) -> None:
        """Hand a unit to a worker; returns at once. A worker that has vanished meanwhile is not an error."""
        ...

    def poll(self) -> Sequence[Reply]:
        """Replies that arrived since the last call, without waiting."""
        ...


@runtime_checkable
class Clock(Protocol):
    """Time as the loop sees it, in seconds; only the coordinator's own clock decides anything."""

    def now(self) -> float:
        """Seconds since the run was first started, never going back."""
        ...

    def wait(self, seconds: float) -> None:
        """Sleep at most so long; may return early when something has arrived."""
        ...


@runtime_checkable
class Ledger(Protocol):
    """Durable memory of a run: an ordered list of events and content-addressed blobs."""

    def append(self, events: Sequence[Event], now_s: float) -> None:
        """Add events in order, all or none; `now_s` is stored beside them for people, never folded.

        Raises:
            StorageError: The disk is full or not writable; nothing was added.
        """
        ...

    def events(self, after: int = 0) -> Sequence[Event]:
        """Events in order, without the first `after` ones."""
        ...

    def chain_at(self, number: int) -> str:
        """Hash over the first `number` events, hex; ledgers of other kinds need not agree on it.

        Raises:
            StorageError: There are fewer.
        """
        ...

    def put_blob(self, data: bytes, *, sha256: str = "") -> str:
        """Store bytes, durable before the call returns; the name is their hex sha256. Storing twice is storing once.

        Args:
            data: Any bytes.
            sha256: Their sha256, from a caller that has just computed it; hashing is most of what storing costs.
        """
        ...

    def adopt_blob(self, file: Path, sha256: str) -> str:
        """Store a file that was flushed to disk by moving it here, durable before the call returns.

        Args:
            file: On the ledger's own file system; gone afterwards.
            sha256: Hex sha256 of its bytes, just computed by the caller.
        """
        ...

    def get_blob(self, sha256: str) -> bytes:
        """Bytes stored under this name.

        Raises:
            StorageError: No such blob, or its bytes no longer match the name.
        """
        ...

    def drop_blobs(self, names: Sequence[str]) -> None:
        """Delete blobs that an event has just declared pruned or erased; those not there are no error."""
        ...

    def stored_bytes(self) -> int:
        """Size of all blobs together."""
        ...

    def save_snapshot(self, n_events: int, text: str) -> None:
        """Keep the state after the first `n_events` events; only a way to be faster, and replaced by the next one."""
        ...

    def load_snapshot(self) -> tuple[int, str] | None:
        """The last snapshot, if there is a sound one."""
        ...


OrderKind: TypeAlias = Literal["pause", "resume", "finish", "revoke", "erase", "release", "reassign", "record"]
"""`release`: a worker's unit is free for others. `reassign`: it holds `node` from now on. `record`: the log names a
bundle that was made of it, which `reason` describes."""


@dataclass(frozen=True)
class Order:
    """What the operator wants done. Each is harmless to carry out twice."""

    order_id: str
    kind: OrderKind
    worker: str = ""
    reason: str = ""
    """In the operator's words; of `record`, the fields of `BundlePublished` as JSON."""
    node: NodePath = ""
    """Of `reassign`: the leaf."""


@runtime_checkable
class Desk(Protocol):
    """Where the operator's orders lie until they are carried out; they outlive the process."""

    def orders(self) -> Sequence[Order]:
        """Orders that were not carried out yet, oldest first."""
        ...

    def done(self, order: Order, outcome: str) -> None:
        """An order was carried out, or cannot be; `outcome` says so in one sentence."""
        ...


@dataclass(frozen=True)
class PayloadFacts:
    """What acceptance must know of a payload beyond names and shapes."""

    not_finite: str = ""
    """The first tensor with a NaN or an infinity, or nothing."""
    statistics_fault: str = ""
    """Why the router statistics in it cannot be right, or nothing."""
    statistics_rule: str = ""
    """The rule that they break, in a word."""
    n_rows: float = 0.0
    """Rows that its statistics say they are the sums over."""
    delta_rms: float = 0.0
    """Largest rms, over the adapter tensors, of how far the numbers moved in this unit."""
    farthest: str = ""
    """The last part of that tensor's name."""


@dataclass(frozen=True)
class Round:
    """What the workers of a node began with, and the rule by which their updates become one."""

    start: bytes
    """The node's adapters, whole."""
    replicas: Replicas = "mean"
    outer_lr: float = 1.0
    outer_momentum: float = 0.0
    momentum: bytes = b""
    """Velocity of the outer steps so far."""
    clip: float = 0.0
    """Longest way that one update may go, in medians over the updates of the round; 0 is no limit."""
    previous: bytes = b""
    """The version before `start`, whole; the way between the two is what updates are clipped around."""


@dataclass(frozen=True)
class Averaged:
    """A node's next version."""

    payload: bytes
    """Its adapters, whole."""
    mismatch: float | None = None
    """|mean(B A) - mean(B) mean(A)| / |mean(B A)| over the replicas; None where nothing was averaged."""
    momentum: bytes = b""
    """Velocity of the outer steps; empty where there is none."""


@runtime_checkable
class Numerics(Protocol):
    """The numbers inside payloads. The rules of a run decide about bytes by name; this alone opens them."""

    def read_manifest(self, payload: bytes) -> Manifest:
        """Names, dtypes and shapes from the header.

        Raises:
            ProtocolError: Not a payload: truncated, altered, or not safetensors at all.
        """
        ...

    def measure(self, payload: bytes, start: bytes | None) -> PayloadFacts:
        """Facts about a payload whose manifest was found right; `start` holds the adapters that the unit began with.

        Raises:
            ProtocolError: The tensors cannot be read after all.
        """
        ...

    def arrays(self, payload: bytes, prefix: str) -> dict[str, np.ndarray]:
        """The tensors whose names begin with `prefix`, by full name; none of them is an adapter."""
        ...

    def pack(self, arrays: Mapping[str, np.ndarray]) -> bytes:
        """Byte-stable payload of these arrays."""
        ...

    def select(self, payloads: Sequence[bytes], prefixes: Sequence[str], prefix_rank: int = 0) -> bytes:
        """One payload with the tensors of several whose names begin with one of `prefixes`.

        With a `prefix_rank`, of adapters the first so many rows.
        """
        ...

    def initial(self, base: BaseFacts, spec: AdapterSpec, seed: int, paths: Sequence[NodePath]) -> bytes:
        """The adapters that nodes begin with, as every worker draws them."""
        ...

    def candidate(self, update: bytes, start: bytes) -> bytes:
        """The adapters of an update, whole: what it trained in the place of what it began with.

        Tensors `candidate.<path>.*`, for a probe to score beside the `node.<path>.*` of the same nodes.
        """
        ...

    def rename(self, payload: bytes, names: Mapping[NodePath, Sequence[NodePath]]) -> bytes:
        """The adapters of some nodes under other names, each under as many as are given, and nothing else."""
        ...

    def average(
        self, updates: Mapping[NodePath, Mapping[str, str]], begun: Round, load: Callable[[str], bytes]
    ) -> Averaged:
        """Next version of some nodes: for each, what the rule makes of the workers' updates that hold its adapter.

        Float64, in the order of the workers' names. A single update passes through bit by bit. What nobody trained
        stays as the round began with it.

        Args:
            updates: By node and worker, the name of a payload.
            begun: What the round began with, and its rule.
            load: The payload of a name. It is asked for one at a time, again in each pass, and does not stay.
        """
        ...

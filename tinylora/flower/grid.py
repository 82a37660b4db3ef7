"""The coordinator's rounds end: Flower's grid as the loop's `Transport`, with a collector that keeps deadlines.

`Grid.send_and_receive` is not used: it pulls replies inside its loop and blocked for minutes past its timeout when one
upload stalled. Here one question asks for all replies that have begun to arrive, each is then fetched by a thread of
its own, and the loop alone decides how long it waits for what.
"""

import hashlib
import queue
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import httpx
from flwr.app import DEFAULT_TTL, Message, Metadata, RecordDict
from flwr.serverapp import Grid

from tinylora.errors import NetworkError, ProtocolError
from tinylora.federation.ports import Reply, WorkerInfo
from tinylora.flower.compat.rounds import (
    AcquireTaskRequest,
    ControlHttpClient,
    Fab,
    HttpGrid,
    ListRunsRequest,
    ProtobufCall,
    ProtobufRequestContext,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    RuntimeHttpClient,
    RuntimeTokenHttpInterceptor,
    SendTaskHeartbeatRequest,
    StartRunRequest,
    Status,
    StopRunRequest,
    SuperExecAuthHttpInterceptor,
    TaskType,
    build_fab_from_files,
    run_from_proto,
)
from tinylora.flower.compat.wire import (
    SUPERLINK_NODE_ID,
    ConfirmMessageReceivedRequest,
    ObjectTree,
    make_message,
    make_pull_object_fn_protobuf,
)
from tinylora.flower.enrolment import Address
from tinylora.flower.identity import worker_of
from tinylora.flower.link import ADMIN_HEADER
from tinylora.flower.messages import MESSAGE_TYPE, WORKER_DECLINES, printable, read_update, unit_record
from tinylora.flower.objects import put_together
from tinylora.flower.pulse import Pulse
from tinylora.protocol.documents import WorkUnit

T = TypeVar("T")

_TASK_HEARTBEAT_S = 15.0  # Flower gives up a task after 60 s of silence
_ROSTER_S = 0.5
_RUNS_TO_END = 20  # newest first; more than one is open only where a process died while it began another
_STUB_APP: dict[str, bytes] = {
    "stub.py": b"# Workers run their installed package; nothing is shipped.\n",
    "pyproject.toml": b"""\
[project]
name = "tinylora-stub"
version = "0.1.0"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "tinylora"
[tool.flwr.app.components]
serverapp = "stub:server"
clientapp = "stub:client"
""",
}


class SessionLost(Exception):
    """Flower has ended the run that messages were sent in; none of them will be answered."""

    def __init__(self) -> None:
        super().__init__("Flower's session was lost and has been opened anew")


@dataclass(frozen=True)
class Station:
    """A worker, and the Flower node that leads to it."""

    flower_node_id: int
    info: WorkerInfo


@dataclass(frozen=True)
class Arrival:
    """A reply that has begun to arrive: which message it answers, and how to get the rest (may take long)."""

    message_id: str
    fetch: Callable[[], Message]


@runtime_checkable
class Wire(Protocol):
    """The four things a transport needs of Flower. Any of them may raise `SessionLost`."""

    def stations(self) -> Sequence[Station]:
        """Workers that are online."""
        ...

    def push(self, flower_node_id: int, content: RecordDict, group: str) -> str | None:
        """Send a message; returns its id, None when Flower does not take it."""
        ...

    def arrivals(self, message_ids: Collection[str]) -> Sequence[Arrival]:
        """Replies to these messages that have begun to arrive. Each is told once."""
        ...

    def close(self) -> None:
        """No more messages."""
        ...


@dataclass(frozen=True)
class _Sent:
    """A unit on its way."""

    worker: str
    unit_id: str


class FlowerTransport:
    """`tinylora.federation.ports.Transport` over a wire.

    Args:
        wire: How Flower is reached.
        poll_s: Between two questions for replies.
    """

    def __init__(self, wire: Wire, *, poll_s: float = 0.2) -> None:
        self._wire, self._poll_s = wire, poll_s
        self._arrived: queue.SimpleQueue[Reply] = queue.SimpleQueue()
        self._sent: dict[str, _Sent] = {}
        self._lock = threading.Lock()
        self._stations: dict[str, Station] = {}
        self._stations_at = float("-inf")
        self._senders = ThreadPoolExecutor(max_workers=4, thread_name_prefix="send")
        self._stop = threading.Event()
        self.arrived = threading.Event()
        """Set when there is something to `poll`; a clock may wait for it."""
        threading.Thread(target=self._collect, name="collect", daemon=True).start()

    def workers(self) -> Sequence[WorkerInfo]:
        """Workers that are online now, sorted by identity; at most half a second old."""
        if time.monotonic() - self._stations_at >= _ROSTER_S:
            try:
                self._stations = {station.info.worker: station for station in self._wire.stations()}
            except (SessionLost, NetworkError, httpx.HTTPError):
                return self._infos()  # what was known; the collector finds out whether the session is lost
            self._stations_at = time.monotonic()
        return self._infos()

    def _infos(self) -> list[WorkerInfo]:
        return [self._stations[worker].info for worker in sorted(self._stations)]

    def send(self, worker: str, unit: WorkUnit, payload: bytes) -> None:
        """Hand a unit to a worker; returns at once. What goes wrong comes back as a reply with an error."""
        sent = _Sent(worker, unit.unit_id)
        if (station := self._stations.get(worker)) is None:
            self._fail(sent, "the worker is not connected")
            return
        self._senders.submit(self._push, sent, station.flower_node_id, unit, payload)

    def _push(self, sent: _Sent, flower_node_id: int, unit: WorkUnit, payload: bytes) -> None:
        try:
            message_id = self._wire.push(flower_node_id, unit_record(unit, payload), group=unit.unit_id)
        except Exception as error:  # a pool's thread has nobody above it
            self._fail(sent, f"the unit could not be sent: {error or type(error).__name__}")
            return
        if not message_id:
            self._fail(sent, "Flower did not take the unit for this worker")
            return
        with self._lock:
            self._sent[message_id] = sent

    def poll(self) -> Sequence[Reply]:
        """Replies that arrived since the last call, without waiting."""
        self.arrived.clear()
        replies: list[Reply] = []
        while True:
            try:
                replies.append(self._arrived.get_nowait())
            except queue.Empty:
                return replies

    def _collect(self) -> None:
        while not self._stop.wait(self._poll_s):
            with self._lock:
                message_ids = list(self._sent)
            if not message_ids:
                continue
            try:
                arrivals = self._wire.arrivals(message_ids)
            except SessionLost as lost:
                self._lose(message_ids, str(lost))
            except (NetworkError, httpx.HTTPError):
                continue  # the link is being restarted; the loop's deadlines go on
            else:
                for arrival in arrivals:
                    self._begin(arrival)

    def _lose(self, message_ids: Collection[str], reason: str) -> None:
        for message_id in message_ids:
            with self._lock:
                sent = self._sent.pop(message_id, None)
            if sent is not None:
                self._fail(sent, reason)

    def _begin(self, arrival: Arrival) -> None:
        with self._lock:
            sent = self._sent.pop(arrival.message_id, None)
        if sent is not None:
            threading.Thread(target=self._fetch, args=(sent, arrival), name="fetch", daemon=True).start()

    def _fetch(self, sent: _Sent, arrival: Arrival) -> None:
        try:
            message = arrival.fetch()
            if (
                message.has_error()
            ):  # of unknown source, maybe the SuperLink: only the answered message tells the worker
                code, reason = message.error.code, message.error.reason or "no reason given"
                self._fail(sent, f"{reason} (Flower code {code})", is_final=code == WORKER_DECLINES)
                return
            update_json, payload = read_update(message.content)
        except Exception as error:  # a reply comes from outside: nothing in it may end this process
            self._fail(sent, str(error) or type(error).__name__)
            return
        self._deliver(Reply(sent.worker, sent.unit_id, update_json, payload))

    def _fail(self, sent: _Sent, reason: str, *, is_final: bool = False) -> None:
        self._deliver(Reply(sent.worker, sent.unit_id, error=printable(reason, at_most=1000), is_final=is_final))

    def _deliver(self, reply: Reply) -> None:
        self._arrived.put(reply)
        self.arrived.set()

    def close(self) -> None:
        """Stop collecting, and end the Flower run."""
        self._stop.set()
        self._senders.shutdown(wait=False, cancel_futures=True)
        self._wire.close()

    def __enter__(self) -> "FlowerTransport":
        """It works from the start."""
        return self

    def __exit__(self, *_raised: object) -> None:
        """Close."""
        self.close()


def _instruction(run_id: int, flower_node_id: int, content: RecordDict, group: str) -> Message:
    """A message with explicit metadata: `Message(...)` would read `TaskIdentity`, one for the whole process."""
    metadata = Metadata(
        run_id=run_id,
        message_id="",
        src_node_id=SUPERLINK_NODE_ID,
        dst_node_id=flower_node_id,
        reply_to_message_id="",
        group_id=group,
        created_at=time.time(),
        ttl=DEFAULT_TTL,
        message_type=MESSAGE_TYPE,
    )
    return make_message(metadata=metadata, content=content)


# --- any Flower grid ----------------------------------------------------------------------------------------------


class GridWire:
    """A wire over any `flwr.serverapp.Grid`: stock ServerApps, the simulation engine, the in-memory grid.

    A worker is named after its Flower node, and Flower vouches for it: stock nodes have no key that we know of. Over a
    real network prefer `HttpWire`: here a stalled upload holds up the others.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def stations(self) -> Sequence[Station]:
        """Workers that are online."""
        return [Station(node, WorkerInfo(name_of_node(node), f"node {node}")) for node in self._grid.get_node_ids()]

    def push(self, flower_node_id: int, content: RecordDict, group: str) -> str | None:
        """Send a message."""
        message = _instruction(self._grid.run.run_id, flower_node_id, content, group)
        return next(iter(self._grid.push_messages([message])), None)

    def arrivals(self, message_ids: Collection[str]) -> Sequence[Arrival]:
        """Replies that are here."""
        replies = self._grid.pull_messages(message_ids)
        return [Arrival(reply.metadata.reply_to_message_id, lambda reply=reply: reply) for reply in replies]

    def close(self) -> None:
        """Nothing to do: the grid belongs to its ServerApp."""


def name_of_node(flower_node_id: int) -> str:
    """What a worker is called that has no key of ours."""
    return f"flower-{flower_node_id}"


# --- our link -----------------------------------------------------------------------------------------------------


class HttpWire:
    """A wire to our own link, as the ServerApp process of a Flower run with an empty app.

    Flower's run is a detail of transport. Should it end (a laptop slept for more than a minute), another one is begun,
    and the messages of the old one are reported lost.
    """

    def __init__(self, host_port: str, *, admin: str, superexec_secret: bytes, limit_bytes: int) -> None:
        self._open = lambda: _open_session(Address(host_port, is_plain=True), admin, superexec_secret)
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._session = self._open()

    def stations(self) -> Sequence[Station]:
        """Workers that are online; their identity comes from the key they joined with."""
        return [
            Station(node.node_id, WorkerInfo(worker_of(node.public_key), node.name or "", node.public_key))
            for node in self._on_session(lambda session: session.grid.get_nodes())
        ]

    def push(self, flower_node_id: int, content: RecordDict, group: str) -> str | None:
        """Send a message."""

        def push(session: "_Session") -> str | None:
            message = _instruction(session.run_id, flower_node_id, content, group)
            return next(iter(session.grid.push_messages([message])), None)

        return self._on_session(push)

    def arrivals(self, message_ids: Collection[str]) -> Sequence[Arrival]:
        """Replies whose heads are here."""
        return self._on_session(lambda session: session.arrivals(message_ids, self._limit_bytes))

    def close(self) -> None:
        """End the Flower run."""
        self._session.close()

    def _on_session(self, ask: "Callable[[_Session], T]") -> T:
        session = self._session
        try:
            if session.is_lost.is_set():
                raise SessionLost
            return ask(session)
        except httpx.HTTPStatusError as error:
            if error.response.status_code not in (401, 403):
                raise
        except SessionLost:
            pass
        self._reopen(session)
        raise SessionLost

    def _reopen(self, lost: "_Session") -> None:
        with self._lock:
            if self._session is lost:
                lost.close()
                self._session = self._open()


@dataclass(frozen=True)
class _Session:
    """One Flower run, and our place in it as its ServerApp."""

    grid: HttpGrid
    client: RuntimeHttpClient
    run_id: int
    pulse: Pulse
    is_lost: threading.Event

    def arrivals(self, message_ids: Collection[str], limit_bytes: int) -> list[Arrival]:
        """Ask for the heads of replies, with the trees of their objects."""
        response = self.client.PullMessages(PullAppMessagesRequest(message_ids=list(message_ids)))
        heads = zip(response.messages_list, response.message_object_trees, strict=True)
        return [
            Arrival(
                head.metadata.reply_to_message_id,
                lambda reply_id=head.metadata.message_id, tree=tree: self._fetch(reply_id, tree, limit_bytes),
            )
            for head, tree in heads
        ]

    def _fetch(self, reply_id: str, tree: ObjectTree, limit_bytes: int) -> Message:
        pull = make_pull_object_fn_protobuf(self.client.PullObject, self.grid.node, self.run_id)
        message = put_together(reply_id, tree, pull, limit_bytes=limit_bytes)
        self.client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=self.grid.node, run_id=self.run_id, message_object_id=reply_id)
        )
        return message

    def close(self) -> None:
        """Tell the link that this run is over, should it not know."""
        self.pulse.stop()
        with suppress(httpx.HTTPError, ValueError):  # the link may be gone; its next start ends old runs
            self.client.PushTaskOutput(PushTaskOutputRequest(sub_status="completed", details=""))
        self.grid.close()


class _AdminHeader:
    """Interceptor: lets a request pass the guard."""

    def __init__(self, admin: str) -> None:
        self._admin = admin

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Add the header."""
        context.request.headers[ADMIN_HEADER] = self._admin
        return call_next(context)


def _open_session(link: Address, admin: str, superexec_secret: bytes) -> _Session:
    """Start a Flower run, take its task, and send heartbeats for it.

    Raises:
        NetworkError: The link does not answer, or not as expected.
    """
    try:
        _start_run(link, admin)
        token = _acquire_task(link, admin, superexec_secret)
        client = RuntimeHttpClient.from_server_address(
            link.host_port, link.is_plain, None, [_AdminHeader(admin), RuntimeTokenHttpInterceptor(token=token)]
        )
        task = client.PullTaskInput(PullTaskInputRequest())
    except (httpx.HTTPError, ValueError) as error:
        raise NetworkError(f"{link.url()}: Flower's link does not let the rounds begin: {error}") from None
    # HttpGrid would make its client lazily, without our header, and with retries that end in SIGINT on a 401.
    grid = HttpGrid(link.host_port, insecure=link.is_plain, token=token)
    grid._client = client
    grid.set_run(run_from_proto(task.run))
    is_lost = threading.Event()
    pulse = Pulse(lambda: _beat(client, is_lost), period_s=_TASK_HEARTBEAT_S)
    pulse.start()
    return _Session(grid, client, task.run.run_id, pulse, is_lost)


def _start_run(link: Address, admin: str) -> None:
    """Stop the Flower runs of earlier processes, so that no worker does a unit that nobody waits for, and start one."""
    fab, _ = build_fab_from_files(_STUB_APP)
    with ControlHttpClient.from_server_address(link.host_port, link.is_plain, None, [_AdminHeader(admin)]) as control:
        for run in control.ListRuns(ListRunsRequest(limit=_RUNS_TO_END)).run_dict.values():
            if run.status.status != Status.FINISHED:
                control.StopRun(StopRunRequest(run_id=run.run_id))
        control.StartRun(StartRunRequest(fab=Fab(hash_str=hashlib.sha256(fab).hexdigest(), content=fab)))


def _acquire_task(link: Address, admin: str, superexec_secret: bytes) -> str:
    signer = SuperExecAuthHttpInterceptor(
        master_secret=superexec_secret, protected_methods=frozenset({"/flwr.proto.Runtime/AcquireTask"})
    )
    headers = [_AdminHeader(admin), signer]
    with RuntimeHttpClient.from_server_address(link.host_port, link.is_plain, None, headers) as client:
        token = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])).token
    if not token:
        raise ProtocolError(f"{link.url()}: Flower has no task for the rounds although a run was started")
    return token


def _beat(client: RuntimeHttpClient, is_lost: threading.Event) -> bool:
    try:
        if not client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success:
            is_lost.set()
    except httpx.HTTPStatusError as error:
        if error.response.status_code in (401, 403):
            is_lost.set()
    except (httpx.HTTPError, ValueError):
        return False
    return True

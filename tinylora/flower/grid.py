"""The coordinator's wires to its workers: over any Flower grid, and over our own link.

`Grid.send_and_receive` is not used: it pulls replies inside its loop and blocked for minutes past its timeout when one
upload stalled. Here one question asks for all replies that have begun to arrive, and each is fetched apart from that.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx
from flwr.app import DEFAULT_TTL, Message, Metadata, RecordDict
from flwr.serverapp import Grid

from tinylora.errors import NetworkError, ProtocolError
from tinylora.federation.ports import WorkerInfo
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
    PullObjectRequest,
    PullObjectResponse,
    make_message,
    make_pull_object_fn_protobuf,
)
from tinylora.flower.enrolment import Address
from tinylora.flower.identity import worker_of
from tinylora.flower.link import ADMIN_HEADER
from tinylora.flower.messages import MESSAGE_TYPE, read_update
from tinylora.flower.objects import Spooled, Spooling, spool
from tinylora.flower.pulse import Pulse
from tinylora.flower.transport import Arrival, SessionLost, Station

T = TypeVar("T")

_TASK_HEARTBEAT_S = 15.0  # Flower gives up a task after 60 s of silence
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
        return [Arrival(reply.metadata.reply_to_message_id, lambda reply=reply: _all_here(reply)) for reply in replies]

    def close(self) -> None:
        """Nothing to do: the grid belongs to its ServerApp."""


def _all_here(reply: Message) -> Spooling:
    """A reply that the grid has fetched already."""
    if reply.has_error():
        return Spooled(error=reply.error)
    document, payload = read_update(reply.content)
    return Spooled(document=document, payload=payload)
    yield


def name_of_node(flower_node_id: int) -> str:
    """What a worker is called that has no key of ours."""
    return f"flower-{flower_node_id}"


# --- our link -----------------------------------------------------------------------------------------------------


class HttpWire:
    """A wire to our own link, as the ServerApp process of a Flower run with an empty app.

    Flower's run is a detail of transport. It outlives a link that is started again. Should it end (a laptop slept for
    more than a minute), another one is begun, and `SessionLost` tells that messages of the old one are lost.

    Args:
        host_port: Where the link is.
        admin: What opens it.
        superexec_secret: What gives us Flower's task.
        limit_bytes: Largest payload to take.
        folder: Where payloads that arrive are written.
    """

    def __init__(self, host_port: str, *, admin: str, superexec_secret: bytes, limit_bytes: int, folder: Path) -> None:
        self._open = lambda: _open_session(Address(host_port, is_plain=True), admin, superexec_secret)
        self._limit_bytes, self._folder = limit_bytes, folder
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
        return self._on_session(lambda session: session.arrivals(message_ids, self._limit_bytes, self._folder))

    def close(self) -> None:
        """End the Flower run."""
        self._session.close()

    def _on_session(self, ask: "Callable[[_Session], T]") -> T:
        session = self._session
        try:
            with session.in_use():
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


@dataclass(eq=False)
class _Session:
    """One Flower run, and our place in it as its ServerApp.

    Several threads ask through it, and any of them may find it lost. It is hung up when the last one has its answer:
    a `HttpGrid` that is asked afterwards would connect anew, without our header.
    """

    grid: HttpGrid
    client: RuntimeHttpClient
    run_id: int
    is_lost: threading.Event = field(default_factory=threading.Event)
    pulse: Pulse = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _n_users: int = 0
    _is_closed: bool = False

    def __post_init__(self) -> None:
        self.pulse = Pulse(self._beat, period_s=_TASK_HEARTBEAT_S)
        self.pulse.start()

    def _beat(self) -> bool:
        try:
            with self.in_use():
                if not self.client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success:
                    self.is_lost.set()
        except httpx.HTTPStatusError as error:
            if error.response.status_code in (401, 403):
                self.is_lost.set()
        except SessionLost:
            pass
        except (httpx.HTTPError, ValueError):
            return False
        return True

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """While it is open, this session is not hung up.

        Raises:
            SessionLost: It is over.
        """
        with self._lock:
            if self._is_closed or self.is_lost.is_set():
                raise SessionLost
            self._n_users += 1
        try:
            yield
        finally:
            self._release()

    def _release(self) -> None:
        with self._lock:
            self._n_users -= 1
            is_over = self._is_closed and not self._n_users
        if is_over:
            self.grid.close()

    def arrivals(self, message_ids: Collection[str], limit_bytes: int, folder: Path) -> list[Arrival]:
        """Ask for the heads of replies, with the trees of their objects."""
        response = self.client.PullMessages(PullAppMessagesRequest(message_ids=list(message_ids)))
        heads = zip(response.messages_list, response.message_object_trees, strict=True)
        return [
            Arrival(
                head.metadata.reply_to_message_id,
                lambda reply_id=head.metadata.message_id, tree=tree: self._fetch(reply_id, tree, limit_bytes, folder),
            )
            for head, tree in heads
        ]

    def _fetch(self, reply_id: str, tree: ObjectTree, limit_bytes: int, folder: Path) -> Spooling:
        pull = make_pull_object_fn_protobuf(self._pull_object, self.grid.node, self.run_id)
        found = yield from spool(reply_id, tree, pull, limit_bytes=limit_bytes, folder=folder)
        # It is here; the link forgets it with the run at the latest.
        with suppress(httpx.HTTPError, ValueError, SessionLost), self.in_use():
            self.client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(node=self.grid.node, run_id=self.run_id, message_object_id=reply_id)
            )
        return found

    def _pull_object(self, request: PullObjectRequest) -> PullObjectResponse:
        with self.in_use():
            return self.client.PullObject(request)

    def close(self) -> None:
        """Tell the link that this run is over, should it not know; hang up when nobody asks any more."""
        self.pulse.stop()
        with self._lock:
            if self._is_closed:
                return
            self._is_closed, self._n_users = True, self._n_users + 1
        with suppress(httpx.HTTPError, ValueError):  # the link may be gone; its next start ends old runs
            self.client.PushTaskOutput(PushTaskOutputRequest(sub_status="completed", details=""))
        self._release()


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
    return _Session(grid, client, task.run.run_id)


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

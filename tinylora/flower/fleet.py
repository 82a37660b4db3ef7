"""The worker's end: ask for a unit, fetch it, work, answer; again and again until the run is over.

Flower's own loop (`http_request_response`) is not used: when it cannot activate a node it ends the whole process a few
seconds later, a 401 makes it send SIGINT to itself, and it swallows errors of the code inside its context. This one
talks to the same Fleet API through flwr's client, never fetches an app, and runs only the installed package. No torch.
"""

import itertools
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeAlias

import httpx
from flwr.app import Message

from tinylora.errors import NetworkError, ProtocolError, RefusedError
from tinylora.flower.compat.fleet import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    ActivateNodeRequest,
    DeactivateNodeRequest,
    FleetHttpClient,
    PullMessagesRequest,
    PushMessagesRequest,
    SendNodeHeartbeatRequest,
    now,
)
from tinylora.flower.compat.wire import (
    ApiErrorCode,
    FlowerError,
    Node,
    ObjectPushError,
    ObjectTree,
    PushObjectRequest,
    PushObjectResponse,
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
    message_from_proto,
    message_to_proto,
    push_objects,
    remove_content_from_message,
)
from tinylora.flower.enrolment import Address, Phase
from tinylora.flower.identity import Identity
from tinylora.flower.messages import Handle, answer, failure
from tinylora.flower.objects import put_together, take_apart
from tinylora.flower.pulse import Pulse

Ending: TypeAlias = Literal["finished", "stopped"]
_SEND_ATTEMPTS = 5
_TRY_AGAIN = frozenset({500, 502, 503, 504})


@dataclass(frozen=True)
class Pace:
    """How often a worker asks, and how long it waits for an answer. All in seconds."""

    busy_poll_s: float = 0.2
    """Between two questions right after a unit; then half as often each time, down to `idle_poll_s`."""
    idle_poll_s: float = 1.0
    phase_poll_s: float = 2.0
    """Between two looks at whether the run is over, while there is no unit."""
    heartbeat_s: float = 30.0
    """Flower's heartbeat interval; a worker that was killed counts as online for twice as long."""
    activation_s: float = 75.0
    """How long an earlier process of this identity may go on being counted as online."""
    patience_s: float = 600.0
    """How long the coordinator may be unreachable."""


class _UnitIsOver(Exception):
    """The Flower run that this message belongs to has ended; the coordinator has started another one."""


class _NotActivated(Exception):
    """The coordinator still counts an earlier process of this identity as online."""


class _Stopped(Exception):
    """`stop` was set while we waited for the coordinator."""


class _SignedRequests:
    """Interceptor: signs each request with the worker's key, by the coordinator's clock."""

    def __init__(self, identity: Identity, clock_offset_s: float) -> None:
        self._identity, self._offset = identity, timedelta(seconds=clock_offset_s)
        self._public = b64encode(identity.public_pem).decode("ascii")

    def intercept(self, context: Any, call_next: Callable[[Any], httpx.Response]) -> httpx.Response:
        """Add the three headers that the link's node authentication reads."""
        timestamp = (now() + self._offset).isoformat()
        signature = b64encode(self._identity.sign(timestamp.encode("ascii"))).decode("ascii")
        headers = context.request.headers
        headers[FLEET_HTTP_PUBLIC_KEY_HEADER] = self._public
        headers[TIMESTAMP_HEADER] = timestamp
        headers[FLEET_HTTP_SIGNATURE_HEADER] = signature
        return call_next(context)


def to_stderr(line: str) -> None:
    """Log one line."""
    print(line, file=sys.stderr, flush=True)


class FleetClient:
    """One worker of one run, as Flower sees it.

    Args:
        address: The coordinator's.
        identity: The worker's key; it has joined with it.
        handle: Does a unit. It runs in the caller's thread; heartbeats go on beside it.
        phase: Asks what the run is doing; a `NetworkError` means unknown.
        limit_bytes: Largest payload to accept.
        clock_offset_s: How far the coordinator's clock is ahead.
        pace: Times.
        stop: Set it to make `work` return after the unit under way.
        log: Takes one line for people.
    """

    def __init__(
        self,
        address: Address,
        identity: Identity,
        handle: Handle,
        *,
        phase: Callable[[], Phase],
        limit_bytes: int,
        clock_offset_s: float = 0.0,
        pace: Pace | None = None,
        stop: threading.Event | None = None,
        log: Callable[[str], None] = to_stderr,
    ) -> None:
        self._address, self._identity, self._handle = address, identity, handle
        self._phase, self._limit_bytes, self._clock_offset_s = phase, limit_bytes, clock_offset_s
        self._pace, self._stop, self._log = pace or Pace(), stop or threading.Event(), log

    def work(self) -> Ending:
        """Connect and work until the run is over or `stop` is set. Whatever ends it, the coordinator is told at once.

        Raises:
            NetworkError: The coordinator was unreachable for longer than `pace.patience_s`.
            RefusedError: It does not know this worker, or another process works under this identity.
        """
        with self._client() as client:
            self._api = client
            try:
                node = Node(node_id=self._activate())
            except _Stopped:
                return "stopped"
            try:
                with Pulse(lambda: self._beat(node), period_s=self._pace.heartbeat_s * 0.6):
                    return self._loop(node)
            except _Stopped:
                return "stopped"
            finally:
                self._leave(node)

    def _client(self) -> FleetHttpClient:
        signer = _SignedRequests(self._identity, self._clock_offset_s)
        return FleetHttpClient.from_server_address(self._address.host_port, self._address.is_plain, None, [signer])

    def _activate(self) -> int:
        request = ActivateNodeRequest(public_key=self._identity.public_pem, heartbeat_interval=self._pace.heartbeat_s)
        end = time.monotonic() + self._pace.activation_s
        for attempt in itertools.count():
            try:
                return self._call(self._api.ActivateNode, request).node_id
            except _NotActivated:
                if attempt == 0:
                    self._log(
                        f"an earlier process still counts as online; waiting up to {self._pace.activation_s:.0f} s"
                    )
            if self._stop.wait(1.0):
                raise _Stopped
            if time.monotonic() >= end:
                break
        raise RefusedError(
            f"{self._address.url()}: this worker identity ({self._identity.worker}) is already running; "
            "stop the other process, or join with another --home"
        )

    def _beat(self, node: Node) -> bool:
        request = SendNodeHeartbeatRequest(node=node, heartbeat_interval=self._pace.heartbeat_s)
        try:
            return self._api.SendNodeHeartbeat(request).success
        except (httpx.HTTPError, ValueError):
            return False

    def _leave(self, node: Node) -> None:
        """Say good-bye, over a fresh connection: the old one may have been interrupted in the middle of a request."""
        try:
            with self._client() as client:
                client.DeactivateNode(DeactivateNodeRequest(node_id=node.node_id))
        except (httpx.HTTPError, ValueError):
            pass  # the coordinator is gone, or counts us as offline already

    def _loop(self, node: Node) -> Ending:
        wait_s, look_at = self._pace.busy_poll_s, 0.0
        while not self._stop.is_set():
            if self._step(node):
                wait_s = self._pace.busy_poll_s
                continue
            if time.monotonic() >= look_at:
                if self._is_finished():
                    return "finished"
                look_at = time.monotonic() + self._pace.phase_poll_s
            self._stop.wait(wait_s)
            wait_s = min(wait_s * 2, self._pace.idle_poll_s)
        return "stopped"

    def _is_finished(self) -> bool:
        try:
            return self._phase() == "finished"
        except NetworkError:
            return False  # the next question for a unit decides how long to be patient

    def _step(self, node: Node) -> bool:
        """Ask for a unit and do it; returns whether there was one."""
        try:
            response = self._call(self._api.PullMessages, PullMessagesRequest(node=node))
            if not response.messages_list:
                return False
            header, tree = message_from_proto(response.messages_list[0]), response.message_object_trees[0]
            started = time.monotonic()
            reply = self._answer(node, header, tree)
            self._send(node, reply, time.monotonic() - started)
        except _UnitIsOver:
            self._log("a unit was dropped: the coordinator has been restarted since it was sent")
        except (ObjectPushError, ProtocolError) as error:
            self._log(f"an update was lost: {error}")
        return True

    def _answer(self, node: Node, header: Message, tree: ObjectTree) -> Message:
        run_id, message_id = header.metadata.run_id, header.metadata.message_id
        pull = make_pull_object_fn_protobuf(lambda request: self._call(self._api.PullObject, request), node, run_id)
        confirm = make_confirm_message_received_fn_protobuf(
            lambda request: self._call(self._api.ConfirmMessageReceived, request), node, run_id
        )
        try:
            message = put_together(message_id, tree, pull, limit_bytes=self._limit_bytes)
        except ProtocolError as error:
            return failure(header, str(error))
        confirm(message_id)
        reply = answer(message, self._handle)
        if reply.has_error():
            self._log(f"a unit failed: {reply.error.reason}")
        return reply

    def _send(self, node: Node, reply: Message, seconds: float) -> None:
        """Upload a reply: first its head, which names its parts, then those parts that the link does not have.

        When an answer of the link gets lost, or a push session expires on a slow uplink, the head is sent again. If it
        has been handed on meanwhile, the link knows it no more and asks for nothing: then all parts are offered.
        """
        objects, tree = take_apart(reply)
        head = message_to_proto(remove_content_from_message(reply) if reply.has_content() else reply)
        request = PushMessagesRequest(
            node=node, messages_list=[head], message_object_trees=[tree], clientapp_runtime_list=[seconds]
        )
        run_id = reply.metadata.run_id
        for attempt in range(1, _SEND_ATTEMPTS + 1):
            session = self._call(self._api.PushMessages, request)
            wanted = set(session.objects_to_push)
            if not wanted:
                push_objects(objects, lambda part_id, content: self._offer(node, run_id, part_id, content))
                return
            push = make_push_object_fn_protobuf(self._push_part, node, run_id, session.session_id)
            try:
                push_objects(objects, push, object_ids_to_push=wanted, keep_objects=True)
                return
            except ObjectPushError:
                if attempt == _SEND_ATTEMPTS:
                    raise

    def _push_part(self, part: PushObjectRequest) -> PushObjectResponse:
        return self._call(self._api.PushObject, part)

    def _offer(self, node: Node, run_id: int, part_id: str, content: bytes) -> None:
        """Push a part without naming a session; the link keeps it if some session waits for it."""
        self._push_part(PushObjectRequest(node=node, run_id=run_id, object_id=part_id, object_content=content))

    def _call(self, rpc: Callable[[Any], Any], request: Any) -> Any:
        """Ask until there is an answer.

        Raises:
            NetworkError: None came for `pace.patience_s`, or one that makes no sense.
            RefusedError: The link does not accept our signature.
        """
        started = time.monotonic()
        for delay_s in _backoff():
            try:
                return rpc(request)
            except httpx.TransportError as error:
                reason = str(error) or type(error).__name__
            except httpx.HTTPStatusError as error:
                reason = self._judge(error.response)
            if self._stop.wait(delay_s):
                raise _Stopped
            if time.monotonic() - started > self._pace.patience_s:
                raise NetworkError(f"{self._address.url()}: no coordinator answers ({reason}); join again later")
        raise AssertionError("unreachable: the backoff never ends")

    def _judge(self, response: httpx.Response) -> str:
        """What an HTTP error means; returns the reason if asking again may help."""
        status, error = response.status_code, FlowerError.from_json(response.text)
        if status in _TRY_AGAIN:
            return f"HTTP {status}"
        if error is not None and error.code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
            raise _NotActivated
        if status == httpx.codes.FORBIDDEN:
            raise _UnitIsOver
        if status == httpx.codes.UNAUTHORIZED:
            raise RefusedError(
                f"{self._address.url()}: the coordinator does not accept this worker's signature; "
                "set this machine's clock, and join again"
            )
        if status == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
            raise ProtocolError(f"{self._address.url()}: the coordinator refuses a part of this size")
        raise NetworkError(f"{self._address.url()}: unexpected answer HTTP {status}; check the address")


def _backoff() -> Iterator[float]:
    delay_s = 0.2
    while True:
        yield delay_s
        delay_s = min(delay_s * 2, 5.0)

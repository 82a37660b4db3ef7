"""The worker's end: ask for a unit, fetch it, work, answer; again and again until the run is over.

Flower's own loop (`http_request_response`) is not used: when it cannot activate a node it ends the whole process a few
seconds later, a 401 makes it send SIGINT to itself, and it swallows errors of the code inside its context. This one
talks to the same Fleet API through flwr's client, never fetches an app, and runs only the installed package. No torch.

The coordinator may be started again at any moment, or a part of it. Requests are repeated until somebody answers; what
was made for the last unit is kept, and given again when that unit comes again; a coordinator that does not know us any
more is asked to let us in again.
"""

import itertools
import random
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeAlias

import httpx
from flwr.app import Message

from tinylora.errors import NetworkError, ProtocolError, RefusedError, TinyLoraError
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
from tinylora.flower.messages import WORKER_LACKS_PARTS, Handle, answer, failure
from tinylora.flower.objects import PartMissing, put_together, take_apart
from tinylora.flower.pulse import Pulse
from tinylora.protocol.documents import Update, WorkUnit

Ending: TypeAlias = Literal["finished", "stopped"]
Rejoin: TypeAlias = Callable[[], float]
"""Joins the run once more; returns how far the coordinator's clock is ahead, in seconds."""
_SEND_ATTEMPTS = 5
_RENEWALS = 3
_TRY_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_LONGEST_WAIT_S = 60.0
_PARTS_S = 10.0  # the coordinator uploads a unit's parts right after its head; who still waits then, waits in vain


@dataclass(frozen=True)
class Pace:
    """How often a worker asks, and how long it waits for an answer. All in seconds."""

    busy_poll_s: float = 0.2
    """Between two questions right after a unit; then half as often each time, down to `idle_poll_s`."""
    idle_poll_s: float = 2.0
    phase_poll_s: float = 10.0
    """Between two looks at whether the run is over, while there is no unit."""
    heartbeat_s: float = 30.0
    """Flower's heartbeat interval; a worker that was killed counts as online for twice as long."""
    activation_s: float = 75.0
    """How long an earlier process of this identity may go on being counted as online."""
    patience_s: float = 3600.0
    """How long the coordinator may be unreachable."""


class _UnitIsOver(Exception):
    """The Flower run that this message belongs to has ended; the coordinator has started another one."""


class _Finished(Exception):
    """The run is over, and the coordinator has gone."""


class _NotActivated(Exception):
    """The coordinator still counts an earlier process of this identity as online."""


class _Stopped(Exception):
    """`stop` was set while we waited for the coordinator."""


class _SignedRequests:
    """Interceptor: signs each request with the worker's key, by the coordinator's clock."""

    def __init__(self, identity: Identity, clock_offset_s: float) -> None:
        self._identity, self.offset = identity, timedelta(seconds=clock_offset_s)
        self._public = b64encode(identity.public_pem).decode("ascii")

    def intercept(self, context: Any, call_next: Callable[[Any], httpx.Response]) -> httpx.Response:
        """Add the three headers that the link's node authentication reads."""
        timestamp = (now() + self.offset).isoformat()
        signature = b64encode(self._identity.sign(timestamp.encode("ascii"))).decode("ascii")
        headers = context.request.headers
        headers[FLEET_HTTP_PUBLIC_KEY_HEADER] = self._public
        headers[TIMESTAMP_HEADER] = timestamp
        headers[FLEET_HTTP_SIGNATURE_HEADER] = signature
        return call_next(context)


def to_stderr(line: str) -> None:
    """Log one line."""
    print(line, file=sys.stderr, flush=True)


class Once:
    """Does no unit twice: asked again for the one it did last, it answers with what it made then."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._last: tuple[str, str] | None = None
        self._made: tuple[Update, bytes] | None = None

    def __call__(self, unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
        """What `handle` made of this unit."""
        if self._made is None or (unit.unit_id, unit.nonce) != self._last:
            self._made = None
            self._made, self._last = self._handle(unit, payload), (unit.unit_id, unit.nonce)
        return self._made


class FleetClient:
    """One worker of one run, as Flower sees it.

    Args:
        address: The coordinator's.
        identity: The worker's key; it has joined with it.
        handle: Does a unit. It runs in the caller's thread; heartbeats go on beside it.
        phase: Asks what the run is doing; a `NetworkError` means unknown.
        limit_bytes: Largest payload to accept.
        clock_offset_s: How far the coordinator's clock is ahead.
        root_certificates: PEM of the CA that the coordinator's certificate must come from; the system's without.
        rejoin: Joins once more when the coordinator does not know us; without it that is the end.
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
        root_certificates: bytes | None = None,
        rejoin: Rejoin | None = None,
        pace: Pace | None = None,
        stop: threading.Event | None = None,
        log: Callable[[str], None] = to_stderr,
    ) -> None:
        self._address, self._identity, self._handle = address, identity, Once(handle)
        self._phase, self._limit_bytes = phase, limit_bytes
        self._signer = _SignedRequests(identity, clock_offset_s)
        self._root_certificates, self._rejoin = root_certificates, rejoin
        self._pace, self._stop, self._log = pace or Pace(), stop or threading.Event(), log
        self._is_over, self._renewing, self._is_activated = threading.Event(), threading.Lock(), False

    def work(self) -> Ending:
        """Connect and work until the run is over or `stop` is set. Whatever ends it, the coordinator is told at once.

        Raises:
            NetworkError: The coordinator was unreachable for longer than `pace.patience_s`.
            RefusedError: It does not know this worker, or another process works under this identity.
        """
        with self._client() as client:
            self._api = client
            try:
                self._node, self._is_activated = Node(node_id=self._activate()), True
            except _Stopped:
                return "stopped"
            try:
                with Pulse(self._beat, period_s=self._pace.heartbeat_s * 0.6):
                    return self._loop()
            except _Stopped:
                return "stopped"
            except _Finished:
                return "finished"
            finally:
                self._leave()

    def _client(self) -> FleetHttpClient:
        certificates = None if self._address.is_plain else self._root_certificates
        return FleetHttpClient.from_server_address(
            self._address.host_port, self._address.is_plain, certificates, [self._signer]
        )

    def _activation(self) -> ActivateNodeRequest:
        return ActivateNodeRequest(public_key=self._identity.public_pem, heartbeat_interval=self._pace.heartbeat_s)

    def _activate(self) -> int:
        request = self._activation()
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

    def _beat(self) -> bool:
        """Tell that we are here, and listen for the end of the run: a busy worker hears of it in no other way."""
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=self._pace.heartbeat_s)
        try:
            is_known = self._api.SendNodeHeartbeat(request).success
        except httpx.HTTPStatusError as error:
            is_known = error.response.status_code not in (401, 403)
            if is_known:
                return False
        except (httpx.HTTPError, ValueError):
            return False
        if not is_known:
            return self._renew()
        self._is_finished()
        return True

    def _renew(self) -> bool:
        """Join and be counted as online once more; returns whether the coordinator agreed."""
        if self._rejoin is None:
            return False
        with self._renewing:
            try:
                self._signer.offset = timedelta(seconds=self._rejoin())
                if self._is_activated:
                    self._node = Node(node_id=self._api.ActivateNode(self._activation()).node_id)
            except httpx.HTTPStatusError as error:
                return _flower_code(error.response) == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED  # online all along
            except (httpx.HTTPError, ValueError, TinyLoraError):
                return False
        return True

    def _leave(self) -> None:
        """Say good-bye, over a fresh connection: the old one may have been interrupted in the middle of a request."""
        try:
            with self._client() as client:
                client.DeactivateNode(DeactivateNodeRequest(node_id=self._node.node_id))
        except (httpx.HTTPError, ValueError):
            pass  # the coordinator is gone, or counts us as offline already

    def _loop(self) -> Ending:
        wait_s, look_at = self._pace.busy_poll_s, 0.0
        while not self._stop.is_set():
            if self._step(self._node):
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
        with suppress(NetworkError):  # the next question for a unit decides how long to be patient
            if self._phase() == "finished":
                self._is_over.set()
        return self._is_over.is_set()

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
            self._log("the coordinator was started again; it will send for this unit once more")
        except (ObjectPushError, ProtocolError) as error:
            self._log(f"an update did not get through: {error}")
        return True

    def _answer(self, node: Node, header: Message, tree: ObjectTree) -> Message:
        run_id, message_id = header.metadata.run_id, header.metadata.message_id
        pull = make_pull_object_fn_protobuf(lambda request: self._call(self._api.PullObject, request), node, run_id)
        confirm = make_confirm_message_received_fn_protobuf(
            lambda request: self._call(self._api.ConfirmMessageReceived, request), node, run_id
        )
        try:
            message = put_together(message_id, tree, pull, limit_bytes=self._limit_bytes, patience_s=_PARTS_S)
        except PartMissing as error:
            return failure(header, str(error), code=WORKER_LACKS_PARTS)
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
            RefusedError: The link does not accept our signature, and does not let us in again.
        """
        started, n_renewals = time.monotonic(), 0
        for delay_s in backoff():
            try:
                return rpc(request)
            except httpx.TransportError as error:
                reason = str(error) or type(error).__name__
            except httpx.HTTPStatusError as error:
                reason = self._judge(error.response)
                if error.response.status_code == httpx.codes.UNAUTHORIZED:
                    n_renewals = self._be_known(n_renewals)
            if self._is_over.is_set():
                raise _Finished
            if self._stop.wait(delay_s):
                raise _Stopped
            if time.monotonic() - started > self._pace.patience_s:
                raise NetworkError(f"{self._address.url()}: no coordinator answers ({reason}); join again later")
        raise AssertionError("unreachable: the backoff never ends")

    def _be_known(self, n_renewals: int) -> int:
        """Join once more, a few times at most; returns how many times it was."""
        if self._rejoin is None or n_renewals >= _RENEWALS:
            raise RefusedError(
                f"{self._address.url()}: the coordinator does not accept this worker's signature; "
                "set this machine's clock, and join again"
            )
        self._renew()
        return n_renewals + 1

    def _judge(self, response: httpx.Response) -> str:
        """What an HTTP error means; returns the reason if asking again may help."""
        status = response.status_code
        if status in _TRY_AGAIN or status == httpx.codes.UNAUTHORIZED:
            return f"HTTP {status}"
        code = _flower_code(response)
        if code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
            raise _NotActivated
        if code == ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED:
            raise _UnitIsOver
        if status == httpx.codes.FORBIDDEN:
            raise RefusedError(f"{self._address.url()}: the coordinator does not let this worker take part any more")
        if status == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
            raise ProtocolError(f"{self._address.url()}: the coordinator refuses a part of this size")
        raise NetworkError(f"{self._address.url()}: unexpected answer HTTP {status}; check the address")


def _flower_code(response: httpx.Response) -> int | None:
    """Flower's own code of an error, if it is one."""
    error = FlowerError.from_json(response.text)
    return None if error is None else error.code


def backoff(jitter: Callable[[], float] = random.random) -> Iterator[float]:
    """Seconds to wait before each further try: 0.2, growing by a third to a minute, each between half and all of it.

    So nobody waits longer than a third of the time that the coordinator was away already; the jitter keeps a fleet from
    coming back all at once.
    """
    delay_s = 0.2
    while True:
        yield delay_s * (0.5 + 0.5 * jitter())
        delay_s = min(delay_s * 4 / 3, _LONGEST_WAIT_S)

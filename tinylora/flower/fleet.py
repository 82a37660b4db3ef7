"""The worker's end: ask for a unit, fetch it, work, answer; again and again until the run is over.

Flower's own loop (`http_request_response`) is not used: when it cannot activate a node it ends the whole process a few
seconds later, a 401 makes it send SIGINT to itself, and it swallows errors of the code inside its context. This one
talks to the same Fleet API through flwr's client, never fetches an app, and runs only the installed package. No torch.

`asking` repeats requests · `deliveries` is one unit's way · `outbox` keeps units and updates over crashes ·
`node_memory` makes a worker that was killed itself again at once · `meter` counts bytes.
"""

import itertools
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeAlias

import httpx

from tinylora.errors import NetworkError, RefusedError, TinyLoraError
from tinylora.flower.asking import Asking, Finished, NotActivated, SignedRequests, Stopped, UnitIsOver, flower_code
from tinylora.flower.compat.fleet import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    FleetHttpClient,
    PullMessagesRequest,
    SendNodeHeartbeatRequest,
)
from tinylora.flower.compat.wire import ApiErrorCode, Node
from tinylora.flower.deliveries import ClientPhase, Deliveries
from tinylora.flower.enrolment import Address, Phase
from tinylora.flower.identity import Identity
from tinylora.flower.messages import FolderHandle
from tinylora.flower.meter import Meter, count, unmetered
from tinylora.flower.node_memory import NodeMemory, NoMemory
from tinylora.flower.outbox import Outbox
from tinylora.flower.pulse import Pulse

_SLOWER = 1.3  # so that nobody finds out about his next unit more than a third later than it was there
_FORGOTTEN_AFTER = 2.5  # heartbeats: Flower gives a node up after two
Ending: TypeAlias = Literal["finished", "stopped"]
Rejoin: TypeAlias = Callable[[], float]
"""Joins the run once more; returns how far the coordinator's clock is ahead, in seconds."""


@dataclass(frozen=True)
class Pace:
    """How often a worker asks, and how long it waits for an answer. All in seconds."""

    busy_poll_s: float = 0.2
    """Between two questions right after a unit; then a third longer each time, up to `idle_poll_s`."""
    idle_poll_s: float = 2.0
    phase_poll_s: float = 10.0
    """Between two looks at whether the run is over, while there is no unit."""
    heartbeat_s: float = 30.0
    """Flower's heartbeat interval; a worker that was killed counts as online for twice as long."""
    activation_s: float = 75.0
    """How long an earlier process of this identity may go on being counted as online."""
    patience_s: float = 3600.0
    """How long the coordinator may be unreachable."""


def to_stderr(line: str) -> None:
    """Log one line."""
    print(line, file=sys.stderr, flush=True)


class FleetClient:
    """One worker of one run, as Flower sees it.

    Args:
        address: The coordinator's.
        identity: The worker's key; it has joined with it.
        handle: Does a unit. It runs in the caller's thread; heartbeats go on beside it.
        outbox: Units under way and updates without a receipt; what an earlier process left in it is done first.
        phase: Asks what the run is doing; a `NetworkError` means unknown.
        limit_bytes: Largest payload to accept.
        clock_offset_s: How far the coordinator's clock is ahead.
        root_certificates: PEM of the CA that the coordinator's certificate must come from; the system's without.
        rejoin: Joins once more when the coordinator does not know us; without it that is the end.
        pace: Times.
        stop: Set it to make `work` return after the unit under way.
        ready: Whether there may be a next unit. While it says no, and no unit is under way, the worker is not on
            Flower's roster: nobody waits for it.
        node: Remembers which Flower node this worker is, for a quick return after it was killed.
        meter: Told of each byte that is sent and received.
        log: Takes one line for people.
        on_phase: Told when the client begins to do something else.
    """

    def __init__(
        self,
        address: Address,
        identity: Identity,
        handle: FolderHandle,
        outbox: Outbox,
        *,
        phase: Callable[[], Phase],
        limit_bytes: int,
        clock_offset_s: float = 0.0,
        root_certificates: bytes | None = None,
        rejoin: Rejoin | None = None,
        pace: Pace | None = None,
        stop: threading.Event | None = None,
        ready: Callable[[], bool] = lambda: True,
        node: NodeMemory | None = None,
        meter: Meter = unmetered,
        log: Callable[[str], None] = to_stderr,
        on_phase: Callable[[ClientPhase], None] = lambda phase: None,
    ) -> None:
        self._address, self._identity, self._handle, self._outbox = address, identity, handle, outbox
        self._phase, self._limit_bytes, self._ready = phase, limit_bytes, ready
        self._signer = SignedRequests(identity, clock_offset_s)
        self._root_certificates, self._rejoin, self._meter = root_certificates, rejoin, meter
        self._pace, self._stop, self._log = pace or Pace(), stop or threading.Event(), log
        self._memory, self._on_phase, self._said = node or NoMemory(), on_phase, ""
        self._is_over, self._renewing, self._is_activated = threading.Event(), threading.Lock(), False
        self._look_at = 0.0
        self._doing: ClientPhase = "connecting"

    def work(self) -> Ending:
        """Connect and work until the run is over or `stop` is set. Whatever ends it, the coordinator is told at once.

        Raises:
            NetworkError: The coordinator was unreachable for longer than `pace.patience_s`.
            RefusedError: It does not know this worker, or another process works under this identity.
            StorageError: The outbox cannot be read.
        """
        with self._client() as client:
            self._api = client
            self._ask = Asking(
                self._address.url(),
                patience_s=self._pace.patience_s,
                stop=self._stop,
                is_over=self._is_over,
                renew=None if self._rejoin is None else self._be_let_in_again,
                told=self._tell_reach,
            )
            try:
                return self._come_and_go()
            except Stopped:
                return "stopped"
            except Finished:
                return "finished"

    def _come_and_go(self) -> Ending:
        """On the roster while there is something to do, off it while we are not ready."""
        is_wanted = bool(self._outbox.unsent())
        while True:
            while not (is_wanted or self._ready() or self._outbox.under_way()):
                self._tell("resting")
                if self._stop.is_set():
                    return "stopped"
                if self._is_due() and self._is_finished():
                    return "finished"
                self._stop.wait(self._pace.idle_poll_s)
            is_wanted = False
            ending = self._be_on_roster()
            if ending is not None:
                return ending

    def _be_on_roster(self) -> Ending | None:
        """From activation to good-bye; None when we are not ready any more."""
        self._tell("connecting")
        self._node, self._is_activated = Node(node_id=self._activate()), True
        self._memory.save(self._node.node_id)
        try:
            with Pulse(self._beat, period_s=self._pace.heartbeat_s * 0.6):
                return self._loop()
        finally:
            self._is_activated = False
            self._leave()

    def _client(self) -> FleetHttpClient:
        certificates = None if self._address.is_plain else self._root_certificates
        client = FleetHttpClient.from_server_address(
            self._address.host_port, self._address.is_plain, certificates, [self._signer]
        )
        count(client._client, self._meter)
        return client

    def _activation(self) -> ActivateNodeRequest:
        return ActivateNodeRequest(public_key=self._identity.public_pem, heartbeat_interval=self._pace.heartbeat_s)

    def _activate(self) -> int:
        request = self._activation()
        end = time.monotonic() + self._pace.activation_s
        for attempt in itertools.count():
            try:
                return self._ask(self._api.ActivateNode, request).node_id
            except NotActivated:
                if attempt == 0:
                    node_id = self._take_over()
                    if node_id is not None:
                        return node_id
                    self._log(
                        f"an earlier process still counts as online; waiting up to {self._pace.activation_s:.0f} s"
                    )
            if self._stop.wait(1.0):
                raise Stopped
            if time.monotonic() >= end:
                break
        raise RefusedError(
            f"{self._address.url()}: this worker identity ({self._identity.worker}) is already running; "
            "stop the other process, or join with another --home"
        )

    def _take_over(self) -> int | None:
        """The node of the process before us, where it was this home's and is counted as online still."""
        node_id = self._memory.load(within_s=_FORGOTTEN_AFTER * self._pace.heartbeat_s)
        if node_id is None:
            return None
        beat = SendNodeHeartbeatRequest(node=Node(node_id=node_id), heartbeat_interval=self._pace.heartbeat_s)
        with suppress(NetworkError, RefusedError, UnitIsOver):
            if self._ask(self._api.SendNodeHeartbeat, beat).success:
                return node_id
        return None

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
            self._tell_reach(False)
            return False
        self._tell_reach(True)
        if not is_known:
            return self._renew()
        self._memory.touch()
        self._is_finished()
        return True

    def _renew(self) -> bool:
        """Join and be counted as online once more; returns whether the coordinator agreed."""
        if self._rejoin is None:
            return False
        try:
            self._be_let_in_again()
        except (httpx.HTTPError, ValueError, TinyLoraError):
            return False
        return True

    def _be_let_in_again(self) -> int | None:
        """Join and be counted as online once more; returns the node that we are now, if we were counted before.

        The node is changed in place: whoever is in the middle of a unit goes on as the new one.

        Raises:
            httpx.HTTPError: The link does not answer, or says no.
            TinyLoraError: The coordinator does not answer, or says no.
        """
        assert self._rejoin is not None
        with self._renewing:
            self._signer.offset = timedelta(seconds=self._rejoin())
            if not self._is_activated:
                return None
            try:
                self._node.node_id = self._api.ActivateNode(self._activation()).node_id
            except httpx.HTTPStatusError as error:
                if flower_code(error.response) != ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:  # online all along
                    raise
            else:
                self._memory.save(self._node.node_id)
            return self._node.node_id

    def _leave(self) -> None:
        """Say good-bye, over a fresh connection: the old one may have been interrupted in the middle of a request."""
        try:
            with self._client() as client:
                client.DeactivateNode(DeactivateNodeRequest(node_id=self._node.node_id))
        except (httpx.HTTPError, ValueError):
            return  # the coordinator is gone, or counts us as offline already
        self._memory.forget()

    def _loop(self) -> Ending | None:
        deliveries = Deliveries(
            self._api,
            self._ask,
            self._outbox,
            self._handle,
            limit_bytes=self._limit_bytes,
            stop=self._stop,
            log=self._log,
            on_phase=self._tell,
        )
        deliveries.send_unsent(self._node)
        deliveries.go_on(self._node)
        wait_s = self._pace.busy_poll_s
        while not self._stop.is_set():
            if not self._ready():
                return None
            self._tell("waiting")
            if self._step(deliveries):
                wait_s = self._pace.busy_poll_s
                continue
            if self._is_due():
                if self._is_finished():
                    return "finished"
                deliveries.send_unsent(self._node)
            self._stop.wait(wait_s)
            wait_s = min(wait_s * _SLOWER, self._pace.idle_poll_s)
        return "stopped"

    def _step(self, deliveries: Deliveries) -> bool:
        """Ask for a unit and do it; returns whether there was one."""
        with suppress(UnitIsOver):
            response = self._ask(self._api.PullMessages, PullMessagesRequest(node=self._node))
            if response.messages_list:
                deliveries.take(self._node, response.messages_list[0], response.message_object_trees[0])
                return True
        return False

    def _is_due(self) -> bool:
        """Whether it is time for another look at the run, by `pace.phase_poll_s`."""
        now = time.monotonic()
        if now < self._look_at:
            return False
        self._look_at = now + self._pace.phase_poll_s
        return True

    def _is_finished(self) -> bool:
        with suppress(NetworkError):  # the next question for a unit decides how long to be patient
            if self._phase() == "finished":
                self._is_over.set()
        return self._is_over.is_set()

    def _tell(self, phase: ClientPhase) -> None:
        self._doing = phase
        if phase != self._said:
            self._said = phase
            self._on_phase(phase)

    def _tell_reach(self, is_reachable: bool) -> None:
        """Say so when nobody answers, and when somebody does again."""
        doing = self._doing
        if not is_reachable and self._said != "unreachable":
            self._said = "unreachable"
            self._on_phase("unreachable")
        elif is_reachable and self._said == "unreachable":
            self._tell(doing)

"""The coordinator's rounds end: units out, replies in, over a wire that may break.

A unit is kept until its reply is here. Whatever happens on the way (the link is started again, Flower ends its run, the
worker is away for a moment, half a message got through) it is sent again, and a worker that has done it already answers
with what it made then. So the loop hears of a unit only what its worker says, and the loop's clock alone decides how
long it waits.
"""

import queue
import threading
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import httpx
from flwr.app import RecordDict

from tinylora.errors import NetworkError
from tinylora.federation.ports import Reply, WorkerInfo
from tinylora.flower.compat.wire import ErrorCode, ObjectPushError
from tinylora.flower.messages import WORKER_DECLINES, WORKER_GIVES_BACK, WORKER_LACKS_PARTS, unit_record
from tinylora.flower.objects import PartMissing, Spooled, Spooling
from tinylora.flower.texts import printable
from tinylora.protocol.documents import WorkUnit

N_FETCHES = 4
"""Replies that are fetched at once, each with one object in memory; the same number of units is sent at once."""
_ROSTER_S = 0.5
_AGAIN_S = 1.0
_LONGEST_WAIT_S = 2.0
_PATIENCE_S = 7200.0  # a slow uplink may need an hour for a large update, and whoever was cut off as long to return
_LOST_ON_THE_WAY = frozenset(
    {
        ErrorCode.MESSAGE_UNAVAILABLE,
        ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
        ErrorCode.NODE_UNAVAILABLE,
        WORKER_LACKS_PARTS,
    }
)
_LINK_TROUBLE = (NetworkError, httpx.HTTPError)


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
    """A reply that has begun to arrive: which message it answers, and how to get the rest, from its beginning."""

    message_id: str
    fetch: Callable[[], Spooling]


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


@dataclass(eq=False)
class _Parcel:
    """A unit that its worker owes a reply for."""

    worker: str
    unit: WorkUnit
    payload: bytes | Path
    expires_at: float
    """After this moment it is not sent to a worker that never got it."""
    not_before: float = 0.0
    is_waiting: bool = True
    """It is to be sent, for the first time or again."""
    is_arriving: bool = False
    """Its reply has begun to arrive."""
    is_settled: bool = False
    is_known: bool = False
    """Its worker was sent it, and may have done it while away: whoever returns late is asked for it once more."""
    message_ids: set[str] = field(default_factory=set)

    def is_due(self, now: float) -> bool:
        """Whether it is to be sent at this moment."""
        until = self.expires_at + (_PATIENCE_S if self.is_known else 0.0)
        return self.is_waiting and self.not_before <= now < until

    def read(self) -> bytes:
        """The payload."""
        return self.payload if isinstance(self.payload, bytes) else self.payload.read_bytes()

    def discard(self) -> None:
        """It is not sent any more."""
        self.is_waiting = False
        if isinstance(self.payload, Path):
            self.payload.unlink(missing_ok=True)


@dataclass(eq=False)
class _Fetch:
    """A reply that is being fetched; between two steps it holds no thread."""

    parcel: _Parcel
    arrival: Arrival
    steps: Spooling
    give_up_at: float
    due_at: float = 0.0
    wait_s: float = 0.0


class FlowerTransport:
    """`tinylora.federation.ports.Transport` over a wire.

    Args:
        wire: How Flower is reached.
        poll_s: Between two questions for replies.
        folder: Where payloads of units lie until they are answered; in memory without one.
        admit: What is said of a worker that is online; None where it may not take part.
    """

    def __init__(
        self,
        wire: Wire,
        *,
        poll_s: float = 0.2,
        folder: Path | None = None,
        admit: Callable[[WorkerInfo], WorkerInfo | None] = lambda info: info,
    ) -> None:
        self._wire, self._poll_s, self._folder, self._admit = wire, poll_s, folder, admit
        self._arrived: queue.SimpleQueue[Reply] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._parcels: dict[str, _Parcel] = {}  # by worker: a worker has one unit at a time
        self._sent: dict[str, _Parcel] = {}  # by message: a unit may have been sent several times
        self._fetches: list[_Fetch] = []
        self._stations: dict[str, Station] = {}
        self._stations_at = float("-inf")
        self._senders = ThreadPoolExecutor(max_workers=N_FETCHES, thread_name_prefix="send")
        self._fetchers = ThreadPoolExecutor(max_workers=N_FETCHES, thread_name_prefix="fetch")
        self._broken: Exception | None = None
        self._stop, self._has_roster = threading.Event(), threading.Event()
        self.arrived = threading.Event()
        """Set when there is something to `poll`; a clock may wait for it."""
        threading.Thread(target=self._collect, name="collect", daemon=True).start()

    # --- what the loop calls -----------------------------------------------------------------------------------------

    def workers(self) -> Sequence[WorkerInfo]:
        """Workers that are online now, sorted by identity; half a second old, older while the link does not answer."""
        self._has_roster.wait(30.0)
        stations = self._stations
        return [stations[worker].info for worker in sorted(stations)]

    def send(self, worker: str, unit: WorkUnit, payload: bytes) -> None:
        """Hand a unit to a worker, now or when it is online; returns at once. It replaces the worker's last one."""
        parcel = _Parcel(worker, unit, self._keep(payload), expires_at=time.monotonic() + unit.deadline_s)
        with self._lock:
            before, self._parcels[worker] = self._parcels.get(worker), parcel
        if before is not None:
            before.discard()
        self._dispatch()

    def poll(self) -> Sequence[Reply]:
        """Replies that arrived since the last call, without waiting.

        Whatever ended the collecting thread is raised here: without it nothing would arrive any more.
        """
        self.arrived.clear()
        if self._broken is not None:
            raise self._broken
        replies: list[Reply] = []
        while True:
            try:
                replies.append(self._arrived.get_nowait())
            except queue.Empty:
                return replies

    def doubt(self) -> None:
        """The link was started again: what was on its way may be lost, so all that has no reply is sent again."""
        with self._lock:
            for parcel in self._parcels.values():
                parcel.is_waiting |= not parcel.is_arriving

    def close(self) -> None:
        """Stop collecting, and end the Flower run."""
        self._stop.set()
        self._senders.shutdown(wait=False, cancel_futures=True)
        self._fetchers.shutdown(wait=False, cancel_futures=True)
        self._wire.close()

    def __enter__(self) -> "FlowerTransport":
        """It works from the start."""
        return self

    def __exit__(self, *_raised: object) -> None:
        """Close."""
        self.close()

    # --- units out ---------------------------------------------------------------------------------------------------

    def _keep(self, payload: bytes) -> bytes | Path:
        if self._folder is None or not payload:
            return payload
        file = self._folder / f"unit-{uuid.uuid4().hex}"
        file.write_bytes(payload)  # not flushed: a process that comes after us makes it again
        return file

    def _dispatch(self) -> None:
        """Send what waits, to workers that are online."""
        now, stations = time.monotonic(), self._stations
        with self._lock:
            due = [parcel for worker, parcel in self._parcels.items() if parcel.is_due(now) and worker in stations]
            for parcel in due:
                parcel.is_waiting = False
        for parcel in due:
            with suppress(RuntimeError):  # closed meanwhile
                self._senders.submit(self._push, parcel, stations[parcel.worker].flower_node_id)

    def _push(self, parcel: _Parcel, flower_node_id: int) -> None:
        unit = parcel.unit
        try:
            message_id = self._wire.push(flower_node_id, unit_record(unit, parcel.read()), group=unit.unit_id)
        except SessionLost:
            self._forget_session()
        except (*_LINK_TROUBLE, ObjectPushError):
            self._again(parcel)
        except Exception as error:  # a pool's thread has nobody above it
            if self._is_current(parcel):  # another one has replaced it otherwise, and taken its file away
                self._fail(parcel, f"the unit could not be sent: {error or type(error).__name__}")
        else:
            self._pushed(parcel, message_id)

    def _pushed(self, parcel: _Parcel, message_id: str | None) -> None:
        if not message_id:
            self._fail(parcel, "Flower did not take the unit for this worker")
            return
        with self._lock:
            parcel.is_known = True
            if not parcel.is_settled:
                parcel.message_ids.add(message_id)
                self._sent[message_id] = parcel

    def _is_current(self, parcel: _Parcel) -> bool:
        return self._parcels.get(parcel.worker) is parcel

    def _again(self, parcel: _Parcel, after_s: float = _AGAIN_S) -> None:
        """Send it once more, unless the worker has got another unit since."""
        with self._lock:
            parcel.is_arriving = False
            if self._is_current(parcel):
                parcel.not_before, parcel.is_waiting = time.monotonic() + after_s, True

    def _forget_session(self) -> None:
        with self._lock:
            self._sent.clear()
            for parcel in self._parcels.values():
                parcel.message_ids.clear()
                parcel.is_waiting, parcel.is_arriving = True, False

    # --- replies in --------------------------------------------------------------------------------------------------

    def _collect(self) -> None:
        try:
            while not self._stop.wait(self._poll_s):
                self._turn()
        except Exception as error:
            self._broken = error
            self.arrived.set()

    def _turn(self) -> None:
        try:
            self._refresh()
            self._dispatch()
            self._ask()
        except SessionLost:
            self._forget_session()
        except _LINK_TROUBLE:
            pass  # the link is being started again; the loop's deadlines go on
        self._go_on_fetching()

    def _refresh(self) -> None:
        if time.monotonic() - self._stations_at < _ROSTER_S:
            return
        online = {station.info.worker: station for station in self._wire.stations()}
        infos = {worker: self._admit(station.info) for worker, station in online.items()}
        self._stations = {
            worker: Station(online[worker].flower_node_id, info) for worker, info in infos.items() if info is not None
        }
        self._stations_at = time.monotonic()
        self._has_roster.set()

    def _ask(self) -> None:
        with self._lock:
            message_ids = list(self._sent)
        for arrival in self._wire.arrivals(message_ids) if message_ids else ():
            self._begin(arrival)

    def _begin(self, arrival: Arrival) -> None:
        with self._lock:
            parcel = self._sent.pop(arrival.message_id, None)
            if parcel is None or parcel.is_arriving or parcel.is_settled:
                return
            parcel.is_arriving = True
        fetch = _Fetch(parcel, arrival, arrival.fetch(), give_up_at=time.monotonic() + _PATIENCE_S)
        self._fetches.append(fetch)

    def _go_on_fetching(self) -> None:
        """Give threads to those fetches whose next object may be there."""
        now = time.monotonic()
        with self._lock:
            due = [fetch for fetch in self._fetches if fetch.due_at <= now]
            self._fetches = [fetch for fetch in self._fetches if fetch.due_at > now]
        for fetch in due:
            with suppress(RuntimeError):  # closed meanwhile
                self._fetchers.submit(self._step, fetch)

    def _step(self, fetch: _Fetch) -> None:
        """Take what is there of a reply. It comes from outside: nothing in it may end this process."""
        parcel = fetch.parcel
        try:
            is_moving = next(fetch.steps)
        except StopIteration as end:
            self._take(parcel, end.value)
        except PartMissing:
            self._again(parcel)
        except SessionLost:
            pass  # whoever opens the next one sends all again
        except httpx.HTTPStatusError as error:
            if error.response.status_code not in (401, 403):  # otherwise the session is lost, and all is sent again
                self._start_over(fetch)
        except (*_LINK_TROUBLE, OSError):
            self._start_over(fetch)
        except Exception as error:
            self._fail(parcel, str(error) or type(error).__name__)
        else:
            if time.monotonic() > fetch.give_up_at:
                fetch.steps.close()
                self._fail(parcel, f"the update did not arrive within {_PATIENCE_S:.0f} s")
                return
            fetch.wait_s = self._poll_s if is_moving else min(2 * fetch.wait_s + self._poll_s, _LONGEST_WAIT_S)
            self._wait(fetch)

    def _start_over(self, fetch: _Fetch) -> None:
        fetch.steps, fetch.wait_s = fetch.arrival.fetch(), _AGAIN_S
        self._wait(fetch)

    def _wait(self, fetch: _Fetch) -> None:
        fetch.due_at = time.monotonic() + fetch.wait_s
        with self._lock:
            self._fetches.append(fetch)

    def _take(self, parcel: _Parcel, found: Spooled) -> None:
        if (error := found.error) is None:
            reply = Reply(parcel.worker, parcel.unit.unit_id, found.document, found.payload, found.file, found.sha256)
            self._deliver(parcel, reply)
        elif error.code in _LOST_ON_THE_WAY:
            self._again(parcel)
        else:  # of unknown source, maybe the SuperLink: only the answered message tells the worker
            reason = f"{error.reason or 'no reason given'} (Flower code {error.code})"
            self._fail(parcel, reason, code=error.code)

    def _fail(self, parcel: _Parcel, reason: str, *, code: int = 0) -> None:
        reply = Reply(
            parcel.worker,
            parcel.unit.unit_id,
            error=printable(reason, at_most=1000),
            is_final=code == WORKER_DECLINES,
            is_returned=code == WORKER_GIVES_BACK,
        )
        self._deliver(parcel, reply)

    def _deliver(self, parcel: _Parcel, reply: Reply) -> None:
        """Once for each unit, however often it was sent."""
        with self._lock:
            is_first, parcel.is_settled = not parcel.is_settled, True
            for message_id in parcel.message_ids:
                self._sent.pop(message_id, None)
            if self._is_current(parcel):
                del self._parcels[parcel.worker]
        parcel.discard()
        if is_first:
            self._arrived.put(reply)
            self.arrived.set()
        elif reply.file is not None:
            reply.file.unlink(missing_ok=True)

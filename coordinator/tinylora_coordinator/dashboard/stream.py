"""What changes, as server-sent events: one stream for each reader, and one piece of work for all who are in step.

All readers are told at the same moments, at most twice a second. Whoever stands at the same position gets the same
bytes, so ten readers cost hardly more than one; whoever was away gets one patch with all that he missed, and is in step
from then on. Nothing here is a thread: views wake the event loop from whichever thread feeds them.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field

from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from tinylora_coordinator.dashboard.answers import Refusal, Threads, to_json
from tinylora_coordinator.dashboard.source import Views

PACE_S = 0.5
"""Between two events of a reader."""
ALIVE_S = 5.0
"""A reader hears something at least this often, so that the page can tell a quiet run from a broken line."""
MOST_READERS = 200
SLOW_S = 20.0
"""A reader who takes nothing for so long is dropped."""
_LONGEST_POSITION = 100
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Frame:
    """What a reader at one position is sent."""

    data: bytes
    position: str
    """Where he stands after it."""
    is_last: bool = False


class Streams:
    """The readers' streams; of all listeners that serve the app.

    Args:
        views: Of the run.
        threads: Where views are asked.
        most_readers: Streams at once.
        pace_s: See `PACE_S`.
        alive_s: See `ALIVE_S`.
        look_s: After so long, before he is told more, it is looked again whether a reader still may.
    """

    def __init__(
        self,
        views: Views,
        threads: Threads,
        *,
        most_readers: int = MOST_READERS,
        pace_s: float = PACE_S,
        alive_s: float = ALIVE_S,
        look_s: float = 1.0,
    ) -> None:
        self._look_s = look_s
        self._views, self._threads = views, threads
        self._most_readers, self._pace_s, self._alive_s = most_readers, pace_s, alive_s
        self._lock = threading.Lock()
        self._hubs: dict[asyncio.AbstractEventLoop, _Hub] = {}
        self._n_readers = 0
        self._is_closed = False

    @property
    def n_readers(self) -> int:
        """Streams that are open."""
        return self._n_readers

    def open(self, since: str, still_may: Callable[[], Awaitable[bool]]) -> AsyncGenerator[bytes]:
        """A reader's stream.

        Args:
            since: The position he is at; empty for the present one.
            still_may: Whether he may still look; asked now and then.

        Raises:
            Refusal: There are too many, or the server is about to stop.
        """
        with self._lock:
            if self._is_closed:
                raise Refusal(503, "stopping", "the server is about to stop", {"retry-after": "5"})
            if self._n_readers >= self._most_readers:
                raise Refusal(503, "readers", "too many are watching", {"retry-after": "10"})
        return self._read(since, still_may)

    def close(self) -> None:
        """End all streams, soon; from any thread. None is opened from now on."""
        with self._lock:
            self._is_closed = True
            hubs = list(self._hubs.items())
        for loop, hub in hubs:
            with suppress(RuntimeError):  # that loop is closed, and its streams with it
                loop.call_soon_threadsafe(hub.close)

    async def _read(self, since: str, still_may: Callable[[], Awaitable[bool]]) -> AsyncGenerator[bytes]:
        hub = self._enter()
        loop = asyncio.get_running_loop()
        look_at = loop.time() + self._look_s
        try:
            async with aclosing(hub.follow(since or self._views.position)) as events:
                async for data in events:
                    if loop.time() >= look_at:
                        look_at = loop.time() + self._look_s
                        if not await still_may():
                            return
                    yield data
        finally:
            self._leave(hub)

    def _enter(self) -> "_Hub":
        loop = asyncio.get_running_loop()
        with self._lock:
            hub = self._hubs.get(loop)
            if hub is None:
                hub = self._hubs[loop] = _Hub(self._views, self._threads, self._pace_s, self._alive_s)
                hub.begin()
            if self._is_closed:
                hub.close()
            hub.n_readers += 1
            self._n_readers += 1
            return hub

    def _leave(self, hub: "_Hub") -> None:
        with self._lock:
            hub.n_readers -= 1
            self._n_readers -= 1
            if not hub.n_readers:
                hub.end()
                self._hubs = {loop: other for loop, other in self._hubs.items() if other is not hub}


class _Hub:
    """Readers of one event loop. All but `_wake` happens in that loop."""

    def __init__(self, views: Views, threads: Threads, pace_s: float, alive_s: float) -> None:
        self.n_readers = 0
        self._views, self._threads, self._pace_s, self._alive_s = views, threads, pace_s, alive_s
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._is_woken = False
        self._is_closed = False
        self._next: asyncio.Future[_Moment | None] = self._loop.create_future()

    def begin(self) -> None:
        """Listen to the views."""
        self._forget = self._views.subscribe(self._wake)
        self._beat = self._loop.create_task(self._tell())

    def end(self) -> None:
        """The last reader left."""
        self._forget()
        self._beat.cancel()

    def close(self) -> None:
        """Send the readers away."""
        self._is_closed = True
        if not self._next.done():
            self._next.set_result(None)

    async def follow(self, since: str) -> AsyncGenerator[bytes]:
        """What a reader is sent, until he leaves or is sent away."""
        self._news.set()  # he hears at once that the line stands
        while not self._is_closed:
            if since != self._views.position:
                self._news.set()
            moment = await asyncio.shield(self._next)
            if moment is None:
                return
            frame = await moment.frame(since)
            if frame is None:
                yield _ALIVE
                continue
            yield frame.data
            since = frame.position
            if frame.is_last:
                return

    async def _tell(self) -> None:
        """Let moments come, as often as there is news and the pace allows."""
        while not self._is_closed:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._alive_s):
                    await self._news.wait()
            self._is_woken = False  # before anything is read: what comes from now on wakes again
            self._news.clear()
            if self._is_closed:
                return
            now, self._next = self._next, self._loop.create_future()
            now.set_result(_Moment(self._views, self._threads))
            await asyncio.sleep(self._pace_s)

    def _wake(self) -> None:
        """Called by the views, from any thread, whenever they have grown."""
        if not self._is_woken:
            self._is_woken = True
            with suppress(RuntimeError):  # the loop has just been closed
                self._loop.call_soon_threadsafe(self._news.set)


@dataclass
class _Moment:
    """When all readers are told what is new: each frame is made once."""

    views: Views
    threads: Threads
    _frames: dict[str, "asyncio.Task[_Frame | None]"] = field(default_factory=dict)

    async def frame(self, since: str) -> _Frame | None:
        """What a reader at a position is sent; None where he knows all."""
        if since not in self._frames:
            self._frames[since] = asyncio.create_task(self.threads(_frame, self.views, since))
        return await asyncio.shield(self._frames[since])


def _frame(views: Views, since: str) -> _Frame | None:
    position = views.position
    if since == position:
        return None
    patch = views.patch(since) if len(since) <= _LONGEST_POSITION else None
    if patch is None:
        return _Frame(_event("reset", position, b"{}"), position, is_last=True)
    if patch.position == since:
        return None
    return _Frame(_event("patch", patch.position, to_json(patch)), patch.position)


def _event(name: str, position: str, data: bytes) -> bytes:
    # JSON escapes the two characters that end a line of a stream.
    return f"event: {name}\nid: {position}\ndata: ".encode() + data + b"\n\n"


_ALIVE = b"event: alive\ndata: {}\n\n"
"""Without an id: it moves nobody."""


class EventsResponse(StreamingResponse):
    """A reader's stream as an answer.

    Not FastAPI's `EventSourceResponse`, which makes the bytes anew for each reader, and breaks lines at each character
    that Unicode calls a line's end, also inside of JSON's strings.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes]) -> None:
        super().__init__(events, headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, until the reader leaves or takes nothing any more."""

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(SLOW_S):
                await send(message)

        try:
            await super().__call__(scope, receive, send_in_time)
        except TimeoutError:
            _log.info("a reader of events took nothing for %g s and was dropped", SLOW_S)
        finally:
            await self._events.aclose()

"""Answers that last: how many one address and all together may have open, and when one has to end."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tinylora_coordinator.front_door.limits import Limits

_LAST_WORD_S = 0.5


class Streams:
    """The open streams of one door. All of it happens in the door's event loop.

    Args:
        limits: How many.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._per_place: Counter[str] = Counter()
        self._open: set[asyncio.Future[None]] = set()
        self._is_closed = False

    def __len__(self) -> int:
        """How many are open."""
        return len(self._open)

    def has_room(self, place: str) -> bool:
        """Whether one more may be opened from there."""
        is_full = len(self._open) >= self._limits.streams or self._per_place[place] >= self._limits.streams_per_address
        return not (is_full or self._is_closed)

    async def follow(
        self,
        app: ASGIApp,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        place: str,
        may_go_on: Callable[[], Awaitable[bool]],
    ) -> None:
        """Let `app` answer, until it has done so, the reader leaves, he may read no longer, or the door is closed.

        Args:
            app: Answers with a stream.
            scope: Of the request.
            receive: Of the request.
            send: Of the request.
            place: Whom it counts for.
            may_go_on: Asked again and again.
        """
        leave: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._open.add(leave)
        self._per_place[place] += 1
        tail = _Tail(send)
        answering = asyncio.ensure_future(app(scope, receive, tail.send))
        try:
            while not await self._is_over(answering, leave) and await may_go_on():
                pass
            if answering.done():
                answering.result()
        finally:
            self._open.discard(leave)
            self._per_place -= Counter((place,))
            answering.cancel()
            await asyncio.wait((answering,), timeout=_LAST_WORD_S)
            if answering.done() and not answering.cancelled():
                answering.exception()  # seen; there is nobody to tell
            await tail.end()

    def close(self) -> None:
        """End all of them; none is opened from now on."""
        self._is_closed = True
        for leave in self._open:
            if not leave.done():
                leave.set_result(None)

    async def _is_over(self, answering: "asyncio.Future[None]", leave: "asyncio.Future[None]") -> bool:
        done, _ = await asyncio.wait(
            (answering, leave), timeout=self._limits.stream_look_s, return_when=asyncio.FIRST_COMPLETED
        )
        return bool(done)


class _Tail:
    """Ends an answer properly that was cut off between two of its pieces."""

    def __init__(self, send: Send) -> None:
        self._send, self._has_begun, self._has_ended = send, False, False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._has_begun = True
        elif not message.get("more_body", False):
            self._has_ended = True
        await self._send(message)

    async def end(self) -> None:
        if self._has_begun and not self._has_ended:
            with suppress(OSError, TimeoutError):  # the reader takes nothing, or has gone
                async with asyncio.timeout(_LAST_WORD_S):
                    await self._send({"type": "http.response.body", "body": b"", "more_body": False})

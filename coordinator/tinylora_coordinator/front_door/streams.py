"""Answers that last: how many one address and all together may have open, and that none outlasts the door."""

import asyncio
from collections import Counter
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

    async def follow(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send, *, place: str) -> None:
        """Let `app` answer, until it has done so or the door is closed.

        Args:
            app: Answers with a stream.
            scope: Of the request.
            receive: Of the request.
            send: Of the request.
            place: Whom it counts for.
        """
        leave: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._open.add(leave)
        self._per_place[place] += 1
        tail = _Tail(send)
        answering = asyncio.ensure_future(app(scope, receive, tail.send))
        try:
            await asyncio.wait((answering, leave), return_when=asyncio.FIRST_COMPLETED)
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

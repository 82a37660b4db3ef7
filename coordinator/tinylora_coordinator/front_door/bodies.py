"""Large bodies: into a file at the client's pace, and through memory a few at a time.

Flower takes a body as one piece of memory. A thousand workers on slow lines would hold a thousand of them for minutes;
this way each holds a file and a small buffer, and memory is needed only for as long as Flower works on it.
"""

import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

from starlette.types import Message, Receive

from tinylora_coordinator.front_door.limits import Limits


class ClientGone(Exception):
    """The connection ended before the body did."""


class TooMany(Exception):
    """This worker sends more large bodies at once than it may."""


class LargeBodies:
    """The way of large bodies.

    Args:
        limits: How many at once.
        folder: Where their files are; they have no name and vanish with the process. The system's by default.
    """

    def __init__(self, limits: Limits, folder: Path | None = None) -> None:
        self._limits, self._folder = limits, folder
        self._in_memory = asyncio.Semaphore(limits.large_bodies)
        self._per_node: Counter[bytes] = Counter()

    @asynccontextmanager
    async def whole(self, receive: Receive, node: bytes) -> AsyncIterator[Receive]:
        """A `receive` that gives the body in one piece; its memory counts until the block ends.

        Raises:
            TooMany: See the class.
            ClientGone: The client left.
            OSError: The disk is full.
        """
        if self._per_node[node] >= self._limits.large_bodies_per_node:
            raise TooMany
        self._per_node[node] += 1
        try:
            with tempfile.TemporaryFile(dir=self._folder, buffering=0) as file:
                await _spool(receive, file)
                async with self._in_memory:
                    file.seek(0)
                    yield _replay(file.read(), receive)
        finally:
            self._per_node[node] -= 1
            if not self._per_node[node]:
                del self._per_node[node]


async def _spool(receive: Receive, file: IO[bytes]) -> None:
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGone
        file.write(message.get("body", b""))
        more = message.get("more_body", False)


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body first; after it whatever comes: that the client left."""
    parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return parts.pop() if parts else await receive()

    return replay

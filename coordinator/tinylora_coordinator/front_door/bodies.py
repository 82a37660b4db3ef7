"""Bodies, whole before anybody works on them or gets them: large ones in files, and through memory a few at a time.

Flower takes a body as one piece of memory. A thousand workers on slow lines would hold a thousand of them for minutes;
this way each holds a file and a small buffer, and memory is needed only for as long as Flower works on it. The same
goes for what they fetch.
"""

import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

from starlette.types import Message, Receive, Send

from tinylora_coordinator.front_door.limits import Limits

_IN_MEMORY_BYTES = 2**14
_PART_BYTES = 2**16


class ClientGone(Exception):
    """The connection ended before the body did."""


class SpoolError(Exception):
    """The disk takes no more."""


class TooMany(Exception):
    """This worker sends more large bodies at once than it may."""


class Bodies:
    """The way of bodies.

    Args:
        limits: How many large ones at once.
        folder: Where their files are; they have no name and vanish with the process. The system's by default.
    """

    def __init__(self, limits: Limits, folder: Path | None = None) -> None:
        self._limits, self._folder = limits, folder
        self._in_memory = asyncio.Semaphore(limits.large_bodies)
        self._per_node: Counter[bytes] = Counter()

    async def small(self, receive: Receive) -> Receive:
        """A `receive` that gives the body in one piece.

        Raises:
            ClientGone: The client left.
            SpoolError: The disk is full.
        """
        with self._open() as file:
            await _spool(receive, file)
            return _replay(file, receive)

    @asynccontextmanager
    async def large(self, receive: Receive, node: bytes) -> AsyncIterator[Receive]:
        """The same; its memory counts until the block ends.

        Args:
            receive: Gives the body in pieces.
            node: Whose it is.

        Raises:
            TooMany: See the class.
            ClientGone: The client left.
            SpoolError: The disk is full.
        """
        if self._per_node[node] >= self._limits.large_bodies_per_node:
            raise TooMany
        self._per_node[node] += 1
        try:
            with self._open() as file:
                await _spool(receive, file)
                async with self._in_memory:
                    yield _replay(file, receive)
        finally:
            self._per_node[node] -= 1
            if not self._per_node[node]:
                del self._per_node[node]

    async def answer(self, work: Callable[[Send], Awaitable[None]], send: Send) -> None:
        """Let `work` send its answer into a file, and send that on at the client's pace; only `work` counts as memory.

        Raises:
            SpoolError: The disk is full.
        """
        heads: list[Message] = []
        with self._open() as file:

            async def keep(message: Message) -> None:
                if message["type"] == "http.response.start":
                    heads.append(message)
                else:
                    _write(file, message.get("body", b""))

            async with self._in_memory:
                await work(keep)
            file.seek(0)
            for head in heads:
                await send(head)
            while part := file.read(_PART_BYTES):
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _open(self) -> IO[bytes]:
        return tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES, dir=str(self._folder) if self._folder else None)


async def _spool(receive: Receive, file: IO[bytes]) -> None:
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGone
        _write(file, message.get("body", b""))
        more = message.get("more_body", False)


def _write(file: IO[bytes], data: bytes) -> None:
    try:
        file.write(data)
    except OSError as error:
        raise SpoolError(str(error)) from error


def _replay(file: IO[bytes], receive: Receive) -> Receive:
    """The body first; after it whatever comes: that the client left."""
    file.seek(0)
    parts: list[Message] = [{"type": "http.request", "body": file.read(), "more_body": False}]

    async def replay() -> Message:
        return parts.pop() if parts else await receive()

    return replay

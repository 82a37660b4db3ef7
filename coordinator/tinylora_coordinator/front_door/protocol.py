"""uvicorn's HTTP protocol, which tells its connection's record what it waits for.

uvicorn has no deadline for headers or bodies; `sockets` has, and this is how it learns the phases. All of it is derived
from h11's own state after each step, so there is no second parser to disagree with the first.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from tinylora_coordinator.front_door.sockets import Connection, Phase

CONNECTION = "tinylora.connection"
"""Where a request's scope has its connection's record: `scope["state"][CONNECTION]`."""

_NO_LINGER = struct.pack("ii", 1, 0)


class DoorProtocol(H11Protocol):
    """One connection.

    Args:
        connection: Its record.
        released: Called once it is closed.
        clock: Seconds, of the loop.
        **uvicorn_arguments: What uvicorn gives to its protocols.
    """

    def __init__(
        self,
        connection: Connection,
        released: Callable[[], None],
        clock: Callable[[], float],
        **uvicorn_arguments: Any,
    ) -> None:
        super().__init__(**uvicorn_arguments)
        self.app_state = {CONNECTION: connection}
        self._connection, self._released, self._clock = connection, released, clock

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The handshake is done."""
        self._connection.abort = self._drop
        self._connection.turn(Phase.HEAD, self._clock())
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self._connection.phase is Phase.IDLE:
            self._connection.turn(Phase.HEAD, self._clock())
        super().data_received(data)
        self._look()
        if self._connection.phase is Phase.BODY:
            self._connection.n_body += len(data)

    def on_response_complete(self) -> None:
        """An answer is out."""
        if not self.transport.is_closing() and self.conn.their_state is h11.DONE:
            self._connection.turn(Phase.IDLE, self._clock())
        super().on_response_complete()
        self._look()
        self._connection.read_on(self._clock())  # what is left of a body that nobody wanted

    def pause_writing(self) -> None:
        """The client does not read what we write."""
        self._connection.stalled_s = self._clock()
        super().pause_writing()

    def resume_writing(self) -> None:
        """It reads again."""
        self._connection.stalled_s = None
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed."""
        self._released()
        super().connection_lost(exc)

    def _drop(self) -> None:
        """Reset, so that the kernel too forgets what it holds for this client."""
        carrier = self.transport.get_extra_info("socket")
        if carrier is not None:
            with suppress(OSError):  # it is closed already, and only we have not been told
                carrier.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.transport.abort()

    def _look(self) -> None:
        match self.conn.their_state:
            case h11.SEND_BODY:
                self._connection.turn(Phase.BODY, self._clock())
            case h11.DONE | h11.MUST_CLOSE:
                self._connection.turn(Phase.ANSWER, self._clock())
            case _:
                if self.conn.trailing_data[0]:
                    self._connection.turn(Phase.HEAD, self._clock())

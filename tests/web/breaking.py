"""A line between a browser and a server that breaks when it is told to, whatever is under way."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

_RESET_AT_ONCE = struct.pack("ii", 1, 0)
"""SO_LINGER: whoever is at the other end sees a broken connection, no orderly end."""


class BreakingLine:
    """Forwards connections from a port of its own.

    Args:
        url: Of the server, such as http://127.0.0.1:8444.
    """

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self._target = (place.hostname or "127.0.0.1", place.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._open: set[tuple[socket.socket, socket.socket]] = set()
        self._is_down = False
        self._bytes_left: int | None = None
        self.n_broken = 0
        """Connections that were cut while they were open."""
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break all that is open, and refuse what comes, until `mend`."""
        with self._lock:
            self._is_down, pairs = True, list(self._open)
            self._open.clear()
            self.n_broken += len(pairs)
        for pair in pairs:
            for end in pair:
                _break(end)

    def cut_within(self, n_bytes: int) -> None:
        """The same, as soon as the server has sent so many more bytes; in the midst of a word, as likely as not."""
        with self._lock:
            self._bytes_left = n_bytes

    @property
    def is_down(self) -> bool:
        """Whether it was cut, and not mended yet."""
        return self._is_down

    def mend(self) -> None:
        """Let connections through again."""
        with self._lock:
            self._is_down, self._bytes_left = False, None

    def close(self) -> None:
        """Break everything, for good."""
        self.cut()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self._is_down:
                    _break(near)
                    continue
                far = socket.create_connection(self._target)
                with self._lock:
                    self._open.add((near, far))
                threading.Thread(target=self._pump, args=(near, far, (near, far), False), daemon=True).start()
                threading.Thread(target=self._pump, args=(far, near, (near, far), True), daemon=True).start()

    def _pump(
        self, source: socket.socket, sink: socket.socket, pair: tuple[socket.socket, socket.socket], is_answer: bool
    ) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                passed = self._allowed(len(data)) if is_answer else len(data)
                sink.sendall(data[:passed])
                if passed < len(data):
                    self.cut()
                    return
        with self._lock:
            self._open.discard(pair)
        for end in pair:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _allowed(self, n_bytes: int) -> int:
        with self._lock:
            if self._bytes_left is None:
                return n_bytes
            passed = min(n_bytes, self._bytes_left)
            self._bytes_left -= passed
            return passed


def _break(end: socket.socket) -> None:
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_ONCE)
        end.shutdown(socket.SHUT_RDWR)
    end.close()


@contextmanager
def breaking(url: str) -> Iterator[BreakingLine]:
    """A line to a server, for as long as it is needed."""
    line = BreakingLine(url)
    try:
        yield line
    finally:
        line.close()

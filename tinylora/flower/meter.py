"""Counts what a client of httpx sends and receives: heads and bodies, with everything that HTTP writes around them.

It stands where httpcore meets the socket, so nothing is estimated; what TLS, TCP and the name service add is below that
and is not counted.
"""

import ssl
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import httpcore
import httpx

Meter: TypeAlias = Callable[[int, int], None]
"""Takes bytes sent and bytes received since it was told last; it is called from whatever thread speaks."""
_PIECE = 65_536


def unmetered(sent: int, received: int) -> None:
    """Count nothing."""


def count(client: httpx.Client, meter: Meter) -> None:
    """From now on `meter` is told of all that this client, which was not used yet, sends and receives.

    A piece of at most 64 KiB counts as sent when it is handed to the socket: where a connection breaks, that piece may
    have been counted in vain.
    """
    if meter is unmetered:
        return
    for transport in (client._transport, *client._mounts.values()):
        if isinstance(transport, httpx.HTTPTransport):
            pool = transport._pool
            pool._network_backend = _CountingBackend(pool._network_backend, meter)


class _CountingBackend(httpcore.NetworkBackend):
    def __init__(self, inner: httpcore.NetworkBackend, meter: Meter) -> None:
        self._inner, self._meter = inner, meter

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | int | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect."""
        stream = self._inner.connect_tcp(host, port, timeout, local_address, socket_options)
        return _CountingStream(stream, self._meter)

    def connect_unix_socket(
        self, path: str, timeout: float | int | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        """Connect."""
        return _CountingStream(self._inner.connect_unix_socket(path, timeout, socket_options), self._meter)

    def sleep(self, seconds: float) -> None:
        """Sleep."""
        self._inner.sleep(seconds)


class _CountingStream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream, meter: Meter) -> None:
        self._inner, self._meter = inner, meter

    def read(self, max_bytes: int, timeout: float | int | None = None) -> bytes:
        """Read, and count."""
        data = self._inner.read(max_bytes, timeout)
        self._meter(0, len(data))
        return data

    def write(self, buffer: bytes, timeout: float | int | None = None) -> None:
        """Count, and write."""
        view = memoryview(buffer)
        for start in range(0, len(view), _PIECE):
            piece = view[start : start + _PIECE]
            self._meter(len(piece), 0)
            self._inner.write(bytes(piece), timeout)

    def close(self) -> None:
        """Close."""
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | int | None = None
    ) -> httpcore.NetworkStream:
        """From here on what is counted is inside TLS."""
        return _CountingStream(self._inner.start_tls(ssl_context, server_hostname, timeout), self._meter)

    def get_extra_info(self, info: str) -> Any:
        """As the socket says."""
        return self._inner.get_extra_info(info)

"""The one line by which a proxy that passes bytes through says whose they are: the PROXY protocol, version 1."""

import asyncio
import re
import socket

from tinylora_coordinator.proxies import read_address

_BEGIN = b"PROXY "
_LONGEST = 107
_LINE = re.compile(rb"PROXY TCP[46] (\S{2,45}) \S{2,45} \d{1,5} \d{1,5}\r\n")
_NOT_TOLD = re.compile(rb"PROXY UNKNOWN[^\r\n]*\r\n")


async def read_proxy_line(carrier: socket.socket, *, timeout_s: float) -> str | None:
    """Who came to the proxy, by the line that it begins a connection with; None where it does not say.

    Not a byte more than the line is read: what follows is TLS.

    Raises:
        OSError: It is no such line, or it does not come in time.
    """
    loop, line = asyncio.get_running_loop(), bytearray()
    async with asyncio.timeout(timeout_s):
        while not line.endswith(b"\r\n"):
            byte = await loop.sock_recv(carrier, 1)
            if not byte or len(line) >= _LONGEST:
                raise ConnectionError("no line of the PROXY protocol")
            line += byte
    return parse_proxy_line(bytes(line))


async def begins_with_line(carrier: socket.socket, *, timeout_s: float) -> bool:
    """Whether what comes first looks like a proxy's line; nothing is taken.

    Raises:
        OSError: Nothing comes in time.
    """
    async with asyncio.timeout(timeout_s):
        await _readable(carrier)
    first = carrier.recv(len(_BEGIN), socket.MSG_PEEK)
    return first != b"" and _BEGIN.startswith(first)


async def _readable(carrier: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    come: asyncio.Future[None] = loop.create_future()
    loop.add_reader(carrier, lambda: come.done() or come.set_result(None))
    try:
        await come
    finally:
        loop.remove_reader(carrier)


def parse_proxy_line(line: bytes) -> str | None:
    """See `read_proxy_line`.

    Raises:
        ConnectionError: It is no such line.
    """
    if _NOT_TOLD.fullmatch(line):
        return None
    found = _LINE.fullmatch(line)
    address = read_address(found[1].decode("latin-1")) if found else None
    if address is None:
        raise ConnectionError("no line of the PROXY protocol")
    return str(address)

"""Many clients who never finish what they begin, and some who send far too much, from many addresses of loopback.

python -m tests.door.attack PORT N_SOCKETS N_POSTS

A quarter of the sockets trickles each of: a TLS handshake, a request's headers, a body, and nothing at all after the
handshake. Whoever is dropped comes back soon. A line tells when all have begun; it ends when its stdin does.
"""

import asyncio
import json
import socket
import ssl
import sys
from collections import Counter
from contextlib import suppress

HOST = "127.0.0.1"
PER_ADDRESS = 50
PERIOD_S = 1.0
RETURN_S = 3.0
POST_BYTES = 400_000_000
PATIENCE_S = 30.0
HELLO = bytes.fromhex("160301020001000001fc0303") + bytes(500)


class Attack:
    """What the attackers share."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.counts: Counter[str] = Counter()
        self.tls = ssl.create_default_context()
        self.tls.check_hostname = False
        self.tls.verify_mode = ssl.CERT_NONE

    async def connect(self, number: int, *, is_tls: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """From an address that many share."""
        return await asyncio.open_connection(
            HOST,
            self.port,
            local_addr=(f"127.0.{1 + number // PER_ADDRESS}.1", 0),
            ssl=self.tls if is_tls else None,
            server_hostname=HOST if is_tls else None,
        )

    async def trickle(self, number: int, has_begun: asyncio.Event) -> None:
        """One socket after the other, never more than a byte at a time."""
        kind = ("handshake", "headers", "body", "silence")[number % 4]
        while True:
            with suppress(OSError, asyncio.IncompleteReadError):
                _, writer = await self.connect(number, is_tls=kind != "handshake")
                self.counts[kind] += 1
                has_begun.set()
                try:
                    await _drip(writer, kind)
                finally:
                    writer.transport.abort()
            has_begun.set()
            await asyncio.sleep(RETURN_S)

    async def post(self, number: int) -> None:
        """Far too much, with its length or in chunks, as nobody the run knows."""
        length = "transfer-encoding: chunked" if number % 2 else f"content-length: {POST_BYTES}"
        path = ("/v1/fleet/push-object", "/tinylora/join", "/v1/runtime/push-object", "/health")[number % 4]
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\n{length}\r\n\r\n".encode()
        block = b"x" * 65_536
        part = f"{len(block):x}\r\n".encode() + block + b"\r\n" if number % 2 else block
        sent = 0
        with suppress(OSError):
            reader, writer = await self.connect(1000 + number, is_tls=True)
            try:
                writer.write(head)
                while sent < POST_BYTES and not reader.at_eof():
                    writer.write(part)
                    sent += len(block)
                    await asyncio.wait_for(writer.drain(), PATIENCE_S)
            finally:
                writer.transport.abort()
        self.counts["posts"] += 1
        self.counts["posted MB"] += sent // 1_000_000


async def _drip(writer: asyncio.StreamWriter, kind: str) -> None:
    if kind == "headers":
        writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\nx-long: ")
    if kind == "body":
        writer.write(b"POST /tinylora/join HTTP/1.1\r\nhost: x\r\ncontent-length: 60000\r\n\r\n")
    for byte in HELLO * 1000:
        writer.write(bytes([byte]) if kind == "handshake" else b"" if kind == "silence" else b"x")
        await asyncio.sleep(PERIOD_S)
        await writer.drain()


async def main(port: int, n_sockets: int, n_posts: int) -> None:
    """Attack until stdin ends, then tell what was done."""
    attack = Attack(port)
    begun = [asyncio.Event() for _ in range(n_sockets)]
    tricklers = [asyncio.create_task(attack.trickle(number, begun[number])) for number in range(n_sockets)]
    await asyncio.gather(*(event.wait() for event in begun))
    print("begun", flush=True)
    posts = [asyncio.create_task(attack.post(number)) for number in range(n_posts)]
    await asyncio.to_thread(sys.stdin.read)
    for task in [*tricklers, *posts]:
        task.cancel()
    await asyncio.gather(*tricklers, *posts, return_exceptions=True)
    print(json.dumps(attack.counts), flush=True)


if __name__ == "__main__":
    with suppress(ImportError):
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    socket.setdefaulttimeout(None)
    asyncio.run(main(*map(int, sys.argv[1:])))

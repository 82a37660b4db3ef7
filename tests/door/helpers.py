"""A door that is really served, and raw sockets to it: a client library would tidy what we want to send."""

import socket
import ssl
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from tinylora_coordinator.front_door import (
    Dashboard,
    FrontDoor,
    Limits,
    NodeAuth,
    listen,
    own_hosts,
    public_pages,
    serve_public,
    server_tls,
)
from tinylora_coordinator.keys import KeyFolder, make_keys
from tinylora_coordinator.proxies import NO_PROXIES, Proxies

from tinylora.flower.identity import Identity, new_identity
from tinylora.flower.link import PublicRoutes

PULL = "/v1/fleet/pull-messages"
PUSH = "/v1/fleet/push-object"
HOST = "127.0.0.1"
PATIENCE_S = 20.0


@dataclass
class Fleet:
    """Stands for Flower: notes who came with what, and answers with the number of bytes."""

    calls: list[tuple[Scope, int]] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        self.calls.append((scope, size))
        await PlainTextResponse(str(size))(scope, receive, send)


@dataclass
class Door:
    """A door that is being served."""

    port: int
    folder: Path
    keys: KeyFolder
    is_tls: bool
    worker: Identity

    @property
    def url(self) -> str:
        """Its address."""
        return f"{'https' if self.is_tls else 'http'}://{HOST}:{self.port}"

    def trust(self) -> ssl.SSLContext:
        """What a client needs to believe it."""
        return ssl.create_default_context(cafile=self.keys.ca)

    def connect(self) -> socket.socket:
        """A connection, after the handshake."""
        raw = socket.create_connection((HOST, self.port), timeout=PATIENCE_S)
        return self.trust().wrap_socket(raw, server_hostname=HOST) if self.is_tls else raw

    @contextmanager
    def connected(self, number: int) -> Iterator[list[socket.socket]]:
        """So many connections."""
        with ExitStack() as stack:
            yield [stack.enter_context(self.connect()) for _ in range(number)]

    def ask(self, raw: bytes) -> "Answer":
        """Send this, and read one answer."""
        with self.connect() as connection:
            with suppress(OSError):  # it may hang up before it has all, and answer still
                connection.sendall(raw)
            return read_answer(connection)


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, or its absence: status 0."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def read_answer(connection: socket.socket, *, is_head: bool = False) -> Answer:
    """The next answer on this connection."""
    try:
        with connection.makefile("rb") as lines:
            status = lines.readline().split()
            if len(status) < 2:
                return Answer(0, {}, b"")
            headers = dict(_fields(iter(lines.readline, b"\r\n")))
            to_the_end = "-1" if headers.get("connection") == "close" else "0"
            length = 0 if is_head else int(headers.get("content-length", to_the_end))
            return Answer(int(status[1]), headers, lines.read(length))
    except (ConnectionError, ssl.SSLError):
        return Answer(0, {}, b"")


def _fields(lines: Iterator[bytes]) -> Iterator[tuple[str, str]]:
    for line in lines:
        if not line:
            return
        name, _, value = line.decode("latin-1").partition(":")
        yield name.lower(), value.strip()


def head(method: str, target: str, length: int | None = None, /, **headers: str) -> bytes:
    """A request's head; underscores in header names become dashes."""
    lines = [f"{method} {target} HTTP/1.1", f"host: {HOST}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines += [] if length is None else [f"content-length: {length}"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def signed(identity: Identity, at: datetime | None = None, **changes: str) -> dict[str, str]:
    """The three headers by which a worker shows who it is."""
    timestamp = (at or datetime.now(UTC)).isoformat()
    return {
        "flwr-public-key": b64encode(identity.public_pem).decode(),
        "flwr-timestamp": timestamp,
        "flwr-signature": b64encode(identity.sign(timestamp.encode())).decode(),
    } | changes


@contextmanager
def open_door(
    folder: Path,
    *,
    fleet: ASGIApp | None = None,
    routes: PublicRoutes | None = None,
    limits: Limits | None = None,
    is_tls: bool = True,
    may_enter: Callable[[bytes], bool] | None = None,
    status: Callable[[], Mapping[str, Any]] = lambda: {"phase": "waiting"},
    dashboard: Dashboard | None = None,
    is_local: bool = False,
    proxies: Proxies = NO_PROXIES,
) -> Iterator[Door]:
    """Serve a door on loopback; `worker` of it is let in. `is_local`: as the operator's own, without fleet and TLS."""
    keys, worker = KeyFolder(folder / "keys"), new_identity()
    make_keys(keys, run="test", hosts=[HOST], now=datetime.now(UTC))
    pages = public_pages(ca_file=keys.ca, bundle_file=folder / "bundle.safetensors", status=status)
    nodes = NodeAuth(may_enter or (lambda public_pem: public_pem == worker.public_pem))
    listener, routes = listen(HOST, 0), {**pages, **(routes or {})}
    if is_local:
        own = own_hosts(listener.getsockname()[1])
        door, is_tls = FrontDoor(routes, limits=limits, spool=folder, dashboard=dashboard, own_hosts=own), False
    else:
        door = FrontDoor(
            routes, fleet or Fleet(), nodes, limits=limits, spool=folder, dashboard=dashboard, proxies=proxies
        )
    tls = server_tls(keys.server, keys.server_key) if is_tls else None
    with serve_public(door, listener, tls=tls) as served:
        yield Door(served.port, folder, keys, is_tls, worker)

"""Listeners, TLS, threads. The listening sockets come from outside, so that a restarted process finds the same ports.

The public listener has an accept loop of its own: uvicorn's takes every connection there is, and waits for ever for
what they send.
"""

import asyncio
import errno
import socket
import ssl
import threading
import time
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from anyio.to_thread import current_default_thread_limiter
from starlette.types import ASGIApp

from tinylora.errors import NetworkError, SettingError
from tinylora_coordinator.front_door.app import FrontDoor
from tinylora_coordinator.front_door.protocol import DoorProtocol
from tinylora_coordinator.front_door.proxy_line import begins_with_line, read_proxy_line
from tinylora_coordinator.front_door.sockets import Connection, Phase, Sockets
from tinylora_coordinator.proxies import is_here

_START_S = 30.0
_THREADS = 8
_TLS_BUFFER_BYTES = 2**14
"""One TLS record. asyncio gives each connection 256 KiB: of a thousand that send nothing, 300 MB."""


@dataclass
class Served:
    """An app that is being served by a thread of this process."""

    host: str
    port: int
    _server: uvicorn.Server
    _thread: threading.Thread

    @property
    def host_port(self) -> str:
        """Where it is reached from this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def stop(self, *, patience_s: float = 5.0) -> None:
        """Stop serving, and wait a little for requests under way."""
        self._server.should_exit = True
        self._thread.join(patience_s)

    def __enter__(self) -> "Served":
        """It is being served already."""
        return self

    def __exit__(self, *_raised: object) -> None:
        """Stop serving."""
        self.stop()


def server_tls(certificate: Path, key: Path) -> ssl.SSLContext:
    """What a TLS listener needs; TLS 1.2 at least.

    Raises:
        SettingError: A file cannot be read, or the key is not the certificate's.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:
        raise SettingError(f"{certificate}, {key}: no certificate with its key ({error}); make them again") from None
    return context


def _no_password() -> bytes:
    raise ValueError("the key is encrypted")


def serve_internal(app: ASGIApp, listener: socket.socket) -> Served:
    """Serve to our own processes, in plain HTTP; returns when it answers.

    Raises:
        NetworkError: It does not start.
    """
    server = _Server(_config(app, lifespan="on"))
    return _in_thread(server, listener, name="internal")


def serve_public(
    door: FrontDoor, listener: socket.socket, *, tls: ssl.SSLContext | None, name: str = "front door"
) -> Served:
    """Serve to everybody; returns when it answers.

    Args:
        door: The app.
        listener: Where.
        tls: See `server_tls`; None is plain HTTP, which is for this machine alone.
        name: Of the thread.

    Raises:
        NetworkError: It does not start.
    """
    _allow_files(door.limits.sockets)
    SSLProtocol.max_size = _TLS_BUFFER_BYTES
    config = _config(
        door,
        lifespan="off",
        http="h11",
        h11_max_incomplete_event_size=door.limits.head_bytes,
        timeout_keep_alive=int(door.limits.idle_s),
    )
    return _in_thread(_PublicServer(config, door, tls), listener, name=name)


def _allow_files(n_sockets: int) -> None:
    """As many open files as connections, bodies on their way and databases may need, if the system lets us."""
    try:
        import resource
    except ImportError:  # Windows knows no such limit
        return
    wanted = 2 * n_sockets + 512
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def _config(app: ASGIApp, **more: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="asyncio",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # else a header would say who the client is
        timeout_graceful_shutdown=3,
        ws="none",
        **more,
    )


def _in_thread(server: uvicorn.Server, listener: socket.socket, *, name: str) -> Served:
    host, port = listener.getsockname()[:2]
    # Accepted sockets inherit it. asyncio forgets it for them, and then each answer waits 40 ms for its second half.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name=name, daemon=True)
    thread.start()
    if not _wait(lambda: server.started or not thread.is_alive(), timeout_s=_START_S) or not server.started:
        listener.close()
        raise NetworkError(f"{host}:{port}: the {name} did not start")
    return Served(host, port, server, thread)


def _wait(condition: Callable[[], bool], *, timeout_s: float) -> bool:
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def _own_host(accepted: socket.socket) -> str:
    """The address of ours that it came to; empty where it is gone already."""
    with suppress(OSError):
        return accepted.getsockname()[0]
    return ""


class _Server(uvicorn.Server):
    """uvicorn, with few threads for what blocks.

    Nearly all of that is Flower writing to SQLite, one at a time, and whoever finds it locked sleeps and tries again.
    In one pair of runs with two hundred workers few threads took a third less CPU than the default of forty; answers
    came no sooner.
    """

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept."""
        current_default_thread_limiter().total_tokens = _THREADS
        await super().startup(sockets=sockets)


class _PublicServer(_Server):
    """uvicorn, but for the accepting: each connection is counted, and dropped when its time is up."""

    def __init__(self, config: uvicorn.Config, door: FrontDoor, tls: ssl.SSLContext | None) -> None:
        super().__init__(config)
        self._door, self._limits, self._tls = door, door.limits, tls
        self._proxies = door.proxies
        self._connections = Sockets(door.limits, self._proxies.knows)
        self._background: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept."""
        await super().startup(sockets=[])
        for listener in sockets or []:
            listener.setblocking(False)
            self._begin(self._accept(listener))
        self._begin(self._drop_overdue())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, end what would go on for ever, then end as uvicorn does."""
        for task in list(self._background):
            task.cancel()
        self._door.close()
        await super().shutdown(sockets)

    def _begin(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno != errno.ECONNABORTED:  # out of files or of memory: some will be free soon
                    await asyncio.sleep(self._limits.tick_s)
                continue
            connection = self._admit(accepted, address[0], loop.time())
            if connection is None:
                accepted.close()
            else:
                connection.abort = self._begin(self._greet(accepted, connection)).cancel

    def _admit(self, accepted: socket.socket, host: str, at_s: float) -> Connection | None:
        if self._proxies.only and not self._proxies.hears(host, _own_host(accepted)):
            return None
        return self._connections.admit(host, Phase.HEAD if self._tls is None else Phase.HANDSHAKE, at_s)

    async def _hear_proxy(self, accepted: socket.socket, connection: Connection) -> None:
        """Learn whose connection it is, where a proxy passes it on that says so first."""
        if not (self._proxies.speak_first and self._proxies.knows(connection.host)):
            return
        patience_s = self._limits.handshake_s
        if is_here(connection.host, _own_host(accepted)) and not await begins_with_line(accepted, timeout_s=patience_s):
            return  # this machine's own question: a proxy that speaks first does so for everybody
        host = await read_proxy_line(accepted, timeout_s=patience_s)
        if host is not None and not self._connections.came_from(connection, host):
            raise ConnectionRefusedError("too many connections from there")

    async def _greet(self, accepted: socket.socket, connection: Connection) -> None:
        """The handshake; after it the protocol lives by itself."""
        loop = asyncio.get_running_loop()
        timeouts = {}
        if self._tls is not None:
            timeouts = {
                "ssl_handshake_timeout": self._limits.handshake_s,
                "ssl_shutdown_timeout": self._limits.handshake_s,
            }
        try:
            await self._hear_proxy(accepted, connection)
            await loop.connect_accepted_socket(lambda: self._protocol(connection), accepted, ssl=self._tls, **timeouts)
        except OSError:
            self._connections.release(connection)
            accepted.close()
        except asyncio.CancelledError:
            self._connections.release(connection)
            accepted.close()
            raise

    def _protocol(self, connection: Connection) -> DoorProtocol:
        return DoorProtocol(
            connection,
            lambda: self._connections.release(connection),
            asyncio.get_running_loop().time,
            config=self.config,
            server_state=self.server_state,
            app_state={},
        )

    async def _drop_overdue(self) -> None:
        while True:
            await asyncio.sleep(self._limits.tick_s)
            self._connections.drop_overdue(asyncio.get_running_loop().time())

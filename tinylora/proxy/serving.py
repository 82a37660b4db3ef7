"""The port, the signals, the end. SIGINT or SIGTERM lets requests under way end; then the process does."""

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import uvicorn

from tinylora.errors import NetworkError, SettingError
from tinylora.proxy.app import Limits, make_app
from tinylora.proxy.choosing import Chooser
from tinylora.proxy.upstream import Upstream
from tinylora.text_router import TextRouter

GRACE_S = 10
"""For requests under way when the end is asked for."""
MOST_REQUESTS = 1024
"""At once; more are told that there are too many."""
_LOCAL = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Place:
    """Where the router is, and what it is in front of."""

    host: str
    port: int
    name: str
    """Of the tree, as a model."""
    upstream: str
    base_model: str = ""

    def check(self) -> None:
        """Refuse what cannot work, before anything is loaded.

        Raises:
            SettingError: The server's address is no URL, or the tree is called as a leaf.
        """
        parts = urlsplit(self.upstream)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise SettingError(f"--upstream {self.upstream}: expected an address such as http://127.0.0.1:8000")
        if not self.name or self.name.startswith("leaf-"):
            raise SettingError(f"--name {self.name!r}: expected a name that is no leaf's, such as tree")


def serve(
    router: TextRouter, place: Place, *, timeout_s: float, max_body_bytes: int, say: Callable[[str], object]
) -> None:
    """Serve until a signal asks for the end.

    Args:
        router: Chooses.
        place: Where, and in front of what.
        timeout_s: Longest silence of the server.
        max_body_bytes: Of a request.
        say: Takes lines for people.

    Raises:
        NetworkError: The address cannot be opened.
    """
    listener = listen(place.host, place.port)
    with listener, _signals_are_an_end():
        asyncio.run(_serve(router, place, timeout_s, max_body_bytes, say, listener))


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        NetworkError: The address cannot be opened.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        reason = error.strerror or error
        raise NetworkError(f"{host}:{port}: {reason}; choose another --host or --port") from None
    # Accepted sockets inherit it. asyncio forgets it for them, and then each answer waits 40 ms for its second half.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


async def _serve(
    router: TextRouter,
    place: Place,
    timeout_s: float,
    max_body_bytes: int,
    say: Callable[[str], object],
    listener: socket.socket,
) -> None:
    upstream = Upstream(place.upstream, timeout_s=timeout_s, base=place.base_model, fallback=router.base_id)
    chooser = Chooser(router)
    port = listener.getsockname()[1]
    shown = f"[{place.host}]" if ":" in place.host else place.host
    say(f"http://{shown}:{port}/v1 routes model {place.name!r} to {len(chooser.names)} leaves at {upstream.url}")
    if place.host not in _LOCAL:
        say("everybody who reaches this address may use it: there is no key here but what the server asks for")
    app = make_app(chooser, upstream, name=place.name, limits=Limits(body_bytes=max_body_bytes))
    config = uvicorn.Config(
        app,
        loop="asyncio",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        limit_concurrency=MOST_REQUESTS,
        timeout_graceful_shutdown=GRACE_S,
    )
    looking = asyncio.create_task(_tell_what_is_missing(upstream, chooser, say))
    await uvicorn.Server(config).serve(sockets=[listener])
    looking.cancel()


async def _tell_what_is_missing(upstream: Upstream, chooser: Chooser, say: Callable[[str], object]) -> None:
    """What somebody should know soon; the server may come up later, so it is no error."""
    found = await upstream.models()
    if found is None:
        say(f"{upstream.url}: tells no models yet; requests are passed on nevertheless")
    elif missing := sorted(set(chooser.names) - {one["id"] for one in found}):
        say(f"{upstream.url}: has no model {', '.join(missing[:8])}; give it the exported leaves by these names")


@contextmanager
def _signals_are_an_end() -> Iterator[None]:
    """Uvicorn ends by SIGINT and SIGTERM, and then sends itself the same again: to nobody, for this is a good end."""
    old = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)

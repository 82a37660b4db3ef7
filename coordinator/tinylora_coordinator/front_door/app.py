"""Everything that happens to a request at the door, in order: what it asks for, its length, who asks; then its answer.

The dashboard is one more app behind it: what is its own is told by the very bytes of the path, and whose page a request
comes from is judged here, for all of its routes alike. Who may see or do what is the dashboard's affair.

No header of a stranger reaches Flower but those that Flower's fleet reads, and no spelling of the path but ours:
whatever the rest of Flower would obey is not passed on.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tinylora.flower.enrolment import JOIN_PATH
from tinylora.flower.link import FLEET_PATHS, PublicRoutes
from tinylora_coordinator.front_door.bodies import Bodies, ClientGone, SpoolError, TooMany
from tinylora_coordinator.front_door.crowd import Crowd
from tinylora_coordinator.front_door.guard import AllowList, judge_head, judge_length, length_of
from tinylora_coordinator.front_door.limits import Limits
from tinylora_coordinator.front_door.node_auth import AUTH_HEADERS, NodeAuth
from tinylora_coordinator.front_door.protocol import CONNECTION
from tinylora_coordinator.front_door.sockets import Connection, place_of
from tinylora_coordinator.front_door.streams import Streams
from tinylora_coordinator.front_door.tries import Tries
from tinylora_coordinator.heads import Refusal
from tinylora_coordinator.proxies import NO_PROXIES, Proxies
from tinylora_coordinator.sites import judge_host, judge_site

_FLEET_HEADERS = (*AUTH_HEADERS, b"content-type", b"content-length", b"accept", b"user-agent")
_LARGE_ANSWERS = "/v1/fleet/pull-object"
_PAGE_HEADERS = frozenset(
    (
        b"accept", b"accept-encoding", b"accept-language", b"authorization", b"content-length", b"content-type",
        b"cookie", b"host", b"if-match", b"if-modified-since", b"if-none-match", b"if-range", b"last-event-id",
        b"origin", b"range", b"sec-fetch-dest", b"sec-fetch-mode", b"sec-fetch-site", b"user-agent",
    )
)  # fmt: skip
SIGN_IN_PATH = "/api/v1/session"
STREAM_PATH = "/api/v1/events"
_POLICY = "content-security-policy"
_ALWAYS = {
    "x-content-type-options": "nosniff",
    _POLICY: "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}
_STRANGER = Refusal(
    401, "signature", "no worker of this run signed this request, or not now; join first, check the clock"
)
_TOO_OFTEN = Refusal(429, "rate", "too many tries; wait a minute", {"retry-after": "60"})
_TOO_MANY = Refusal(429, "bodies", "too many uploads of one worker at once", {"retry-after": "5"})
_TOO_MANY_STREAMS = Refusal(429, "streams", "too many are watching from there, or in all", {"retry-after": "10"})
_CROWDED = Refusal(429, "requests", "too many requests of one address at once", {"retry-after": "5"})
_NO_SPACE = Refusal(503, "disk", "the coordinator's disk takes no uploads now", {"retry-after": "60"})


@dataclass(frozen=True)
class Dashboard:
    """The dashboard as the door knows it.

    Attributes:
        app: Answers what is its own; it is told in `scope["state"]["is_local"]` who came by the loopback listener.
        is_ours: Whether a request with this method and this path, as the bytes that came, is its own.
    """

    app: ASGIApp
    is_ours: Callable[[str, bytes], bool]


class FrontDoor:
    """The ASGI app of a listener.

    Args:
        routes: What answers strangers besides the fleet's paths.
        fleet: Flower's app, for the fleet's paths; None: this listener has none of them.
        nodes: Tells workers from strangers, for the fleet.
        limits: Caps.
        spool: Where large bodies are kept while they arrive; the system's temporary folder by default.
        tries: Joins in vain, by address.
        dashboard: The dashboard, if there is one.
        own_hosts: The Host headers that are answered; None: any. With them this is the loopback listener.
        proxies: Who may say for whom he asks.
    """

    def __init__(
        self,
        routes: PublicRoutes,
        fleet: ASGIApp | None = None,
        nodes: NodeAuth | None = None,
        *,
        limits: Limits | None = None,
        spool: Path | None = None,
        tries: Tries | None = None,
        dashboard: Dashboard | None = None,
        own_hosts: frozenset[bytes] | None = None,
        proxies: Proxies = NO_PROXIES,
    ) -> None:
        self.limits, self.proxies = limits or Limits(), proxies
        self._routes, self._dashboard, self._own_hosts = dict(routes), dashboard, own_hosts
        self._fleet = None if fleet is None or nodes is None else (fleet, nodes)
        self._allowed = AllowList([*self._routes, *(("POST", path) for path in FLEET_PATHS if self._fleet)])
        self._bodies = Bodies(self.limits, spool)
        self._tries = tries or Tries(self.limits.tries_per_minute)
        self._sign_ins = Tries(self.limits.tries_per_minute)
        self._streams = Streams(self.limits)
        self._crowd = Crowd(self.limits.sockets_per_address)

    @property
    def public(self) -> list[tuple[str, str]]:
        """What is answered besides the dashboard: (METHOD, exact path)."""
        return self._allowed.routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        connection: Connection = scope["state"][CONNECTION]
        scope = self._as_sent(scope, connection)
        is_page = self._is_page(scope)
        send = _with_safe_headers(send, is_tls=scope["scheme"] == "https", is_page=is_page)
        if refusal := self._judge(scope, is_page):
            await _refuse(refusal, scope, receive, send)
            return
        place = _place(scope)
        if not self._crowd.has_room(place):
            await _refuse(_CROWDED, scope, receive, send)
            return
        receive = _timed(receive, connection, asyncio.get_running_loop().time)
        with suppress(ClientGone), self._crowd.one(place):
            try:
                await self._answer(scope, receive, send, connection, is_page)
            except TooMany:
                await _refuse(_TOO_MANY, scope, receive, send)
            except SpoolError:
                await _refuse(_NO_SPACE, scope, receive, send)

    def _as_sent(self, scope: Scope, connection: Connection) -> Scope:
        """The request as its sender sent it: his address, and https where a proxy took it off."""
        client = self.proxies.client_of(connection.host, scope["headers"])
        scheme = "https" if self.proxies.is_https(connection.host) else scope["scheme"]
        return {**scope, "client": (client, (scope["client"] or ("", 0))[1]), "scheme": scheme}

    def close(self) -> None:
        """End all streams, in the event loop of the door; the listener is about to be closed."""
        self._streams.close()

    async def _answer(self, scope: Scope, receive: Receive, send: Send, connection: Connection, is_page: bool) -> None:
        if is_page:
            await self._show(scope, receive, send)
        elif scope["path"] in FLEET_PATHS:
            await self._pass_to_fleet(scope, receive, send, connection)
        elif scope["path"] == JOIN_PATH:
            await self._let_try(self._tries, (400, 403), self._route, scope, receive, send)
        else:
            await self._route(scope, receive, send)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        whole = await self._bodies.small(receive) if scope["method"] == "POST" else receive
        await self._routes[scope["method"], scope["path"]](scope, whole, send)

    def _is_page(self, scope: Scope) -> bool:
        """Whether the dashboard answers this. A path that is spelled in another way than plainly is nobody's."""
        method, path = scope["method"], scope["raw_path"]
        if self._dashboard is None or (method, scope["path"]) in self._routes or scope["path"].encode() != path:
            return False
        if method == "HEAD":
            return scope["path"] != STREAM_PATH and self._dashboard.is_ours("GET", path)
        return self._dashboard.is_ours(method, path)

    def _judge(self, scope: Scope, is_page: bool) -> Refusal | None:
        headers = scope["headers"]
        if scope["method"] != "POST":
            limit = 0
        else:
            limit = self.limits.fleet_body_bytes if scope["path"] in FLEET_PATHS else self.limits.small_body_bytes
        return (
            (judge_host(headers, self._own_hosts) if self._own_hosts is not None else None)
            or (None if is_page else self._allowed.judge(scope))
            or judge_head(headers, self.limits.head_bytes)
            or judge_length(headers, limit)
            or (judge_site(scope["method"], headers) if is_page else None)
        )  # fmt: skip

    async def _pass_to_fleet(self, scope: Scope, receive: Receive, send: Send, connection: Connection) -> None:
        assert self._fleet is not None  # else its paths are not allowed
        fleet, nodes = self._fleet
        node = await nodes.admit(scope["headers"])
        connection.is_node = node is not None
        if node is None:
            await _refuse(_STRANGER, scope, receive, send)
        elif length_of(scope["headers"]) <= self.limits.large_body_bytes:
            whole = await self._bodies.small(receive)
            if scope["path"] == _LARGE_ANSWERS:
                await self._bodies.answer(lambda keep: fleet(_for_flower(scope), whole, keep), send)
            else:
                await fleet(_for_flower(scope), whole, send)
        else:
            async with self._bodies.large(receive, node) as whole:
                await fleet(_for_flower(scope), whole, send)

    async def _show(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._dashboard is not None  # else nothing is its own
        asked = (scope["method"], scope["path"])
        scope = _for_dashboard(scope, is_local=self._own_hosts is not None)
        if asked == ("GET", STREAM_PATH):
            await self._stream(self._dashboard.app, scope, receive, send)
            return
        whole = await self._bodies.small(receive) if scope["method"] == "POST" else receive
        if asked == ("POST", SIGN_IN_PATH):
            await self._let_try(self._sign_ins, (400, 401, 403, 422), self._dashboard.app, scope, whole, send)
        else:
            await self._dashboard.app(scope, whole, send)

    async def _stream(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        place = _place(scope)
        if self._streams.has_room(place):
            await self._streams.follow(app, scope, receive, send, place=place)
        else:
            await _refuse(_TOO_MANY_STREAMS, scope, receive, send)

    async def _let_try(
        self, tries: Tries, in_vain: tuple[int, ...], app: ASGIApp, scope: Scope, receive: Receive, send: Send
    ) -> None:
        place = _place(scope)
        begun = tries.begin(place)
        if begun is None:
            await _refuse(_TOO_OFTEN, scope, receive, send)
            return

        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] not in in_vain:
                tries.forgive(place, begun)
            await send(message)

        await app(scope, receive, watch)


def _place(scope: Scope) -> str:
    return place_of((scope["client"] or ("",))[0])


def _for_dashboard(scope: Scope, *, is_local: bool) -> Scope:
    """The request as the dashboard needs it: no header of a proxy's, and nothing of the door's.

    Of a HEAD it sees a GET: the HTTP protocol leaves the body out.
    """
    headers = [(key, value) for key, value in scope["headers"] if key in _PAGE_HEADERS]
    method = "GET" if scope["method"] == "HEAD" else scope["method"]
    return {**scope, "method": method, "headers": headers, "state": {"is_local": is_local}}


def _for_flower(scope: Scope) -> Scope:
    """The request as Flower needs it, made anew of what we know."""
    path = scope["path"]
    return {
        **{key: scope[key] for key in ("type", "asgi", "http_version", "server", "client", "scheme", "method")},
        "root_path": "",
        "path": path,
        "raw_path": path.encode("ascii"),
        "query_string": b"",
        "headers": [(key, value) for key, value in scope["headers"] if key in _FLEET_HEADERS],
        "state": {},
    }


def _timed(receive: Receive, connection: Connection, clock: Callable[[], float]) -> Receive:
    """Asking for the body starts its clock."""

    async def timed() -> Message:
        connection.read_on(clock())
        return await receive()

    return timed


def _with_safe_headers(send: Send, *, is_tls: bool, is_page: bool) -> Send:
    """Headers for browsers. A page of the dashboard may need scripts and pictures of its own, and says so itself."""
    extra = _ALWAYS | ({"strict-transport-security": "max-age=31536000"} if is_tls else {})

    async def send_safely(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            policy = headers.get(_POLICY) if is_page else None
            headers.update(extra if policy is None else extra | {_POLICY: policy})
            headers.setdefault("cache-control", "no-store")
        await send(message)

    return send_safely


async def _refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer, and hang up: whatever of a body is on its way is not read."""
    headers = {"connection": "close", **refusal.headers}
    body = {"error": refusal.error, "reason": refusal.reason}
    await JSONResponse(body, refusal.status, headers)(scope, receive, send)

"""Everything that happens to a request at the door, in order: what it asks for, its length, who asks; then its answer.

No header of a stranger reaches Flower but those that Flower's fleet reads, and no spelling of the path but ours:
whatever the rest of Flower would obey is not passed on.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tinylora.flower.enrolment import JOIN_PATH
from tinylora.flower.link import FLEET_PATHS, PublicRoutes
from tinylora_coordinator.front_door.bodies import Bodies, ClientGone, SpoolError, TooMany
from tinylora_coordinator.front_door.guard import AllowList, Refusal, judge_head, judge_length, length_of
from tinylora_coordinator.front_door.limits import Limits
from tinylora_coordinator.front_door.node_auth import AUTH_HEADERS, NodeAuth
from tinylora_coordinator.front_door.protocol import CONNECTION
from tinylora_coordinator.front_door.sockets import Connection, place_of
from tinylora_coordinator.front_door.tries import Tries

_FLEET_HEADERS = (*AUTH_HEADERS, b"content-type", b"content-length", b"accept", b"user-agent")
_LARGE_ANSWERS = "/v1/fleet/pull-object"
_ALWAYS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}
_STRANGER = Refusal(
    401, "signature", "no worker of this run signed this request, or not now; join first, check the clock"
)
_TOO_OFTEN = Refusal(429, "rate", "too many tries; wait a minute", {"retry-after": "60"})
_TOO_MANY = Refusal(429, "bodies", "too many uploads of one worker at once", {"retry-after": "5"})
_NO_SPACE = Refusal(503, "disk", "the coordinator's disk takes no uploads now", {"retry-after": "60"})


class FrontDoor:
    """The public ASGI app.

    Args:
        routes: What answers strangers besides the fleet's paths.
        fleet: Flower's app, for the fleet's paths.
        nodes: Tells workers from strangers.
        limits: Caps.
        spool: Where large bodies are kept while they arrive; the system's temporary folder by default.
        tries: Joins in vain, by address.
    """

    def __init__(
        self,
        routes: PublicRoutes,
        fleet: ASGIApp,
        nodes: NodeAuth,
        *,
        limits: Limits | None = None,
        spool: Path | None = None,
        tries: Tries | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self._routes, self._fleet, self._nodes = dict(routes), fleet, nodes
        self._allowed = AllowList([*self._routes, *(("POST", path) for path in FLEET_PATHS)])
        self._bodies = Bodies(self.limits, spool)
        self._tries = tries or Tries(self.limits.tries_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        send = _with_safe_headers(send, is_tls=scope["scheme"] == "https")
        if refusal := self._judge(scope):
            await _refuse(refusal, scope, receive, send)
            return
        connection: Connection = scope["state"][CONNECTION]
        receive = _timed(receive, connection, asyncio.get_running_loop().time)
        with suppress(ClientGone):
            try:
                await self._answer(scope, receive, send, connection)
            except TooMany:
                await _refuse(_TOO_MANY, scope, receive, send)
            except SpoolError:
                await _refuse(_NO_SPACE, scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, connection: Connection) -> None:
        if scope["path"] in FLEET_PATHS:
            await self._pass_to_fleet(scope, receive, send, connection)
        elif scope["path"] == JOIN_PATH:
            await self._let_try(scope, receive, send)
        else:
            await self._route(scope, receive, send)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        whole = await self._bodies.small(receive) if scope["method"] == "POST" else receive
        await self._routes[scope["method"], scope["path"]](scope, whole, send)

    def _judge(self, scope: Scope) -> Refusal | None:
        headers = scope["headers"]
        if scope["method"] != "POST":
            limit = 0
        else:
            limit = self.limits.fleet_body_bytes if scope["path"] in FLEET_PATHS else self.limits.small_body_bytes
        return (
            self._allowed.judge(scope)
            or judge_head(headers, self.limits.head_bytes)
            or judge_length(headers, limit)
        )  # fmt: skip

    async def _pass_to_fleet(self, scope: Scope, receive: Receive, send: Send, connection: Connection) -> None:
        node = await self._nodes.admit(scope["headers"])
        connection.is_node = node is not None
        if node is None:
            await _refuse(_STRANGER, scope, receive, send)
        elif length_of(scope["headers"]) <= self.limits.large_body_bytes:
            whole = await self._bodies.small(receive)
            if scope["path"] == _LARGE_ANSWERS:
                await self._bodies.answer(lambda keep: self._fleet(_for_flower(scope), whole, keep), send)
            else:
                await self._fleet(_for_flower(scope), whole, send)
        else:
            async with self._bodies.large(receive, node) as whole:
                await self._fleet(_for_flower(scope), whole, send)

    async def _let_try(self, scope: Scope, receive: Receive, send: Send) -> None:
        place = place_of((scope["client"] or ("",))[0])
        begun = self._tries.begin(place)
        if begun is None:
            await _refuse(_TOO_OFTEN, scope, receive, send)
            return

        async def watch(message: Message) -> None:
            if message.get("status", 0) not in (0, 400, 403):
                self._tries.forgive(place, begun)
            await send(message)

        await self._route(scope, receive, watch)


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


def _with_safe_headers(send: Send, *, is_tls: bool) -> Send:
    extra = _ALWAYS | ({"strict-transport-security": "max-age=31536000"} if is_tls else {})

    async def send_safely(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.update(extra)
            headers.setdefault("cache-control", "no-store")
        await send(message)

    return send_safely


async def _refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer, and hang up: whatever of a body is on its way is not read."""
    headers = {"connection": "close", **refusal.headers}
    body = {"error": refusal.error, "reason": refusal.reason}
    await JSONResponse(body, refusal.status, headers)(scope, receive, send)

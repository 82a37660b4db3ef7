"""Around every answer: what browsers shall forbid, how long a body may be, and that nothing unforeseen gets out."""

import logging

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tinylora_coordinator.dashboard.answers import Refusal, refuse

BODY_BYTES = 2**16
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""For what a browser shows as a page; all else may do nothing at all."""
_ALWAYS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
_NOTHING_AT_ALL = "default-src 'none'; frame-ancestors 'none'"
_log = logging.getLogger(__name__)


class Shell:
    """Middleware; see the module.

    Args:
        app: What answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(receive, Headers(scope=scope))
        safe = _Safe(send, is_api=scope["path"].startswith("/api/"))
        try:
            if body.is_declared_too_long:
                raise _TOO_LONG
            await self._app(scope, body.receive, safe.send)
        except Refusal as refusal:
            if safe.has_begun:
                raise
            await refuse(refusal)(scope, receive, safe.send)
        except Exception:
            _log.exception("%s %s: not answered", scope["method"], scope["path"])
            if safe.has_begun:
                raise
            await refuse(_UNFORESEEN)(scope, receive, safe.send)


_TOO_LONG = Refusal(413, "length", f"at most {BODY_BYTES} bytes", {"connection": "close"})
_UNFORESEEN = Refusal(500, "unforeseen", "the coordinator has a fault; its log says more")


class _Body:
    """What a request brings, counted while it is read."""

    def __init__(self, receive: Receive, headers: Headers) -> None:
        self._receive, self._n = receive, 0
        length = headers.get("content-length", "0")
        self.is_declared_too_long = not length.isdecimal() or len(length) > 12 or int(length) > BODY_BYTES

    async def receive(self) -> Message:
        message = await self._receive()
        self._n += len(message.get("body", b""))
        if self._n > BODY_BYTES:
            raise _TOO_LONG
        return message


class _Safe:
    """Puts the headers in that no answer goes without."""

    def __init__(self, send: Send, *, is_api: bool) -> None:
        self._send, self._is_api, self.has_begun = send, is_api, False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            headers = MutableHeaders(scope=message)
            for name, value in _ALWAYS.items():
                headers.setdefault(name, value)
            # 304 says nothing of a type, and its headers take the place of those that the browser has kept.
            is_kept = message["status"] == 304 and not self._is_api
            is_page = is_kept or headers.get("content-type", "").startswith("text/html")
            headers.setdefault("content-security-policy", PAGE_POLICY if is_page else _NOTHING_AT_ALL)
            headers.setdefault("cache-control", "no-store")
        await self._send(message)

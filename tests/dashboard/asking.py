"""Ask an app of ours as a browser or a program would, without a socket."""

import asyncio
from typing import Any

import httpx
from starlette.types import ASGIApp, Receive, Scope, Send


class Asking:
    """One reader of an app.

    Args:
        app: The app.
        is_local: Whether he comes by the loopback listener.
        host: As which he asks.
    """

    def __init__(self, app: ASGIApp, *, is_local: bool = False, host: str = "run.example.org:8443") -> None:
        self._app = _marked(app) if is_local else app
        self._base_url = "http://127.0.0.1:8444" if is_local else f"https://{host}"

    def __call__(self, method: str, path: str, **more: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport, base_url=self._base_url) as client:
                return await client.request(method, path, **more)

        return asyncio.run(ask())

    def get(self, path: str, **headers: str) -> httpx.Response:
        """With headers whose names have `_` for `-`."""
        return self("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})


def _marked(app: ASGIApp) -> ASGIApp:
    async def marked(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": {"is_local": True}}, receive, send)

    return marked

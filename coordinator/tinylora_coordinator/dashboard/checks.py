"""Who may ask what, as FastAPI dependencies; and whether a request that changes something comes from our own page.

Whoever came by the loopback listener is the operator because he sits at the machine. So is every page that his browser
shows, if it may: a foreign page could send a form there, or have its own name lead to 127.0.0.1. Hence on that listener
the Host must be this machine's, and whatever changes something must come from the page of that very Host, or from a
program that is no browser.
"""

import re
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from tinylora_coordinator.dashboard.answers import Refusal
from tinylora_coordinator.dashboard.services import Access, Who
from tinylora_coordinator.sites import judge_site

_LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{1,5})?", re.ASCII)


@dataclass(frozen=True)
class Asker:
    """A request, and whose it is."""

    request: Request
    who: Who

    @property
    def address(self) -> str:
        """scheme://host[:port] by which he came; empty where the Host is none."""
        return address_of(self.request)

    @property
    def place(self) -> str:
        """What many of his requests have in common."""
        return self.request.client.host if self.request.client else ""


def address_of(request: Request) -> str:
    """scheme://host[:port] of a request; empty where its Host is none."""
    host = request.headers.get("host", "")
    return f"{request.url.scheme}://{host}" if _HOST.fullmatch(host) else ""


def is_local(request: Request) -> bool:
    """Whether it came by the loopback listener; the listener says so."""
    return bool(request.scope.get("state", {}).get("is_local", False))


async def identify(request: Request) -> Who:
    """Who sent a request, whatever he may do."""
    access: Access = request.app.state.access
    if "authorization" in request.headers or "cookie" in request.headers:  # it may have to be looked up
        return await request.app.state.threads(access.who, request.headers, is_local(request))
    return access.who(request.headers, is_local(request))


async def anybody(request: Request) -> Asker:
    """Everybody may ask this.

    Raises:
        Refusal: It comes from a foreign page.
    """
    _judge_origin(request)
    return Asker(request, await identify(request))


async def viewer(asker: Annotated[Asker, Depends(anybody)]) -> Asker:
    """Who may look.

    Raises:
        Refusal: He may not.
    """
    if asker.who.role == "nobody":
        raise Refusal(401, "token", "this run is shown to those who have a token; sign in")
    return asker


async def admin(asker: Annotated[Asker, Depends(viewer)]) -> Asker:
    """The operator.

    Raises:
        Refusal: It is somebody else.
    """
    if asker.who.role != "admin":
        raise Refusal(403, "role", "this is for the operator: use the coordinator's own machine, or the admin token")
    return asker


Anybody = Annotated[Asker, Depends(anybody)]
Viewer = Annotated[Asker, Depends(viewer)]
Admin = Annotated[Asker, Depends(admin)]


def _judge_origin(request: Request) -> None:
    if is_local(request) and _name_of(request.headers.get("host", "").lower()) not in _LOCAL_HOSTS:
        raise Refusal(403, "host", "this listener is asked as 127.0.0.1 or localhost")
    if found := judge_site(request.method, request.headers.raw):
        raise Refusal(found.status, found.error, found.reason)


def _name_of(host: str) -> str:
    """A Host without its port."""
    if not _HOST.fullmatch(host):
        return ""
    return host.rpartition(":")[0].strip("[]") if re.search(r":\d+$", host) else host.strip("[]")

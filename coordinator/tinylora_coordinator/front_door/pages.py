"""What anybody may read: that the coordinator lives, its CA, how the run stands, and the published bundle."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tinylora.flower.link import PublicRoutes
from tinylora_coordinator.front_door.bundle_page import bundle_page

HEALTH_PATH = "/health"
CA_PATH = "/ca.pem"
STATUS_PATH = "/api/v1/status"
BUNDLE_PATH = "/api/v1/bundle"


def public_pages(*, ca_file: Path | None, bundle_file: Path, status: Callable[[], Mapping[str, Any]]) -> PublicRoutes:
    """The pages that need nobody's key.

    Args:
        ca_file: The certificate that workers pin, PEM; None, and 404, where a public CA vouches for us.
        bundle_file: The published bundle, replaced as a whole; 404 while there is none.
        status: The run's status as JSON; called in a thread.
    """
    bundle = bundle_page(bundle_file)

    async def health(scope: Scope, receive: Receive, send: Send) -> None:
        await JSONResponse({"status": "ok"})(scope, receive, send)

    async def tell_status(scope: Scope, receive: Receive, send: Send) -> None:
        await JSONResponse(await run_in_threadpool(status))(scope, receive, send)

    return {
        ("GET", HEALTH_PATH): health,
        ("GET", CA_PATH): _ca_page(ca_file),
        ("GET", STATUS_PATH): tell_status,
        ("GET", BUNDLE_PATH): bundle,
        ("HEAD", BUNDLE_PATH): bundle,
    }


def _ca_page(ca_file: Path | None) -> ASGIApp:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if ca_file is not None and ca_file.is_file():
            page = Response(ca_file.read_bytes(), media_type="application/x-pem-file")
        else:
            page = JSONResponse({"error": "not_found", "reason": "this coordinator has no CA of its own"}, 404)
        await page(scope, receive, send)

    return answer

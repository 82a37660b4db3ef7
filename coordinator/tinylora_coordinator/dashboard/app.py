"""The routes of the dashboard, each a question to one of its services. FastAPI makes the OpenAPI of the API's.

What an answer holds is said in `documents`, who may ask in `checks`, what a request can be at all in `addresses`.
"""

import json
from collections.abc import Callable
from functools import cache
from typing import Annotated, TypeVar

from fastapi import FastAPI, Header, Path, Query
from starlette.responses import RedirectResponse, Response

from tinylora.errors import DataError, RefusedError
from tinylora_coordinator.dashboard import documents as doc
from tinylora_coordinator.dashboard.addresses import NODE, SHA256, TOKEN, WORKER
from tinylora_coordinator.dashboard.answers import (
    ALWAYS_ASK,
    Pace,
    Refusal,
    Threads,
    answer,
    has_it,
    json_answer,
    not_modified,
    packed,
    tagged_answer,
    to_json,
    zipped_tag,
)
from tinylora_coordinator.dashboard.checks import Admin, Anybody, Asker, Viewer, identify
from tinylora_coordinator.dashboard.failures import add_failures
from tinylora_coordinator.dashboard.file_answer import FileAnswer
from tinylora_coordinator.dashboard.lite import style, write_page
from tinylora_coordinator.dashboard.metrics import expose
from tinylora_coordinator.dashboard.pages import PAGE_PATHS, Pages
from tinylora_coordinator.dashboard.services import AdminDesk, Services, Who
from tinylora_coordinator.dashboard.shell import Shell
from tinylora_coordinator.dashboard.snapshots import Rested, Snapshots
from tinylora_coordinator.dashboard.stream import PACE_S, EventsResponse, Streams

T = TypeVar("T")

NodePath = Annotated[str, Path(pattern=f"^{NODE}$", description="`root` is the root.")]
WorkerId = Annotated[str, Path(pattern=f"^{WORKER}$")]
Sha256 = Annotated[str, Path(pattern=f"^{SHA256}$")]
TokenId = Annotated[str, Path(pattern=f"^{TOKEN}$")]
Seconds = Annotated[float, Query(ge=0, le=1e12, allow_inf_nan=False)]
REFUSALS: dict[int | str, dict[str, object]] = {
    code: {"model": doc.Failure} for code in (401, 403, 404, 409, 413, 415, 422, 429, 503)
}
OPENAPI_PATH = "/api/v1/openapi.json"
LOOKUPS_PER_MINUTE = 60
SIGN_INS_PER_MINUTE = 20
_N_THREADS = 4
_MOST_WAITING = 8
"""For what takes long: lookups, leaves to be packed, the plain page."""


def create_app(services: Services, *, pace_s: float = PACE_S) -> FastAPI:
    """The app: API, page, plain page and metrics. Nothing is asked of the services before the first request.

    Args:
        services: What it asks.
        pace_s: Between two events of one stream.
    """
    app = FastAPI(
        title="TinyLoRA dashboard",
        version="1",
        responses=REFUSALS,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        separate_input_output_schemas=False,  # in answers too, a field with a default may be left out
    )
    threads = Threads(_N_THREADS, "dashboard")
    app.state.threads = threads
    app.state.access = services.access
    app.state.snapshots = Snapshots(services.views)
    app.state.streams = Streams(services.views, threads, pace_s=pace_s)
    add_failures(app)
    _add_overview(app, services)
    _add_details(app, services)
    _add_routing(app, services)
    _add_artifacts(app, services)
    _add_session(app, services)
    _add_admin(app, services)
    _add_plain(app, services)
    _add_pages(app)
    app.add_middleware(Shell)
    return app


def close_streams(app: FastAPI) -> None:
    """End all streams of events, soon; from any thread.

    A server that stops waits for open answers. Call this first, and it need not wait for these.
    """
    app.state.streams.close()


def _add_overview(app: FastAPI, services: Services) -> None:
    snapshots: Snapshots = app.state.snapshots
    streams: Streams = app.state.streams
    threads: Threads = app.state.threads

    @app.get("/api/v1/state", response_model=doc.State)
    async def state(asker: Viewer) -> Response:
        snapshot = snapshots.fresh() or await threads(snapshots.take)
        return snapshot.answer(asker.request.headers)

    @app.get("/api/v1/workers", response_model=doc.WorkerList)
    async def workers(asker: Viewer) -> Response:
        snapshot = snapshots.fresh() or await threads(snapshots.take)
        headers = asker.request.headers
        if has_it(headers, snapshot.tag, zipped_tag(snapshot.tag)):
            return not_modified(snapshot.tag)
        listed = doc.WorkerList(position=snapshot.state.position, workers=snapshot.state.workers)
        return await threads(lambda: tagged_answer(to_json(listed), snapshot.tag, headers))

    @app.get(
        "/api/v1/events", status_code=200, response_class=EventsResponse, responses={200: {"model": doc.Patch}}
    )  # fmt: skip
    async def events(
        asker: Viewer,
        since: Annotated[str, Query(max_length=200)] = "",
        last_event_id: Annotated[str, Header()] = "",
    ) -> Response:
        async def still_may() -> bool:
            return (await identify(asker.request)).role != "nobody"

        return EventsResponse(streams.open(last_event_id or since, still_may))

    @cache
    def described() -> bytes:
        return json.dumps(app.openapi()).encode()

    @app.get(OPENAPI_PATH, include_in_schema=False)
    async def openapi(asker: Anybody) -> Response:
        headers = asker.request.headers
        return await threads(lambda: packed(described(), "application/json", headers))


def _add_details(app: FastAPI, services: Services) -> None:
    views = services.views
    threads: Threads = app.state.threads

    async def tell(asker: Asker, make: Callable[[], T | None], missing: str = "") -> Response:
        """A document of the present position, unless the reader has it."""
        tag = f'"{views.position}"'  # read first: what is younger than its tag is asked for again, and no harm done
        headers = asker.request.headers
        if has_it(headers, tag, zipped_tag(tag)):
            return not_modified(tag)
        return await threads(lambda: tagged_answer(_bytes_of(make(), missing), tag, headers))

    @app.get("/api/v1/nodes/{path}", response_model=doc.NodeDetail)
    async def node(path: NodePath, asker: Viewer) -> Response:
        return await tell(asker, lambda: views.node(_bits(path)), f"the tree has no node {path}")

    @app.get("/api/v1/workers/{worker}", response_model=doc.WorkerDetail)
    async def worker(worker: WorkerId, asker: Viewer) -> Response:
        return await tell(asker, lambda: views.worker(worker), "nobody knows this worker")

    @app.get("/api/v1/series", response_model=doc.Series)
    async def series(
        asker: Viewer,
        metric: doc.Metric,
        node: Annotated[str | None, Query(pattern=f"^{NODE}$")] = None,
        start_s: Seconds = 0.0,
        end_s: Seconds = 1e12,
        points: Annotated[int, Query(ge=2, le=1000)] = 200,
    ) -> Response:
        path = None if node is None else _bits(node)
        return await tell(asker, lambda: views.series(metric, path, start_s, max(start_s, end_s), points))

    @app.get("/api/v1/timeline", response_model=doc.Timeline)
    async def timeline(
        asker: Viewer,
        start_s: Seconds = 0.0,
        end_s: Seconds = 1e12,
        offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
        limit: Annotated[int, Query(ge=1, le=128)] = 64,
    ) -> Response:
        return await tell(asker, lambda: views.timeline(start_s, max(start_s, end_s), offset, limit))


def _add_routing(app: FastAPI, services: Services) -> None:
    views, look_up = services.views, services.look_up
    threads: Threads = app.state.threads
    slowly = Threads(2, "dashboard-lookup", most_waiting=_MOST_WAITING)
    pace = Pace(LOOKUPS_PER_MINUTE)

    @app.get("/api/v1/routing", response_model=doc.Routing)
    async def routing(asker: Viewer) -> Response:
        def tell() -> bytes:
            why_not = look_up.why_not()
            return to_json(views.routing().model_copy(update={"can_look_up": not why_not, "why_not": why_not}))

        return json_answer(await threads(tell), headers={"cache-control": "no-store"})

    @app.post("/api/v1/routing/lookup", response_model=doc.Lookup)
    async def look_a_text_up(asked: doc.LookupRequest, asker: Viewer) -> Response:
        def find() -> doc.Lookup:
            if why_not := look_up.why_not():
                raise Refusal(409, "no_lookup", why_not)
            try:
                return look_up(asked.text)
            except DataError as error:
                raise Refusal(422, "text", str(error)) from None

        pace.take(asker.place)
        return answer(await slowly(find))


def _add_artifacts(app: FastAPI, services: Services) -> None:
    artifacts = services.artifacts
    threads: Threads = app.state.threads
    slowly = Threads(1, "dashboard-leaf", most_waiting=_MOST_WAITING)

    @app.get("/api/v1/artifacts", response_model=doc.Artifacts)
    async def list_artifacts(asker: Viewer) -> Response:
        can_make = asker.who.role == "admin" and services.admin is not None
        return answer(await threads(artifacts.list, can_make))

    @app.post("/api/v1/artifacts", status_code=202, response_model=doc.Artifacts)
    async def make_bundle(asker: Admin) -> Response:
        _desk(services)
        await threads(artifacts.make)
        return answer(await threads(artifacts.list, True), 202)

    @app.get("/api/v1/bundles/{sha256}", response_class=FileAnswer, status_code=200, responses=_FILE)
    async def bundle(sha256: Sha256, asker: Viewer) -> Response:
        tag = f'"{sha256}"'
        if has_it(asker.request.headers, tag):
            return not_modified(tag)
        file = _there(await threads(artifacts.bundle, sha256), "there is no bundle of this hash")
        name = f"bundle-{sha256[:12]}.safetensors"
        return FileAnswer(file, name, "application/octet-stream", {"etag": tag, "cache-control": ALWAYS_ASK})

    @app.get("/api/v1/bundle", include_in_schema=False)
    async def published(asker: Viewer) -> Response:
        """For listeners that have no page of their own for it."""
        rows = (await threads(artifacts.list, False)).bundles
        row = _there(next((row for row in rows if row.is_published), None), "no bundle has been published yet")
        return RedirectResponse(f"/api/v1/bundles/{row.sha256}", 307)

    @app.get("/api/v1/leaves/{path}", response_class=FileAnswer, status_code=200, responses=_FILE)
    async def leaf(path: NodePath, asker: Viewer) -> Response:
        file = _there(await slowly(artifacts.leaf, _bits(path)), f"the tree has no leaf {path}, or nobody trained it")
        return FileAnswer(file, f"leaf-{path}.zip", "application/zip")

    @app.get("/api/v1/join", response_model=doc.JoinInfo)
    async def join(asker: Viewer) -> Response:
        return answer(await threads(services.join, asker.address))


_FILE: dict[int | str, dict[str, object]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
    206: {"description": "A part of it, by Range"},
    416: {"model": doc.Failure},
}


def _add_session(app: FastAPI, services: Services) -> None:
    access = services.access
    threads: Threads = app.state.threads
    pace = Pace(SIGN_INS_PER_MINUTE)

    def tell(who: Who) -> doc.Session:
        return doc.Session(
            role=who.role, is_local=who.is_local, expires_s=who.expires_s, needs_token=access.needs_token
        )  # fmt: skip

    @app.get("/api/v1/session", response_model=doc.Session)
    async def session(asker: Anybody) -> Response:
        return answer(tell(asker.who))

    @app.post("/api/v1/session", response_model=doc.Session)
    async def sign_in(asked: doc.SessionRequest, asker: Anybody) -> Response:
        pace.take(asker.place)
        try:
            found = await threads(access.sign_in, asked.token)
        except RefusedError as error:
            raise Refusal(401, "token", str(error)) from None
        if found is None:
            raise Refusal(401, "token", "this token is not of this run, or it has expired or was revoked")
        name, value, age_s, who = found
        response = answer(tell(who))
        _set_cookie(response, asker, name, value, age_s)
        return response

    @app.delete("/api/v1/session", response_model=doc.Session)
    async def sign_out(asker: Anybody) -> Response:
        rest = await threads(access.who, {}, asker.who.is_local)
        response = answer(tell(rest))
        _set_cookie(response, asker, access.cookie_name, "", 0)
        return response


def _add_admin(app: FastAPI, services: Services) -> None:
    threads: Threads = app.state.threads

    @app.get("/api/v1/admin", response_model=doc.AdminState)
    async def admin(asker: Admin) -> Response:
        return answer(await threads(_desk(services).state))

    @app.post("/api/v1/admin/orders", status_code=202, response_model=doc.OrderRow)
    async def order(asked: doc.OrderRequest, asker: Admin) -> Response:
        return answer(await threads(_desk(services).order, asked), 202)

    @app.post("/api/v1/admin/workers/{worker}/approve", response_model=doc.AdminState)
    async def approve(worker: WorkerId, asker: Admin) -> Response:
        desk = _desk(services)
        await threads(desk.approve, worker)
        return answer(await threads(desk.state))

    @app.get("/api/v1/admin/tokens", response_model=doc.TokenList)
    async def tokens(asker: Admin) -> Response:
        return answer(await threads(_desk(services).tokens))

    @app.post("/api/v1/admin/tokens", status_code=201, response_model=doc.NewToken)
    async def make_token(asked: doc.TokenRequest, asker: Admin) -> Response:
        return answer(await threads(_desk(services).make_token, asked, asker.address), 201)

    @app.delete("/api/v1/admin/tokens/{token_id}", response_model=doc.TokenList)
    async def revoke_token(token_id: TokenId, asker: Admin) -> Response:
        desk = _desk(services)
        await threads(desk.revoke_token, token_id)
        return answer(await threads(desk.tokens))


def _add_plain(app: FastAPI, services: Services) -> None:
    snapshots: Snapshots = app.state.snapshots
    streams: Streams = app.state.streams
    rarely = Threads(1, "dashboard-plain", most_waiting=_MOST_WAITING)

    def write(address: str) -> bytes:
        return write_page(snapshots.take().state, services.artifacts.list(False), services.join(address))

    pages = Rested(write)

    def scrape(accept: str) -> tuple[bytes, str]:
        machine = None if services.machine is None else services.machine()
        state, routing = snapshots.take().state, services.views.routing()
        return expose(state, streams.n_readers, accept, routing=routing, machine=machine)

    scraped = Rested(scrape)

    @app.get("/lite", include_in_schema=False)
    async def lite(asker: Viewer) -> Response:
        def tell() -> Response:
            return packed(pages.take(asker.address), "text/html; charset=utf-8", asker.request.headers)

        return await rarely(tell)

    @app.get("/lite.css", include_in_schema=False)
    async def lite_style() -> Response:
        return Response(style(), media_type="text/css", headers={"cache-control": "no-cache"})

    @app.get("/metrics", include_in_schema=False)
    async def metrics(asker: Viewer) -> Response:
        def tell() -> Response:
            headers = asker.request.headers
            return packed(*scraped.take(headers.get("accept", "")), headers)

        return await rarely(tell)


def _add_pages(app: FastAPI) -> None:
    pages = Pages()
    for path in PAGE_PATHS:
        app.add_route(path, pages.page, ["GET"], include_in_schema=False)
    for path in pages.files:
        if path != "/index.html":
            app.add_route(path, pages.file, ["GET"], include_in_schema=False)


def _bits(path: str) -> str:
    return "" if path == "root" else path


def _bytes_of(document: object, missing: str) -> bytes:
    return to_json(_there(document, missing))  # pyright: ignore[reportArgumentType]  (routes make documents alone)


def _there(found: T | None, missing: str) -> T:
    if found is None:
        raise Refusal(404, "not_found", missing)
    return found


def _desk(services: Services) -> AdminDesk:
    if services.admin is None:
        raise Refusal(404, "not_found", "a recorded run takes no orders")
    return services.admin


def _set_cookie(response: Response, asker: Asker, name: str, value: str, age_s: int) -> None:
    response.set_cookie(
        name, value, max_age=age_s, path="/", httponly=True, samesite="strict",
        secure=asker.request.url.scheme == "https",
    )  # fmt: skip

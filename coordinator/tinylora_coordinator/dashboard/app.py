"""The routes of the dashboard's API, each a question to the source. FastAPI makes the OpenAPI of them."""

from typing import Annotated

from fastapi import FastAPI, Path, Query
from fastapi.responses import StreamingResponse

from tinylora_coordinator.dashboard import documents as doc

NodePath = Annotated[str, Path(pattern=r"^(root|[01]{1,32})$", description="`root` is the root.")]
WorkerId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Sha256 = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]
TokenId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Seconds = Annotated[float, Query(ge=0, le=1e12)]
REFUSALS: dict[int | str, dict[str, object]] = {
    code: {"model": doc.Failure} for code in (401, 403, 404, 409, 413, 422, 429, 503)
}


def create_app() -> FastAPI:
    """The app; as yet, what each route takes and gives."""
    app = FastAPI(title="TinyLoRA dashboard", version="1", responses=REFUSALS, docs_url=None, redoc_url=None)

    @app.get("/api/v1/state")
    def state() -> doc.State: ...

    @app.get("/api/v1/events", response_class=StreamingResponse, responses={200: {"model": doc.Patch}})
    def events(since: str = "") -> None: ...

    @app.get("/api/v1/nodes/{path}")
    def node(path: NodePath) -> doc.NodeDetail: ...

    @app.get("/api/v1/workers")
    def workers() -> doc.WorkerList: ...

    @app.get("/api/v1/workers/{worker}")
    def worker(worker: WorkerId) -> doc.WorkerDetail: ...

    @app.get("/api/v1/series")
    def series(
        metric: doc.Metric,
        node: Annotated[str | None, Query(pattern=r"^(root|[01]{1,32})$")] = None,
        start_s: Seconds = 0.0,
        end_s: Seconds = 1e12,
        points: Annotated[int, Query(ge=2, le=1000)] = 200,
    ) -> doc.Series: ...

    @app.get("/api/v1/timeline")
    def timeline(
        start_s: Seconds = 0.0,
        end_s: Seconds = 1e12,
        offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
        limit: Annotated[int, Query(ge=1, le=128)] = 64,
    ) -> doc.Timeline: ...

    @app.get("/api/v1/routing")
    def routing() -> doc.Routing: ...

    @app.post("/api/v1/routing/lookup")
    def look_up(asked: doc.LookupRequest) -> doc.Lookup: ...

    @app.get("/api/v1/artifacts")
    def artifacts() -> doc.Artifacts: ...

    @app.post("/api/v1/artifacts", status_code=202)
    def make_bundle() -> doc.Artifacts: ...

    @app.get("/api/v1/bundles/{sha256}", response_class=StreamingResponse)
    def bundle(sha256: Sha256) -> None: ...

    @app.get("/api/v1/leaves/{path}", response_class=StreamingResponse)
    def leaf(path: NodePath) -> None: ...

    @app.get("/api/v1/join")
    def join() -> doc.JoinInfo: ...

    @app.get("/api/v1/session")
    def session() -> doc.Session: ...

    @app.post("/api/v1/session")
    def sign_in(asked: doc.SessionRequest) -> doc.Session: ...

    @app.delete("/api/v1/session")
    def sign_out() -> doc.Session: ...

    @app.get("/api/v1/admin")
    def admin() -> doc.AdminState: ...

    @app.post("/api/v1/admin/orders", status_code=202)
    def order(asked: doc.OrderRequest) -> doc.OrderRow: ...

    @app.post("/api/v1/admin/workers/{worker}/approve")
    def approve(worker: WorkerId) -> doc.AdminState: ...

    @app.get("/api/v1/admin/tokens")
    def tokens() -> doc.TokenList: ...

    @app.post("/api/v1/admin/tokens", status_code=201)
    def make_token(asked: doc.TokenRequest) -> doc.NewToken: ...

    @app.delete("/api/v1/admin/tokens/{token_id}")
    def revoke_token(token_id: TokenId) -> doc.TokenList: ...

    return app

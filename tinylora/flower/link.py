"""The coordinator's public end: flwr's own ASGI app, our join and state routes, and a guard in front of all. No torch.

A bare SuperLink lets anybody who reaches its port start runs, take tasks and register nodes, even with node
authentication on, and that is code execution. So the guard passes only what a worker needs; the rest of Flower's API
answers to the rounds side alone, which knows a header made afresh at each start.
"""

import hmac
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from tinylora.config import BaseFacts, RunSettings
from tinylora.errors import NetworkError, ProtocolError, RefusedError
from tinylora.flower.compat.link import (
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    LinkState,
    NodeStatus,
    NoOpControlAuthnPlugin,
    SuperLinkLifespan,
    SuperLinkLifespanConfig,
    create_app,
)
from tinylora.flower.enrolment import (
    JOIN_PATH,
    MAX_JOIN_BYTES,
    STATE_PATH,
    BaseClaim,
    JoinAnswer,
    JoinRequest,
    Phase,
    Refusal,
    StateAnswer,
    read_join_request,
)
from tinylora.flower.identity import worker_of
from tinylora.flower.messages import printable
from tinylora.protocol.documents import PROTOCOL_VERSION
from tinylora.protocol.envelope import read_public_key

ADMIN_HEADER = "x-tinylora-admin"
MAX_BODY_BYTES = 6 * 2**20
"""Flower cuts payloads in parts of 5 MiB."""

FLEET_PATHS = frozenset(
    f"/v1/fleet/{verb}"
    for verb in (
        "activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages",
        "pull-object", "push-object", "confirm-message-received",
    )
)  # fmt: skip
"""What our workers use. Not among them: registering without a token, and fetching an app."""
PUBLIC_PATHS = FLEET_PATHS | {"/health", JOIN_PATH, STATE_PATH}

_HEARTBEAT_S = 30.0


@dataclass(frozen=True)
class RunCard:
    """What a joining worker is told of the run, and what it must show."""

    settings: RunSettings
    base: BaseFacts
    token: str = field(repr=False)


@dataclass
class Link:
    """The link's app, not yet served. `phase` is what the state route tells; the coordinator sets it."""

    app: ASGIApp
    state: LinkState
    admin: str = field(repr=False)
    superexec_secret: bytes = field(repr=False)
    phase: Phase = "waiting"

    def online_workers(self) -> list[str]:
        """Names of the workers that are connected now."""
        return sorted(worker_of(node.public_key) for node in self.state.get_node_info(statuses=[NodeStatus.ONLINE]))


@dataclass(frozen=True)
class LinkSecrets:
    """What the rounds side shows to the link. Both ends get the same, and so does a link that is started again."""

    admin: str = field(repr=False, default_factory=lambda: secrets.token_hex(32))
    superexec_secret: bytes = field(repr=False, default_factory=lambda: secrets.token_bytes(32))


def create_link(database: Path, card: RunCard, known: LinkSecrets | None = None) -> Link:
    """Make the link over the SQLite file `database`, in which all that an earlier process of it knew is found again."""
    known = known or LinkSecrets()
    app = create_app(_lifespan_config(database, known.superexec_secret), SuperLinkLifespan)
    state = app.state.linkstate_factory.state()
    link = Link(_Guard(app, known.admin), state, admin=known.admin, superexec_secret=known.superexec_secret)
    _add_routes(app, link, card)
    return link


def _lifespan_config(database: Path, secret: bytes) -> SuperLinkLifespanConfig:
    return SuperLinkLifespanConfig(
        control_address="",
        health_server_address=None,
        host="127.0.0.1",
        port=0,
        insecure=True,
        certificates=None,
        superexec_auth_secret=secret,
        authn_plugin=NoOpControlAuthnPlugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type="grpc-rere",
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=str(database),
        isolation="process",
        runtime_dependency_install=False,
    )


def _add_routes(app: Any, link: Link, card: RunCard) -> None:
    async def tinylora_join(request: Request) -> JSONResponse:
        body = await request.body()
        return await run_in_threadpool(_answer_join, link.state, card, body)

    def tinylora_state() -> StateAnswer:
        return StateAnswer(run=card.settings.name, phase=link.phase, protocol=PROTOCOL_VERSION)

    app.add_api_route(JOIN_PATH, tinylora_join, methods=["POST"], include_in_schema=False)
    app.add_api_route(STATE_PATH, tinylora_state, methods=["GET"], include_in_schema=False)


# --- joining ----------------------------------------------------------------------------------------------------


def _answer_join(state: LinkState, card: RunCard, body: bytes) -> JSONResponse:
    """Read, judge, register, welcome."""
    try:
        request = read_join_request(body)
    except ProtocolError as error:
        return _refuse(400, Refusal(error="malformed", reason=str(error)))
    if refused := judge(request, card):
        return _refuse(403 if refused.error == "token" else 409, refused)
    public_pem = request.public_key.encode()
    try:
        read_public_key(public_pem)
        _register(state, public_pem, request.name)
    except (ProtocolError, RefusedError) as error:
        return _refuse(403, Refusal(error="key", reason=str(error)))
    answer = JoinAnswer(
        worker=worker_of(public_pem),
        run=card.settings.name,
        protocol=PROTOCOL_VERSION,
        settings=card.settings,
        base=card.base,
        time_s=time.time(),
    )
    return JSONResponse(answer.model_dump(mode="json"))


def judge(request: JoinRequest, card: RunCard) -> Refusal | None:
    """Why this worker may not take part, if so. The token comes first: without it nothing of the run is told."""
    if not hmac.compare_digest(request.token.encode(), card.token.encode()):
        reason = "the join token is wrong; ask the operator for the one in the run's folder, and copy all of it"
        return Refusal(error="token", reason=reason)
    if request.protocol != PROTOCOL_VERSION:
        expected, received = str(PROTOCOL_VERSION), str(request.protocol)
        reason = f"protocol: this run speaks version {expected}, this worker {received}; install the run's tinylora"
        return Refusal(error="protocol", reason=reason, expected=expected, received=received)
    if request.base is not None:
        return _judge_base(request.base, card.base)
    return None


def _judge_base(claim: BaseClaim, base: BaseFacts) -> Refusal | None:
    wanted = BaseClaim.of(base)
    for part, expected in wanted.model_dump().items():
        received = getattr(claim, part)
        if received != expected:
            reason = (
                f"base model: this run needs {base.base_id} with {part} {expected[:16]}, this worker has loaded one "
                f"with {received[:16]}; give the run's base with --base"
            )
            return Refusal(error="base", reason=reason, expected=expected, received=received)
    return None


def _register(state: LinkState, public_pem: bytes, name: str) -> None:
    """Add the key to Flower's nodes, with the worker's name; again is harmless.

    Raises:
        RefusedError: The key was unregistered: the worker is banned.
    """
    if state.get_node_id_by_public_key(public_pem) is not None:
        return
    try:
        shown = printable(name, at_most=80) or None
        state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, public_pem, _HEARTBEAT_S, name=shown)
    except ValueError:
        raise RefusedError("this worker has been removed from the run") from None


def _refuse(status: int, refusal: Refusal) -> JSONResponse:
    return JSONResponse(refusal.model_dump(mode="json"), status)


# --- the guard --------------------------------------------------------------------------------------------------


class _Guard:
    """ASGI middleware before everything: exact public paths and small bodies, or the admin header."""

    def __init__(self, app: ASGIApp, admin: str) -> None:
        self._app, self._admin = app, admin.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, or answer it with a refusal."""
        refusal = None if scope["type"] == "lifespan" else self._judge(scope)
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            status, reason = refusal
            await JSONResponse({"error": "forbidden", "reason": reason}, status)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _judge(self, scope: Scope) -> tuple[int, str] | None:
        headers = dict(scope["headers"])
        if hmac.compare_digest(headers.get(ADMIN_HEADER.encode(), b""), self._admin):
            return None
        if scope["type"] != "http" or scope["path"] not in PUBLIC_PATHS:
            return 403, "this address is not public"
        return _judge_length(scope, headers)


def _judge_length(scope: Scope, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
    """The declared length decides before a byte of the body is read; uvicorn reads no further than declared."""
    if b"transfer-encoding" in headers:
        return 411, "a body needs a content-length"
    limit = MAX_JOIN_BYTES if scope["path"] == JOIN_PATH else MAX_BODY_BYTES
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or int(length) > limit:
        return 413, f"at most {limit} bytes"
    return None


# --- serving ----------------------------------------------------------------------------------------------------


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


def serve_in_thread(app: ASGIApp, *, host: str = "127.0.0.1", port: int = 0) -> Served:
    """Serve `app`; returns when it answers. Port 0 takes a free one.

    Raises:
        NetworkError: The address cannot be opened.
    """
    listener = _listen(host, port)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="on",
        ws="none",
        timeout_graceful_shutdown=3,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="link", daemon=True)
    thread.start()
    if not _wait(lambda: server.started or not thread.is_alive(), timeout_s=30.0) or not server.started:
        listener.close()
        raise NetworkError(f"{host}:{port}: the link did not start")
    return Served(host, listener.getsockname()[1], server, thread)


def _listen(host: str, port: int) -> socket.socket:
    """Bind before uvicorn does, so that a used port is an error here and not a log line there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise NetworkError(
            f"{host}:{port}: {error.strerror or error}; choose another --host or --port, or stop what listens there"
        ) from None


def _wait(condition: Callable[[], bool], *, timeout_s: float) -> bool:
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True

"""flwr's own ASGI app and its state: all of it behind a guard for our rounds, the fleet's part for the door. No torch.

A bare SuperLink lets anybody who reaches its port start runs, take tasks and register nodes, even with node
authentication on, and that is code execution. So the whole app answers on a listener that this machine alone reaches,
and there only to those who know a header made afresh at each start. Strangers meet the coordinator's front door, which
passes on the fleet's paths alone.
"""

import hmac
import secrets
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from tinylora.errors import RefusedError
from tinylora.flower.compat.link import (
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    LinkState,
    NodeStatus,
    NoOpControlAuthnPlugin,
    RunStatus,
    Status,
    SubStatus,
    SuperLinkLifespan,
    SuperLinkLifespanConfig,
    create_app,
)
from tinylora.flower.enrolment import STATE_PATH, Phase, StateAnswer
from tinylora.flower.identity import worker_of
from tinylora.flower.texts import printable
from tinylora.protocol.documents import PROTOCOL_VERSION

ADMIN_HEADER = "x-tinylora-admin"

FLEET_PATHS = frozenset(
    f"/v1/fleet/{verb}"
    for verb in (
        "activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages",
        "pull-object", "push-object", "confirm-message-received",
    )
)  # fmt: skip
"""What our workers use, by POST. Not among them: registering without a token, and fetching an app."""

PublicRoutes = Mapping[tuple[str, str], ASGIApp]
"""What answers strangers, by (METHOD, exact path). The apps read neither path nor query."""

_HEARTBEAT_S = 30.0
_MUCH_FREE_BYTES = 2**20


@dataclass
class Link:
    """Flower's app, not yet served.

    Attributes:
        app: All of it, for those who send `admin` in `ADMIN_HEADER`.
        flower: All of it for anybody: only the front door may call it, for `FLEET_PATHS`, after its own checks.
        phase: What the state route tells; the coordinator sets it.
    """

    app: ASGIApp
    flower: FastAPI
    state: LinkState
    database: Path
    admin: str = field(repr=False)
    superexec_secret: bytes = field(repr=False)
    phase: Phase = "waiting"

    def online_workers(self) -> list[str]:
        """Names of the workers that are connected now."""
        return sorted(worker_of(node.public_key) for node in self.state.get_node_info(statuses=[NodeStatus.ONLINE]))

    def prune(self) -> None:
        """Drop what ended Flower runs left behind, and give the space back; running ones and workers are untouched.

        Flower itself drops messages that were answered and fetched. What was under way when a run ended stays for ever.
        """
        for run in self.state.get_run_info(statuses=[Status.FINISHED]):
            self.state.cleanup_run(run.run_id)
        _shrink(self.database)

    def routes(self) -> list[tuple[str, str]]:
        """Every route of the installed Flower, (METHOD, path), whether or not its documentation names it."""
        documented = self.flower.openapi()["paths"].items()
        found = {(verb.upper(), path) for path, verbs in documented for verb in verbs}
        for route in iter_route_contexts(self.flower.routes):
            found |= {(verb, str(route.path)) for verb in route.methods or {"GET"}}
        return sorted(found)

    def register(self, public_pem: bytes, name: str = "") -> None:
        """Add a worker's key to Flower's nodes, with the worker's name; again is harmless.

        Raises:
            RefusedError: The key was unregistered: the worker is banned.
        """
        if self.is_registered(public_pem):
            return
        try:
            shown = printable(name, at_most=80) or None
            self.state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, public_pem, _HEARTBEAT_S, name=shown)
        except ValueError:
            raise RefusedError("this worker has been removed from the run") from None

    def is_registered(self, public_pem: bytes) -> bool:
        """Whether Flower knows this key, and it was not removed."""
        return self.state.get_node_id_by_public_key(public_pem) is not None

    def remove(self, public_pem: bytes) -> None:
        """Take a worker's key from Flower's nodes, for good; again, or without it having been there, is harmless."""
        node = self.state.get_node_id_by_public_key(public_pem)
        if node is not None:
            self.state.delete_node(NOOP_FLWR_AID, node)


@dataclass(frozen=True)
class LinkSecrets:
    """What the rounds side shows to the link. Both ends get the same, and so does a link that is started again."""

    admin: str = field(repr=False, default_factory=lambda: secrets.token_hex(32))
    superexec_secret: bytes = field(repr=False, default_factory=lambda: secrets.token_bytes(32))


def create_link(database: Path, known: LinkSecrets | None = None) -> Link:
    """Make the link over the SQLite file `database`; workers registered there by an earlier process stay registered.

    Runs of Flower go on too: whoever restarts the link alone disturbs neither rounds nor workers. What ended runs left
    behind is dropped.

    Args:
        database: Flower's file; made when missing.
        known: What opens the inner listener; fresh secrets by default.
    """
    known = known or LinkSecrets()
    flower = create_app(_lifespan_config(database, known.superexec_secret), SuperLinkLifespan)
    state = flower.state.linkstate_factory.state()
    _end_unknown_runs(state)
    link = Link(_Guard(flower, known.admin), flower, state, database, known.admin, known.superexec_secret)
    link.prune()
    return link


def _end_unknown_runs(state: LinkState) -> None:
    """A Flower run that this database never had is over, like one that has ended.

    Workers bring answers of such runs where the coordinator goes on without its old database, or on another machine.
    Flower would stumble over the number, and what it says then reads like a fault that passes.
    """
    known = state.get_run_status

    def get_run_status(run_ids: set[int]) -> dict[int, RunStatus]:
        over = RunStatus(Status.FINISHED, SubStatus.STOPPED, "unknown here")
        return {run_id: over for run_id in run_ids} | known(run_ids)

    state.get_run_status = get_run_status


def _shrink(database: Path) -> None:
    """Return free pages to the disk where they are many; a reader at this moment or a full disk prevents it."""
    with closing(sqlite3.connect(database, timeout=1.0, isolation_level=None)) as connection, suppress(sqlite3.Error):
        (n_free,) = connection.execute("PRAGMA freelist_count").fetchone()
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
        if n_free * page_bytes > _MUCH_FREE_BYTES:
            connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


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


def state_routes(run: str, phase: Callable[[], Phase]) -> PublicRoutes:
    """The route by which anybody asks what the run is doing; `phase` is called in a thread."""

    async def tell_state(scope: Scope, receive: Receive, send: Send) -> None:
        answer = StateAnswer(run=run, phase=await run_in_threadpool(phase), protocol=PROTOCOL_VERSION)
        await JSONResponse(answer.model_dump(mode="json"))(scope, receive, send)

    return {("GET", STATE_PATH): tell_state}


# --- the guard --------------------------------------------------------------------------------------------------


class _Guard:
    """ASGI middleware before everything: nothing without the admin header."""

    def __init__(self, flower: ASGIApp, admin: str) -> None:
        self._flower, self._admin = flower, admin.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, or answer it with a refusal."""
        if scope["type"] == "lifespan" or self._knows_admin(scope):
            await self._flower(scope, receive, send)
        elif scope["type"] == "http":
            refusal = {"error": "forbidden", "reason": "this address is the coordinator's own"}
            await JSONResponse(refusal, 403)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _knows_admin(self, scope: Scope) -> bool:
        shown = dict(scope["headers"]).get(ADMIN_HEADER.encode(), b"")
        return hmac.compare_digest(shown, self._admin)

"""A small run over the real wire: facts, units, a link in a thread, workers in threads with a quick fake trainer."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tinylora_coordinator.front_door import (
    FrontDoor,
    Limits,
    NodeAuth,
    listen,
    public_pages,
    serve_internal,
    serve_public,
)
from tinylora_coordinator.joining import JoinCard, JoinDesk, join_routes
from tinylora_coordinator.operator_store import OperatorStore

from tinylora.config import BaseFacts, ProjectionShape, RunSettings
from tinylora.federation.ports import Reply
from tinylora.flower.compat.link import now
from tinylora.flower.enrolment import Address, join
from tinylora.flower.fleet import FleetClient, Pace
from tinylora.flower.grid import HttpWire
from tinylora.flower.identity import Identity, new_identity
from tinylora.flower.join_token import SYSTEM, parse_token
from tinylora.flower.link import Link, PublicRoutes, create_link, state_routes
from tinylora.flower.messages import Handle, by_folder
from tinylora.flower.outbox import FolderOutbox, Outbox
from tinylora.flower.transport import FlowerTransport
from tinylora.protocol.documents import Update, WorkUnit, sha256

logging.getLogger("flwr").addFilter(lambda record: record.levelno >= logging.ERROR)

TOKEN = f"tl1.{SYSTEM}.tests.{'s' * 32}"
FACTS = BaseFacts(
    base_id="tiny",
    fingerprint="a" * 64,
    tokenizer_fingerprint="b" * 64,
    feature_dim=8,
    feature_hash="c" * 64,
    max_window_tokens=64,
    projections={"q_proj": ProjectionShape(n_layers=2, in_features=8, out_features=8)},
)
QUICK = Pace(busy_poll_s=0.05, idle_poll_s=0.2, phase_poll_s=0.5, heartbeat_s=10.0, activation_s=1.0, patience_s=100.0)
LIMIT_BYTES = 4 * 2**20


def until(condition: Callable[[], bool], *, timeout_s: float = 60.0, what: str = "the condition") -> None:
    """Wait for something that another thread or process does; fail when it does not."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"{what} did not come true within {timeout_s} s"
        time.sleep(0.01)


def make_unit(unit_id: str, payload: bytes, **changes: object) -> WorkUnit:
    """A unit that only its id and payload tell from others."""
    values = {
        "unit_id": unit_id,
        "run": "run",
        "kind": "train",
        "nonce": f"nonce-{unit_id}",
        "deadline_s": 60.0,
        "base_fingerprint": FACTS.fingerprint,
        "tokenizer_fingerprint": FACTS.tokenizer_fingerprint,
        "feature_hash": FACTS.feature_hash,
        "payload_sha256": sha256(payload),
    }
    return WorkUnit.model_validate(values | changes)


def make_update(unit: WorkUnit, worker: str, payload: bytes) -> Update:
    """The update that a fake trainer claims to have made."""
    return Update(
        unit_id=unit.unit_id,
        run=unit.run,
        kind=unit.kind,
        worker=worker,
        nonce=unit.nonce,
        node=unit.node,
        shard_version="d" * 64,
        tokens=7,
        base_loads=1,
        payload_sha256=sha256(payload),
    )


def reversing(worker: str) -> Handle:
    """A trainer that turns its payload around."""

    def handle(unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
        result = payload[::-1]
        return make_update(unit, worker, result), result

    return handle


@dataclass
class Worker:
    """A fleet client in a thread."""

    identity: Identity
    client: FleetClient
    stop: threading.Event
    log: list[str]
    thread: threading.Thread
    endings: list[object] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Its identity on the wire."""
        return self.identity.worker


@dataclass
class Federation:
    """A link that is being served, and what one needs to reach it: workers at `address`, the rounds at `inside`."""

    link: Link
    address: Address
    inside: Address
    database: Path
    workers: list[Worker] = field(default_factory=list)

    def stop_workers(self) -> None:
        """Let them leave, and wait until they are gone."""
        for worker in self.workers:
            worker.stop.set()
        for worker in self.workers:
            worker.thread.join(10.0)
        self.workers.clear()

    def transport(self) -> FlowerTransport:
        """The rounds side."""
        return FlowerTransport(self._open_wire(), poll_s=0.1, folder=self.database.parent)

    @contextmanager
    def wire(self) -> Iterator[HttpWire]:
        """What the rounds side speaks over."""
        wire = self._open_wire()
        try:
            yield wire
        finally:
            wire.close()

    def _open_wire(self) -> HttpWire:
        return HttpWire(
            self.inside.host_port,
            admin=self.link.admin,
            superexec_secret=self.link.superexec_secret,
            limit_bytes=LIMIT_BYTES,
            folder=self.database.parent,
        )

    def start_worker(
        self,
        make_handle: Callable[[str], Handle] = reversing,
        *,
        identity: Identity | None = None,
        name: str = "",
        pace: Pace = QUICK,
        address: Address | None = None,
        outbox: Outbox | None = None,
        **options: Any,
    ) -> Worker:
        """Join and work in a thread; what `work` returned or raised is found in `endings`."""
        identity, stop, log = identity or new_identity(), threading.Event(), []
        join(self.address, TOKEN, identity, name=name)
        client = FleetClient(
            address or self.address,
            identity,
            by_folder(make_handle(identity.worker)),
            outbox or FolderOutbox(self.database.parent / "homes" / f"{len(self.workers)}-{identity.worker}"),
            phase=lambda: self.link.phase,
            limit_bytes=LIMIT_BYTES,
            pace=pace,
            stop=stop,
            log=log.append,
            **options,
        )
        worker = Worker(identity, client, stop, log, threading.Thread(target=lambda: _work(worker), daemon=True))
        self.workers.append(worker)
        worker.thread.start()
        return worker


def _work(worker: Worker) -> None:
    try:
        worker.endings.append(worker.client.work())
    except BaseException as error:  # Ctrl-C too
        worker.endings.append(error)


def store_with_token(folder: Path) -> OperatorStore:
    """An operator's file in which `TOKEN` lets everybody in."""
    store, token = OperatorStore(folder), parse_token(TOKEN)
    if store.tokens(now_s=0.0):
        return store
    module = "tinylora_coordinator.operator_store"
    with patch(f"{module}.new_token_id", lambda: token.token_id), patch(f"{module}.new_secret", lambda: token.secret):
        store.create_token(SYSTEM, now_s=0.0, expires_in_s=1e12, max_workers=10_000)
    return store


def routes_in(
    link: Link, store: OperatorStore, settings: RunSettings, facts: BaseFacts, *, wall: Callable[[], datetime] = now
) -> PublicRoutes:
    """How workers come in, and ask what the run is doing; tokens are pinned to no CA."""
    card = JoinCard(settings, facts, "0" * 64, SYSTEM)
    join = join_routes(JoinDesk(card, store, link.register, clock=lambda: wall().timestamp()))
    return {**join, **state_routes(settings.name, lambda: link.phase)}


@contextmanager
def federation(
    folder: Path,
    *,
    settings: RunSettings | None = None,
    facts: BaseFacts = FACTS,
    port: int = 0,
    wall: Callable[[], datetime] = now,
    routes_for: Callable[[NodeAuth], PublicRoutes] = lambda nodes: {},
) -> Iterator[Federation]:
    """Serve a link behind its door on loopback, on a free port by default; workers are stopped at the end.

    `wall` is the clock that tokens and signatures are judged by; `routes_for` gives further routes for workers.
    """
    database = folder / "link.db"
    link = create_link(database)
    pages = public_pages(
        ca_file=folder / "ca.pem", bundle_file=folder / "bundle.safetensors", status=lambda: {"phase": link.phase}
    )
    store = store_with_token(folder)
    nodes = NodeAuth(link.is_registered, clock=wall)
    routes = {**routes_in(link, store, settings or RunSettings(), facts, wall=wall), **pages, **routes_for(nodes)}
    door = FrontDoor(routes, link.flower, nodes, limits=Limits(tries_per_minute=1000))
    with (
        store,
        serve_internal(link.app, listen("127.0.0.1", 0)) as inside,
        serve_public(door, listen("127.0.0.1", port), tls=None) as served,
    ):
        running = Federation(
            link, Address(served.host_port, is_plain=True), Address(inside.host_port, is_plain=True), database
        )
        try:
            yield running
        finally:
            running.stop_workers()


def payload_of(reply: Reply) -> bytes:
    """What came, from where it was spooled."""
    return reply.payload if reply.file is None else reply.file.read_bytes()


def replies(transport: FlowerTransport, n_wanted: int, *, timeout_s: float = 60.0) -> dict[str, Reply]:
    """Poll until so many replies came."""
    found: dict[str, Reply] = {}

    def poll() -> bool:
        found.update({reply.unit_id: reply for reply in transport.poll()})
        return len(found) >= n_wanted

    until(poll, timeout_s=timeout_s, what=f"{n_wanted} replies")
    return found

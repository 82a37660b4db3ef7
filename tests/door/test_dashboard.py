"""The dashboard behind the door: what reaches it and what does not, over real sockets; its streams starve nobody."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from tinylora_coordinator.front_door import Dashboard, Limits

from tests.door.helpers import HOST, PULL, Answer, Door, head, open_door, read_answer, signed
from tinylora.flower.enrolment import JOIN_PATH

POLICY = "default-src 'none'; script-src 'self'"
OURS = {
    "GET": ("/", "/api/v1/state", "/api/v1/events", "/health", "/loose"),
    "POST": ("/api/v1/session", "/api/v1/admin/orders"),
    "DELETE": ("/api/v1/session",),
}


class Shown:
    """Stands for the dashboard: tells what it was asked, and streams until it is told to stop."""

    def __init__(self) -> None:
        self.n_streams = 0
        self.n_ended = 0
        self.changed = threading.Condition()
        self.status = 200
        self.piece = b"event: patch\ndata: {}\n\n"

    def dashboard(self) -> Dashboard:
        return Dashboard(self, lambda method, path: path.decode() in OURS.get(method, ()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/api/v1/events":
            await StreamingResponse(self._pieces(), media_type="text/event-stream")(scope, receive, send)
        elif scope["path"] == "/loose":
            await Response("loose")(scope, receive, send)
        else:
            await self._tell(scope, receive, send)

    async def _tell(self, scope: Scope, receive: Receive, send: Send) -> None:
        told: dict[str, Any] = {
            "asked": [scope["method"], scope["path"], scope["query_string"].decode()],
            "headers": sorted(key.decode() for key, _ in scope["headers"]),
            "state": scope["state"],
            "body": (await Request(scope, receive).body()).decode(),
        }
        await JSONResponse(told, self.status, {"content-security-policy": POLICY})(scope, receive, send)

    async def _pieces(self) -> AsyncIterator[bytes]:
        self._count(1, 0)
        try:
            while True:
                yield self.piece
                await asyncio.sleep(0.01)
        finally:
            self._count(0, 1)

    def _count(self, begun: int, ended: int) -> None:
        with self.changed:
            self.n_streams, self.n_ended = self.n_streams + begun, self.n_ended + ended
            self.changed.notify_all()

    def wait_until_ended(self, n: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.n_ended >= n, timeout=20.0)


@pytest.fixture
def shown() -> Shown:
    return Shown()


@pytest.fixture
def door(shown: Shown, tmp_path: Path) -> Iterator[Door]:
    with open_door(tmp_path, dashboard=shown.dashboard(), limits=Limits(streams_per_address=3)) as served:
        yield served


@pytest.fixture
def own(shown: Shown, tmp_path: Path) -> Iterator[Door]:
    with open_door(tmp_path, dashboard=shown.dashboard(), is_local=True) as served:
        yield served


def told(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200
    return json.loads(answer.body)


def local_head(own: Door, method: str, target: str, length: int | None = None, /, **headers: str) -> bytes:
    return head(method, target, length, **headers).replace(
        f"host: {HOST}".encode(), f"host: {HOST}:{own.port}".encode()
    )


# --- what reaches it --------------------------------------------------------------------------------------------------


def test_a_request_of_its_own_reaches_it_with_its_query(door: Door) -> None:
    found = told(door.ask(head("GET", "/api/v1/state?since=a%20b")))
    assert found["asked"] == ["GET", "/api/v1/state", "since=a%20b"] and found["state"] == {"is_local": False}


def test_no_header_of_a_proxys_or_of_flowers_reaches_it(door: Door) -> None:
    odd = {"x_forwarded_for": "127.0.0.1", "forwarded": "for=x", "x_original_url": "/", "flwr_public_key": "x"}
    kept = {"cookie": "a=b", "authorization": "Bearer x", "last_event_id": "1", "origin": f"https://{HOST}"}
    assert told(door.ask(head("GET", "/api/v1/state", **odd, **kept)))["headers"] == sorted(
        ["host", *(name.replace("_", "-") for name in kept)]
    )


@pytest.mark.parametrize(
    "target",
    [
        "/api/v1/stat%65", "/api/v1/state/", "//api/v1/state", "/api/v1/state;x", "/api/v1/state%3fx", "/API/v1/state",
        "/v1/../api/v1/state", "/v1/control/list-runs?x", "/api/v1/other?x", "/docs?x", "/%2f",
    ],
)  # fmt: skip
def test_what_only_looks_like_its_own_is_nobodys(door: Door, target: str) -> None:
    assert door.ask(head("GET", target)).status == 404


@pytest.mark.parametrize("method", ["PUT", "PATCH", "OPTIONS", "TRACE", "get", "DELETE", "POST"])
def test_no_other_method_reaches_it(door: Door, method: str) -> None:
    assert door.ask(head(method, "/api/v1/state", 0)).status == 404


def test_the_doors_own_pages_stay_the_doors(door: Door) -> None:
    assert told(door.ask(head("GET", "/health"))) == {"status": "ok"}
    assert door.ask(head("GET", "/health?x")).status == 404  # whatever the dashboard says of it


def test_a_page_says_what_browsers_may_do_and_nothing_else_is_loosened(door: Door) -> None:
    assert door.ask(head("GET", "/")).headers["content-security-policy"] == POLICY
    loose = door.ask(head("GET", "/loose")).headers
    assert loose["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    for found in (loose, door.ask(head("GET", "/")).headers, door.ask(head("GET", "/nothing")).headers):
        assert found["x-content-type-options"] == "nosniff" and found["cache-control"] == "no-store"
        assert found["strict-transport-security"].startswith("max-age=") and "server" not in found


def test_a_head_tells_what_a_get_would(door: Door) -> None:
    with door.connect() as connection:
        connection.sendall(head("GET", "/api/v1/state"))
        whole = read_answer(connection)
        connection.sendall(head("HEAD", "/api/v1/state"))
        bare = read_answer(connection, is_head=True)
        assert (bare.status, bare.headers["content-length"]) == (200, whole.headers["content-length"])
        connection.sendall(head("GET", "/health"))
        assert told(read_answer(connection)) == {"status": "ok"}  # nothing was left over
    assert door.ask(head("HEAD", "/api/v1/events")).status == 404


def test_bodies_are_posted_whole_and_short_and_nowhere_else(door: Door) -> None:
    as_json = {"content_type": "application/json"}
    assert told(door.ask(head("POST", "/api/v1/session", 2, **as_json) + b"{}"))["body"] == "{}"
    assert door.ask(head("POST", "/api/v1/session", 65_537, **as_json)).status == 413
    assert door.ask(head("POST", "/api/v1/session", **as_json)).status == 411
    assert door.ask(head("DELETE", "/api/v1/session", 2, **as_json) + b"{}").status == 413
    assert told(door.ask(head("DELETE", "/api/v1/session")))["asked"][0] == "DELETE"
    assert door.ask(head("GET", "/", 2) + b"{}").status == 413


def test_a_foreign_page_is_turned_away_before_it(door: Door) -> None:
    foreign = {"origin": "https://evil.example", "content_type": "application/json"}
    assert door.ask(head("POST", "/api/v1/admin/orders", 2, **foreign) + b"{}").status == 403
    assert door.ask(head("GET", "/api/v1/state", sec_fetch_site="cross-site", sec_fetch_mode="cors")).status == 403


def test_sign_ins_in_vain_are_few_and_good_ones_many(door: Door, shown: Shown) -> None:
    request = head("POST", "/api/v1/session", 2, content_type="application/json") + b"{}"
    assert {door.ask(request).status for _ in range(12)} == {200}
    shown.status = 401
    assert [door.ask(request).status for _ in range(6)] == [401] * 5 + [429]
    shown.status = 200
    assert door.ask(request).status == 429 and door.ask(head("GET", "/api/v1/state")).status == 200


# --- the operator's own listener --------------------------------------------------------------------------------------


def test_who_comes_by_the_own_listener_is_marked(own: Door) -> None:
    assert told(own.ask(local_head(own, "GET", "/api/v1/state")))["state"] == {"is_local": True}
    assert own.ask(local_head(own, "GET", "/health")).status == 200


def test_the_own_listener_knows_no_workers(own: Door) -> None:
    for path in (PULL, JOIN_PATH):
        assert own.ask(local_head(own, "POST", path, 0, **signed(own.worker))).status == 404


@pytest.mark.parametrize("host", ["evil.example", f"evil.example:{80}", "127.0.0.1", "127.0.0.1:1"])
@pytest.mark.parametrize("path", ["/", "/health", "/api/v1/state", "/nothing"])
def test_another_name_of_the_own_listener_gets_nothing(own: Door, host: str, path: str) -> None:
    request = local_head(own, "GET", path).replace(f"{HOST}:{own.port}".encode(), host.encode())
    assert own.ask(request).status == 421


# --- streams ----------------------------------------------------------------------------------------------------------


def begin_stream(door: Door) -> socket.socket:
    connection = door.connect()
    connection.sendall(head("GET", "/api/v1/events?since=x"))
    return connection


def status_line(connection: socket.socket) -> bytes:
    with connection.makefile("rb") as lines:
        return lines.readline()


def test_streams_of_one_address_are_few_and_a_worker_there_stays_welcome(door: Door, shown: Shown) -> None:
    with ExitStack() as stack:
        for _ in range(3):
            assert b"200" in status_line(stack.enter_context(begin_stream(door)))
        refused = door.ask(head("GET", "/api/v1/events"))
        assert refused.status == 429 and refused.headers["retry-after"] == "10"
        assert door.ask(head("POST", PULL, 3, **signed(door.worker)) + b"abc").body == b"3"
        assert door.ask(head("GET", "/api/v1/state")).status == 200
    shown.wait_until_ended(3)
    with begin_stream(door) as again:
        assert b"200" in status_line(again)


def test_streams_are_few_in_all(shown: Shown, tmp_path: Path) -> None:
    with open_door(tmp_path, dashboard=shown.dashboard(), limits=Limits(streams=1)) as door, begin_stream(door) as one:
        assert b"200" in status_line(one)
        assert door.ask(head("GET", "/api/v1/events")).status == 429


def test_the_caps_leave_room_for_workers() -> None:
    limits = Limits()
    assert 2 * limits.streams_per_address < limits.sockets_per_address and 4 * limits.streams < limits.sockets


def test_a_stream_outlasts_every_deadline_and_goes_on_while_it_is_read(shown: Shown, tmp_path: Path) -> None:
    short = Limits(handshake_s=0.2, head_s=0.2, body_grace_s=0.1, idle_s=1.0, stall_s=0.3, tick_s=0.02)
    with open_door(tmp_path, dashboard=shown.dashboard(), limits=short) as door, begin_stream(door) as connection:
        with connection.makefile("rb") as lines:
            n_patches = sum(lines.readline() == b"event: patch\n" for _ in range(600))
        assert n_patches > 100  # over more than a second, and no tick dropped it


def test_a_reader_who_reads_nothing_is_dropped(shown: Shown, tmp_path: Path) -> None:
    shown.piece = b"data: " + b"x" * 2**20 + b"\n\n"
    with (
        open_door(tmp_path, dashboard=shown.dashboard(), limits=Limits(stall_s=0.3, tick_s=0.02)) as door,
        begin_stream(door),
    ):
        shown.wait_until_ended(1)


def test_a_door_that_closes_ends_its_streams_properly(shown: Shown, tmp_path: Path) -> None:
    with open_door(tmp_path, dashboard=shown.dashboard(), is_tls=False) as door:
        connection = begin_stream(door)
        assert b"200" in status_line(connection)
    with connection:
        rest = b"".join(iter(lambda: connection.recv(2**16), b""))
    assert rest.endswith(b"0\r\n\r\n") and shown.n_ended == 1

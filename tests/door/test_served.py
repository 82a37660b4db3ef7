"""Caps, deadlines and the order of checks, over real sockets. Limits are short; nothing here waits by sleeping."""

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from tinylora_coordinator.front_door import Limits, server_tls
from tinylora_coordinator.front_door.protocol import DoorProtocol
from tinylora_coordinator.front_door.sockets import Connection, Phase
from uvicorn.server import ServerState

from tests.door.helpers import HOST, PULL, PUSH, Door, Fleet, head, open_door, read_answer, signed
from tinylora.errors import SettingError
from tinylora.flower.enrolment import JOIN_PATH
from tinylora.flower.identity import new_identity
from tinylora.flower.link import ADMIN_HEADER

MIB = 2**20


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture(scope="module")
def door(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with open_door(tmp_path_factory.mktemp("door"), fleet=fleet) as served:
        yield served


def is_hung_up(connection: socket.socket) -> bool:
    """Whether the other side closes, sending nothing more; waits for it."""
    try:
        return connection.recv(1) == b""
    except (ConnectionError, ssl.SSLError):
        return True


# --- the order: path, length, worker; then the body ---------------------------------------------------------------


def test_a_stranger_is_turned_away_before_a_byte_of_the_body(door: Door, fleet: Fleet) -> None:
    n_calls = len(fleet.calls)
    for shown in ({}, signed(new_identity()), {ADMIN_HEADER: "x"}):
        with door.connect() as connection:
            connection.sendall(head("POST", PUSH, 5 * MIB, **shown))
            assert read_answer(connection).status == 401 and is_hung_up(connection)
    assert len(fleet.calls) == n_calls


def test_who_waits_for_a_hundred_is_not_asked_for_the_body(door: Door) -> None:
    with door.connect() as connection:
        connection.sendall(head("POST", PUSH, 5 * MIB, expect="100-continue"))
        assert read_answer(connection).status == 401
    with door.connect() as connection:
        connection.sendall(head("POST", PUSH, 3, expect="100-continue", **signed(door.worker)))
        assert read_answer(connection).status == 100
        connection.sendall(b"abc")
        assert read_answer(connection).body == b"3"


def test_a_worker_passes_with_small_and_large_bodies(door: Door, fleet: Fleet) -> None:
    for size in (0, 3, 65_536, 65_537, 5 * MIB + 1000):
        answer = door.ask(head("POST", PUSH, size, **signed(door.worker)) + b"x" * size)
        assert (answer.status, answer.body) == (200, str(size).encode())
    assert list(door.folder.glob("tmp*")) == []


def test_flower_sees_nothing_of_a_strangers_making(door: Door, fleet: Fleet) -> None:
    odd = {ADMIN_HEADER: "x", "x_forwarded_for": "1.2.3.4", "cookie": "a=b", "content_encoding": "gzip"}
    door.ask(head("POST", PULL, 0, content_type="application/protobuf", **odd, **signed(door.worker)))
    scope, _ = fleet.calls[-1]
    assert (scope["path"], scope["raw_path"], scope["query_string"], scope["state"]) == (PULL, PULL.encode(), b"", {})
    names = {name.decode() for name, _ in scope["headers"]}
    assert names == {"flwr-public-key", "flwr-timestamp", "flwr-signature", "content-type", "content-length"}


@pytest.mark.parametrize(
    ("path", "length"), [(PUSH, 6 * MIB + 1), (PUSH, 400 * MIB), (JOIN_PATH, 65_537), (PUSH, 10**30)]
)
def test_a_large_body_is_refused_by_its_length_alone(tmp_path: Path, path: str, length: int) -> None:
    async def join(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("it was called")

    with open_door(tmp_path, routes={("POST", JOIN_PATH): join}, is_tls=False) as door, door.connect() as connection:
        connection.sendall(head("POST", path, length, **signed(door.worker)))
        assert read_answer(connection).status in (400, 413) and is_hung_up(connection)


def test_a_body_needs_a_length(door: Door) -> None:
    shown = signed(door.worker)
    assert door.ask(head("POST", PUSH, **shown)).status == 411
    chunked = head("POST", PUSH, transfer_encoding="chunked", **shown) + b"5\r\nhello\r\n0\r\n\r\n"
    assert door.ask(chunked).status == 411


def test_a_page_takes_no_body(door: Door) -> None:
    assert door.ask(head("GET", "/health", 5) + b"hello").status == 413


@pytest.mark.parametrize("size", [8_200, 9_000, 60_000, 300_000])
def test_headers_are_few(door: Door, size: int) -> None:
    assert door.ask(head("GET", "/health", x_long="a" * size)).status in (0, 400, 431)
    assert door.ask(b"GET /" + b"a" * size + b" HTTP/1.1\r\nhost: x\r\n\r\n").status in (0, 400, 404)


def test_joins_in_vain_are_few(tmp_path: Path) -> None:
    status = [403]

    async def join(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status[0], "headers": []})
        await send({"type": "http.response.body", "body": b""})

    limits = Limits(tries_per_minute=3)
    with (
        open_door(tmp_path, routes={("POST", JOIN_PATH): join}, limits=limits, is_tls=False) as door,
        httpx.Client(base_url=door.url) as client,
    ):
        status[0] = 200
        assert [client.post(JOIN_PATH, content=b"").status_code for _ in range(6)] == [200] * 6
        status[0] = 403
        answers = [client.post(JOIN_PATH, content=b"") for _ in range(5)]
        assert [answer.status_code for answer in answers] == [403, 403, 403, 429, 429]
        assert answers[-1].headers["retry-after"] == "60"
        assert client.get("/health").status_code == 200


# --- deadlines ----------------------------------------------------------------------------------------------------

SHORT = Limits(handshake_s=0.3, head_s=0.3, body_grace_s=0.2, body_bytes_per_s=MIB, idle_s=1, stall_s=0.3, tick_s=0.02)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with open_door(tmp_path_factory.mktemp("short"), limits=SHORT, is_tls=False) as served:
        yield served


@pytest.mark.parametrize("begun", [b"", b"GET /hea", b"\r\n", b"GET /health HTTP/1.1\r\nhost: x\r\n"])
def test_headers_that_do_not_end_are_cut_off(short: Door, begun: bytes) -> None:
    with short.connect() as connection:
        connection.sendall(begun)
        assert b" 200 " not in drained(connection)


def test_a_handshake_that_does_not_end_is_cut_off(tmp_path: Path) -> None:
    with open_door(tmp_path, limits=SHORT) as door:
        for begun in (b"", b"\x16\x03\x01\x02\x00\x01"):
            with socket.create_connection((HOST, door.port), timeout=20) as connection:
                connection.sendall(begun)
                assert is_hung_up(connection)
        assert door.ask(head("GET", "/health")).status == 200


@pytest.mark.parametrize("length", [1000, 5 * MIB])
def test_a_body_that_does_not_come_is_cut_off(short: Door, length: int) -> None:
    with short.connect() as connection:
        connection.sendall(head("POST", PUSH, length, **signed(short.worker)) + b"x" * 10)
        assert is_hung_up(connection)


def test_a_connection_without_requests_is_closed(short: Door) -> None:
    with short.connect() as connection:
        connection.sendall(head("GET", "/health"))
        assert read_answer(connection).status == 200
        assert is_hung_up(connection)


def test_the_second_request_has_its_deadline_too(short: Door) -> None:
    with short.connect() as connection:
        connection.sendall(head("GET", "/health") + b"GET /hea")
        assert read_answer(connection).status == 200
        assert is_hung_up(connection)


def test_who_does_not_read_the_answer_is_dropped(short: Door) -> None:
    (short.folder / "bundle.safetensors").write_bytes(b"x" * 24 * MIB)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect((HOST, short.port))
        connection.sendall(head("GET", "/api/v1/bundle"))
        end = time.monotonic() + 20
        while is_connected(connection):
            assert time.monotonic() < end


@pytest.mark.parametrize("carrier", ["none", "closed"])
def test_dropping_what_is_gone_already_is_harmless(carrier: str) -> None:
    closed = socket.socket()
    closed.close()

    class Gone(asyncio.Transport):
        aborted, is_open = 0, True

        def get_extra_info(self, name: str, default: object = None) -> object:
            return closed if (carrier, name, self.is_open) == ("closed", "socket", False) else None

        def abort(self) -> None:
            self.aborted += 1

    async def drop() -> int:
        config, connection, transport = uvicorn.Config(Fleet(), ws="none"), Connection("p", Phase.HEAD, 0.0), Gone()
        protocol = DoorProtocol(
            connection, lambda: None, lambda: 0.0, config=config, server_state=ServerState(), app_state={}
        )
        protocol.connection_made(transport)
        transport.is_open = False
        connection.abort()
        return transport.aborted

    assert asyncio.run(drop()) == 1


def is_connected(connection: socket.socket) -> bool:
    """Whether the other side has not reset it; nothing is read."""
    established = 1
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == established


def drained(connection: socket.socket) -> bytes:
    parts = []
    try:
        while part := connection.recv(2**16):
            parts.append(part)
    except ConnectionError:
        pass
    return b"".join(parts)


# --- how many -----------------------------------------------------------------------------------------------------


def test_one_address_has_so_many_sockets(tmp_path: Path) -> None:
    with open_door(tmp_path, limits=Limits(sockets_per_address=3), is_tls=False) as door:
        with door.connected(3) as held, door.connect() as fourth:
            assert is_hung_up(fourth)
            for connection in held:
                connection.sendall(head("GET", "/health", connection="close"))
                assert read_answer(connection).status == 200 and is_hung_up(connection)
        assert door.ask(head("GET", "/health")).status == 200


def test_in_a_full_house_a_newcomer_is_served(tmp_path: Path) -> None:
    with (
        open_door(tmp_path, limits=Limits(sockets=3), is_tls=False) as door,
        door.connect() as worker,
        door.connected(2) as held,
    ):
        worker.sendall(head("POST", PULL, 0, **signed(door.worker)))
        assert read_answer(worker).status == 200
        assert door.ask(head("GET", "/health")).status == 200
        assert is_hung_up(held[0])
        worker.sendall(head("POST", PULL, 0, **signed(door.worker)))
        assert read_answer(worker).status == 200  # it was not the one who had to leave


def test_a_few_large_bodies_at_once_are_in_memory_and_the_others_wait(tmp_path: Path) -> None:
    inside, most, lock, all_in = [0], [0], threading.Lock(), threading.Event()

    async def fleet(scope: Scope, receive: Receive, send: Send) -> None:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            if inside[0] == 2:
                all_in.set()
        while not all_in.is_set():
            await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        inside[0] -= 1
        await Fleet()(scope, receive, send)

    limits = Limits(large_bodies=2)
    with open_door(tmp_path, fleet=fleet, limits=limits, is_tls=False) as door, door.connected(6) as held:
        for connection in held:
            connection.sendall(head("POST", PUSH, 70_000, **signed(door.worker)) + b"x" * 70_000)
        assert [read_answer(connection).body for connection in held] == [b"70000"] * 6
    assert most[0] == 2


def test_who_reads_slowly_holds_no_memory_from_others(tmp_path: Path) -> None:
    big = b"o" * 5 * MIB

    async def fleet(scope: Scope, receive: Receive, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(big)).encode())]}
        )
        await send({"type": "http.response.body", "body": big})

    with open_door(tmp_path, fleet=fleet, limits=Limits(large_bodies=1), is_tls=False) as door, ExitStack() as stack:
        pull = head("POST", "/v1/fleet/pull-object", 0, **signed(door.worker))
        slow = []
        for _ in range(4):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(20)
            connection.connect((HOST, door.port))
            connection.sendall(pull)
            assert connection.recv(1) == b"H"  # its answer is under way, and no more of it is read
            slow.append(connection)
        assert door.ask(pull).body == big
        assert all(len(drained_of(connection, len(big))) == len(big) for connection in slow)


def drained_of(connection: socket.socket, size: int) -> bytes:
    """The body of an answer of which the first byte has been read."""
    with connection.makefile("rb") as lines:
        while lines.readline() != b"\r\n":
            pass
        return lines.read(size)


def test_one_worker_sends_so_many_large_bodies_at_once(tmp_path: Path) -> None:
    limits = Limits(large_bodies_per_node=2)
    with open_door(tmp_path, limits=limits, is_tls=False) as door, door.connected(2) as held:
        for connection in held:  # the 100 tells that it is being read
            connection.sendall(head("POST", PUSH, 70_000, expect="100-continue", **signed(door.worker)))
            assert read_answer(connection).status == 100
        answer = door.ask(head("POST", PUSH, 70_000, **signed(door.worker)))
        assert answer.status == 429 and answer.headers["retry-after"] == "5"
        for connection in held:
            connection.sendall(b"x" * 70_000)
            assert read_answer(connection).status == 200


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    with open_door(tmp_path, is_tls=False) as door:
        tmp_path.rename(tmp_path.with_name("gone"))
        answer = door.ask(head("POST", PUSH, 70_000, **signed(door.worker)) + b"x" * 70_000)
        tmp_path.with_name("gone").rename(tmp_path)
    assert answer.status == 503 and answer.headers["retry-after"] == "60"


# --- TLS ----------------------------------------------------------------------------------------------------------


def test_old_tls_is_refused(door: Door) -> None:
    old = door.trust()
    with pytest.warns(DeprecationWarning):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with socket.create_connection((HOST, door.port)) as raw, pytest.raises((ssl.SSLError, ConnectionError)):
        old.wrap_socket(raw, server_hostname=HOST)


def test_plain_words_to_a_tls_port_are_not_answered(door: Door) -> None:
    with socket.create_connection((HOST, door.port), timeout=20) as raw:
        raw.sendall(head("GET", "/health"))
        assert b"200" not in drained(raw)


def test_a_certificate_needs_its_own_key(door: Door, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no certificate with its key"):
        server_tls(door.keys.server, door.keys.ca_key)
    with pytest.raises(SettingError, match="no certificate with its key"):
        server_tls(tmp_path / "none.pem", door.keys.server_key)

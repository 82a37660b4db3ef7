"""What is counted is what a socket between the two ends saw, byte for byte."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinylora.flower.fleet import FleetHttpClient
from tinylora.flower.meter import count, unmetered
from tinylora.flower.reach import Address, ask


class Echo(BaseHTTPRequestHandler):
    """Answers with as many bytes as the path says."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"] or 0))
        n_bytes = int(self.path.strip("/") or 0)
        self.send_response(200)
        self.send_header("content-length", str(n_bytes))
        self.end_headers()
        self.wfile.write(b"x" * n_bytes)

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""


class Between:
    """A proxy of plain sockets that counts what passes it."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target, self.sent, self.received = target, 0, 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = Address(f"127.0.0.1:{self._listening.getsockname()[1]}", is_plain=True)
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            self._open += [client, server]
            for source, target, name in ((client, server, "sent"), (server, client, "received")):
                thread = threading.Thread(target=self._pass_on, args=(source, target, name), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pass_on(self, source: socket.socket, target: socket.socket, name: str) -> None:
        while data := source.recv(65_536):
            setattr(self, name, getattr(self, name) + len(data))
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)

    def counted(self) -> tuple[int, int]:
        """What passed, once all connections are closed."""
        for thread in self._threads:
            thread.join(10.0)
        for connected in self._open:
            connected.close()
        self._threads.clear()
        self._open.clear()
        found, self.sent, self.received = (self.sent, self.received), 0, 0
        return found

    def close(self) -> None:
        self._listening.close()


@pytest.fixture(scope="module")
def between() -> Iterator[Between]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        proxy = Between(("127.0.0.1", server.server_address[1]))
        yield proxy
        proxy.close()
        server.shutdown()


@contextmanager
def metered(between: Between) -> Iterator[tuple[httpx.Client, list[int]]]:
    """A client whose count is compared with the socket's at the end."""
    told = [0, 0]

    def meter(sent: int, received: int) -> None:
        told[0] += sent
        told[1] += received

    with FleetHttpClient.from_server_address(between.address.host_port, True, None, []) as client:
        count(client._client, meter)
        yield client._client, told
    assert tuple(told) == between.counted()


@given(sizes=st.lists(st.tuples(st.integers(0, 200_000), st.integers(0, 200_000)), max_size=4))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_every_byte_of_many_requests_is_counted_once(between: Between, sizes: list[tuple[int, int]]) -> None:
    with metered(between) as (client, told):
        for n_up, n_down in sizes:
            answer = client.post(between.address.url(f"/{n_down}"), content=b"y" * n_up)
            assert len(answer.content) == n_down
        assert told[0] >= sum(n_up for n_up, _ in sizes)


@given(st.integers(0, 100_000), st.integers(0, 100_000))
@settings(max_examples=8, deadline=None)
def test_a_single_question_is_counted_too(between: Between, n_up: int, n_down: int) -> None:
    told: list[tuple[int, int]] = []
    ask(
        between.address, "POST", f"/{n_down}", verify=False, timeout_s=10.0, content=b"y" * n_up,
        meter=lambda sent, received: told.append((sent, received)),
    )  # fmt: skip
    assert (sum(sent for sent, _ in told), sum(received for _, received in told)) == between.counted()


def test_who_does_not_count_is_left_as_it_was() -> None:
    with httpx.Client() as client:
        before = client._transport._pool._network_backend  # type: ignore[attr-defined]
        count(client, unmetered)
        assert client._transport._pool._network_backend is before  # type: ignore[attr-defined]

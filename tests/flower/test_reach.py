"""Whom a worker speaks to: over real TLS, with coordinators that are right, wrong, and somebody else's."""

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tinylora_coordinator.front_door import server_tls
from tinylora_coordinator.keys import KeyFolder, make_keys, pin_of

from tinylora.errors import NetworkError, RefusedError, SettingError, TinyLoraError
from tinylora.flower.enrolment import JOIN_PATH, ask_state, join
from tinylora.flower.identity import new_identity
from tinylora.flower.join_token import SYSTEM, JoinToken, new_secret
from tinylora.flower.reach import CA_PATH, MAX_ANSWER_BYTES, Address, Trust, ask, meet, verify_by

HOST, OTHER_HOST = "127.0.0.1", "127.0.0.2"


@dataclass
class Stranger:
    """A server that shows some CA, and remembers all that it is sent."""

    address: Address
    asked: list[str] = field(default_factory=list)
    heard: bytes = b""


@contextmanager
def served(ca_pem: bytes, keys: KeyFolder | None, *, status: int = 200, host: str = HOST) -> Iterator[Stranger]:
    """Serve on loopback with the certificate in `keys`, plain without; any question gets some JSON."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            stranger.asked.append(self.path)
            stranger.heard += str(self.headers).encode() + self.rfile.read(int(self.headers["content-length"] or 0))
            body = {CA_PATH: ca_pem, "/endless": b"x" * (MAX_ANSWER_BYTES + 1)}.get(self.path, b'{"hello": "world"}')
            self.send_response(302 if self.path == "/away" else status)
            self.send_header("location", "https://example.org/")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Be silent."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A client that hangs up in the handshake is what some tests are about."""

    server = Server((host, 0), Handler)
    if keys is not None:
        context = server_tls(keys.server, keys.server_key)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    stranger = Stranger(Address(f"{host}:{server.server_address[1]}", is_plain=keys is None))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield stranger
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def keys_of(folder: Path) -> KeyFolder:
    keys = KeyFolder(folder)
    make_keys(keys, run="r", hosts=[], now=datetime.now(UTC))
    return keys


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> KeyFolder:
    return keys_of(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> KeyFolder:
    return keys_of(tmp_path_factory.mktemp("theirs"))


def token_for(keys: KeyFolder) -> JoinToken:
    return JoinToken(pin_of(keys), "abcd", new_secret())


# --- whom to believe --------------------------------------------------------------------------------------------------


def test_the_right_coordinator_is_recognised_and_nothing_secret_was_needed(ours: KeyFolder) -> None:
    token = token_for(ours)
    with served(ours.ca.read_bytes(), ours) as server:
        trust = meet(server.address, token.pin)
        assert trust == Trust(token.pin, ours.ca.read_bytes()) and server.asked == [CA_PATH]
        ask(server.address, "GET", "/any", verify=verify_by(server.address, trust), timeout_s=10.0)
    assert token.secret.encode() not in server.heard and token.token_id.encode() not in server.heard


def test_another_ca_never_sees_the_secret(ours: KeyFolder, theirs: KeyFolder) -> None:
    token = token_for(ours)
    with served(theirs.ca.read_bytes(), theirs) as server, pytest.raises(RefusedError, match="token was not sent"):
        join(server.address, token.text, new_identity())
    assert server.asked == [CA_PATH] and token.secret.encode() not in server.heard


def test_who_shows_our_ca_but_has_no_certificate_of_it_never_sees_the_secret(
    ours: KeyFolder, theirs: KeyFolder
) -> None:
    token = token_for(ours)
    expected = pytest.raises(NetworkError, match="its certificate does not hold")
    with served(ours.ca.read_bytes(), theirs) as server, expected:
        join(server.address, token.text, new_identity())
    assert server.asked == [CA_PATH] and token.secret.encode() not in server.heard


def test_the_right_certificate_under_another_name_is_refused(ours: KeyFolder) -> None:
    token = token_for(ours)
    with served(ours.ca.read_bytes(), ours, host=OTHER_HOST) as server:
        elsewhere = server.address
        with pytest.raises(NetworkError, match="its certificate does not hold: IP address mismatch"):
            ask(elsewhere, "GET", "/any", verify=verify_by(elsewhere, meet(elsewhere, token.pin)), timeout_s=10.0)
    assert server.asked == [CA_PATH]


def test_a_kept_ca_is_enough_and_is_not_asked_for_again(ours: KeyFolder, theirs: KeyFolder) -> None:
    trust = Trust(pin_of(ours), ours.ca.read_bytes())
    with served(b"", ours) as server, pytest.raises(NetworkError, match="not as a TinyLoRA coordinator"):
        join(server.address, "", new_identity(), trust=trust)
    assert server.asked == [JOIN_PATH]
    with served(b"", theirs) as server, pytest.raises(NetworkError, match="does not hold"):
        ask_state(server.address, trust=trust)
    assert server.asked == []


def test_without_a_pin_the_system_decides(ours: KeyFolder) -> None:
    with served(ours.ca.read_bytes(), ours) as server:
        assert meet(server.address, SYSTEM) == Trust()
        with pytest.raises(NetworkError, match="does not hold"):
            join(server.address, JoinToken(SYSTEM, "abcd", new_secret()).text, new_identity())
    assert server.asked == []


def test_a_pin_without_its_ca_is_no_reason_to_believe_the_system(ours: KeyFolder) -> None:
    with pytest.raises(RefusedError, match="join again with a token"):
        verify_by(Address("a:1", is_plain=False), Trust(pin_of(ours)))


@pytest.mark.parametrize("pem", [b"", b"hello", "ours twice", "ours and a key"])
def test_what_is_not_one_certificate_is_refused(ours: KeyFolder, pem: bytes | str) -> None:
    ca = ours.ca.read_bytes()
    shown = {"ours twice": ca * 2, "ours and a key": b"x" + ca[5:]}.get(pem, pem) if isinstance(pem, str) else pem
    assert isinstance(shown, bytes)
    with served(shown, ours) as server, pytest.raises(NetworkError, match="not one certificate"):
        meet(server.address, pin_of(ours))


def test_a_coordinator_without_a_ca_is_told_as_such(ours: KeyFolder) -> None:
    with served(b"", ours, status=404) as server, pytest.raises(NetworkError, match="has no CA of its own"):
        meet(server.address, pin_of(ours))


# --- what comes back --------------------------------------------------------------------------------------------------


def test_redirects_are_not_followed_and_endless_answers_end(ours: KeyFolder) -> None:
    with served(b"", None) as server:
        assert ask(server.address, "GET", "/away", verify=False, timeout_s=10.0).status_code == 302
        with pytest.raises(NetworkError, match="answers without end"):
            ask(server.address, "GET", "/endless", verify=False, timeout_s=10.0)
    assert server.asked == ["/away", "/endless"]


def test_nobody_there_is_one_sentence(ours: KeyFolder) -> None:
    with socket.create_server((HOST, 0)) as probe:
        port = probe.getsockname()[1]
    for scheme in ("http", "https"):
        with pytest.raises(NetworkError, match="no coordinator answers"):
            join(Address.parse(f"{scheme}://{HOST}:{port}"), token_for(ours).text, new_identity())


def test_a_plain_server_where_tls_is_expected_is_told_as_such(ours: KeyFolder) -> None:
    with served(b"", None) as server, pytest.raises(NetworkError, match="speaks no TLS"):
        meet(Address(server.address.host_port, is_plain=False), pin_of(ours))


@pytest.mark.parametrize("status", [200, 202, 403, 404, 429, 500, 503])
def test_no_answer_makes_an_error_or_a_log_that_holds_the_secret(
    ours: KeyFolder, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], status: int
) -> None:
    caplog.set_level(logging.DEBUG)
    token = token_for(ours)
    with served(ours.ca.read_bytes(), None, status=status) as server, pytest.raises(TinyLoraError) as caught:
        join(server.address, token.text, new_identity(), name="n")
    captured = capfd.readouterr()
    seen = [caplog.text, captured.out, captured.err, repr(caught.value), str(caught.value), *server.asked]
    assert token.secret.encode() in server.heard  # it was sent, in a body
    assert not any(token.secret in text for text in seen)


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host_port", "is_plain"),
    [
        ("127.0.0.1:8443", "127.0.0.1:8443", False),
        ("tree.example.org", "tree.example.org:443", False),
        ("https://example.org/", "example.org:443", False),
        ("https://[::1]:9", "[::1]:9", False),
        ("http://[::1]:9", "[::1]:9", True),
        ("http://127.0.0.1", "127.0.0.1:80", True),
        ("http://localhost:80/", "localhost:80", True),
    ],
)
def test_addresses_are_read(text: str, host_port: str, is_plain: bool) -> None:
    assert Address.parse(text) == Address(host_port, is_plain)


@pytest.mark.parametrize(
    "text", ["", "ftp://a:1", "http://", "a:0", "a:99999", "https://a/path", "https://a?x", "https://me:pw@a", "a#b"]
)
def test_what_is_no_address_is_a_setting_error(text: str) -> None:
    with pytest.raises(SettingError, match="expected the coordinator's address"):
        Address.parse(text)


@pytest.mark.parametrize("text", ["http://example.org", "http://192.0.2.7:80", "http://localhost.example.org"])
def test_plain_http_leaves_no_machine(text: str) -> None:
    with pytest.raises(SettingError, match="in clear"):
        Address.parse(text)

"""Nothing of Flower is public but the fleet's part, in no spelling; and a new Flower's new route is noticed."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tinylora_coordinator.dashboard.addresses import is_ours

from tests.door.helpers import HOST, Door, head, open_door, read_answer, signed
from tests.flower.helpers import FACTS, routes_in, store_with_token
from tinylora.config import RunSettings
from tinylora.flower.enrolment import JOIN_PATH, STATE_PATH
from tinylora.flower.link import ADMIN_HEADER, FLEET_PATHS, Link, create_link

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of alembic, about flwr's use

KNOWN = Path(__file__).with_name("flower_routes.txt")
PUBLIC = {
    *(("POST", path) for path in FLEET_PATHS), ("POST", JOIN_PATH), ("GET", STATE_PATH), ("GET", "/health"),
    ("GET", "/ca.pem"), ("GET", "/api/v1/status"), ("GET", "/api/v1/bundle"), ("HEAD", "/api/v1/bundle"),
}  # fmt: skip
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "PROPFIND")


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Link:
    return create_link(tmp_path_factory.mktemp("link") / "link.db")


@pytest.fixture(scope="module")
def door(link: Link, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("door")
    store = store_with_token(folder)
    routes = routes_in(link, store, RunSettings(), FACTS)
    with store, open_door(folder, fleet=link.flower, routes=routes, may_enter=link.is_registered) as served:
        yield served


@pytest.fixture(scope="module")
def plain(link: Link, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("plain")
    with open_door(folder, fleet=link.flower, may_enter=lambda public_pem: True, is_tls=False) as served:
        yield served


def closed(status: int) -> bool:
    """Refused for what it asked, not for who asked, and nothing of it was done."""
    return status in (404, 405)


def test_the_installed_flower_has_the_routes_that_we_know(link: Link) -> None:
    known = {tuple(line.split()) for line in KNOWN.read_text().splitlines()}
    now = set(link.routes())
    assert now - known == set(), (
        f"the installed Flower answers new routes: {sorted(now - known)}. The public port keeps them closed; read what "
        f"they do, then add them to {KNOWN.name}"
    )
    assert {("POST", path) for path in FLEET_PATHS} <= now, "the installed Flower misses fleet routes that we use"


def test_only_the_documented_routes_answer(link: Link, plain: Door) -> None:
    headers = {ADMIN_HEADER: link.admin}
    answered = set()
    with httpx.Client(base_url=plain.url, headers=headers) as client:
        for _, path in link.routes():
            for method in ("GET", "HEAD", "POST"):
                response = client.request(method, path, content=b"" if method == "POST" else None)
                if not closed(response.status_code):
                    answered.add((method, path))
    assert {("POST", path) for path in FLEET_PATHS} | {("GET", "/health")} == answered


def test_each_documented_route_answers(door: Door) -> None:
    with httpx.Client(base_url=door.url, verify=door.trust()) as client:
        for method, path in sorted(PUBLIC):
            status = client.request(method, path, content=b"{}" if method == "POST" else None).status_code
            expected = 401 if path in FLEET_PATHS else 400 if path == JOIN_PATH else 404 if "bundle" in path else 200
            assert status == expected, f"{method} {path}"


@pytest.mark.parametrize("method", METHODS)
def test_a_method_too_many_is_refused_with_those_there_are(door: Door, method: str) -> None:
    allowed = {"/health": "GET", JOIN_PATH: "POST", "/v1/fleet/pull-object": "POST", "/api/v1/bundle": "GET, HEAD"}
    for path, methods in allowed.items():
        if method in methods.split(", "):
            continue
        with door.connect() as connection:
            connection.sendall(head(method, path, 0))
            answer = read_answer(connection, is_head=method == "HEAD")
        assert answer.status == 405 and answer.headers["allow"] == methods, path


ODD = (
    "/V1/fleet/pull-messages", "/v1/Fleet/pull-messages", "/v1/fleet/Pull-Messages", "/HEALTH",
    "//v1/fleet/pull-messages", "/v1//fleet/pull-messages", "/v1/fleet//pull-messages", "//health",
    "/v1/fleet/pull-messages/", "/health/", "/tinylora/join/", "/./health", "/x/../health", "/health/.", "/health/..",
    "/v1/fleet/../control/start-run", "/v1/fleet/%2e%2e/control/start-run", "/v1/fleet/..%2fcontrol/start-run",
    "/v1/fleet/%2e%2e%2fcontrol%2fstart-run", "/%761/control/start-run", "/v1%2fcontrol%2fstart-run",
    "/v1/control%2fstart-run", "/v1/fleet/pull%2dmessages", "/%68ealth", "/health%00", "/health%20", "/health;x=1",
    "/health?x=1", "/health?/v1/control/start-run", "/v1/fleet/pull-messages?x", "/health#x", "/health\\",
    "/\\v1\\control\\start-run", "\\v1\\control\\start-run", "/v1/fleet/pull-messages/..;/start-run",
    "http://127.0.0.1/v1/control/start-run", "https://127.0.0.1/health", "http://localhost/health", "health", "*",
    "/v1/control/start-run", "//v1/control/start-run", "/v1//control/start-run", "/v1/control/start-run/",
    "/v1/runtime/acquire-task", "/v1/fleet/register-node", "/v1/fleet/get-fab", "/v1/fleet/get-run",
    "/v1/fleet/unregister-node", "/docs", "/docs/", "/docs/oauth2-redirect", "/openapi.json", "/redoc", "/", "/metrics",
    "/api/v1/bundle/../../../v1/control/list-runs", "/api/v1/bundle/x", "/api/v1", "/favicon.ico", "/.env",
    "/v1/control/../../health", "/%2e%2e/health", "/health%0d%0aget", "/\x7f",
)  # fmt: skip


@pytest.mark.parametrize("target", ODD)
def test_odd_spellings_are_other_paths(link: Link, plain: Door, target: str) -> None:
    headers = signed(plain.worker) | {ADMIN_HEADER: link.admin}
    for method in ("GET", "POST", "HEAD"):
        for version in ("HTTP/1.1", "HTTP/1.0"):
            raw = head(method, target, 0, **headers).replace(b"HTTP/1.1", version.encode(), 1)
            with plain.connect() as connection:
                connection.sendall(raw)
                status = read_answer(connection, is_head=method == "HEAD").status
            assert status in (0, 400, 404), f"{method} {target} {version}: {status}"


RAW = {
    "obs-fold": b"GET /v1/control/start-run HTTP/1.1\r\nhost: x\r\n y: z\r\n\r\n",
    "tab for space": b"GET\t/v1/control/start-run\tHTTP/1.1\r\nhost: x\r\n\r\n",
    "two spaces": b"GET  /v1/control/start-run HTTP/1.1\r\nhost: x\r\n\r\n",
    "no host": b"GET /v1/control/start-run HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /v1/control/start-run HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    "other version": b"GET /v1/control/start-run HTTP/1.2\r\nhost: x\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "bare line feeds": b"GET /v1/control/start-run HTTP/1.1\nhost: x\n\n",
    "non-ASCII path": b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
    "length and chunks": b"POST /tinylora/join HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n"
    b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"POST /tinylora/join HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\n",
    "signed length": b"POST /tinylora/join HTTP/1.1\r\nhost: x\r\ncontent-length: +4\r\n\r\n",
    "chunked twice": b"POST /tinylora/join HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, chunked\r\n\r\n",
    "a name with a space": b"POST /tinylora/join HTTP/1.1\r\nhost: x\r\ncontent-length : 4\r\n\r\n",
    "not HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}


@pytest.mark.parametrize("name", RAW)
def test_what_is_no_http_is_not_obeyed(plain: Door, name: str) -> None:
    assert plain.ask(RAW[name]).status in (0, 400, 404, 411)


def test_a_smuggled_second_request_is_not_answered(door: Door) -> None:
    inner = b"POST /v1/control/list-runs HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
    with door.connect() as connection:
        connection.sendall(head("POST", JOIN_PATH, 5, transfer_encoding="chunked") + b"0\r\n\r\n" + inner)
        assert read_answer(connection).status in (400, 411)
        assert read_answer(connection).status == 0  # it hung up


def test_an_upgrade_is_not_made(door: Door) -> None:
    upgrade = {"connection": "upgrade", "upgrade": "websocket", "sec_websocket_version": "13"}
    assert door.ask(head("GET", "/v1/control/stream-logs", **upgrade)).status == 404
    assert door.ask(head("GET", "/health", **upgrade, sec_websocket_key="eA==")).status == 200


def test_who_asks_for_whom_does_not_matter(link: Link, door: Door) -> None:
    tricks = {
        "x_forwarded_for": "127.0.0.1", "x_real_ip": "127.0.0.1", "forwarded": "for=127.0.0.1", "x_original_url": "/x",
        "x_rewrite_url": "/v1/control/list-runs", "x_http_method_override": "POST", ADMIN_HEADER: link.admin,
    }  # fmt: skip
    assert door.ask(head("POST", "/v1/control/list-runs", 0, **tricks)).status == 404
    assert (
        door.ask(head("GET", "/health", **tricks).replace(f"host: {HOST}".encode(), b"host: evil.example")).status
        == 200
    )


def test_answers_carry_what_browsers_need_and_nothing_of_the_server(door: Door) -> None:
    for path in ("/health", "/v1/control/list-runs", "/api/v1/status", "/ca.pem"):
        headers = door.ask(head("GET", path)).headers
        assert (
            headers["x-content-type-options"] == "nosniff"
            and "default-src 'none'" in headers["content-security-policy"]
        )
        assert headers["strict-transport-security"].startswith("max-age=") and "server" not in headers
        assert headers["cache-control"] == "no-store"


def test_the_dashboard_has_no_address_of_flowers(link: Link) -> None:
    flowers = {(verb, path) for _, path in link.routes() for verb in ("GET", "POST", "DELETE")}
    assert not [route for route in flowers if is_ours(route[0], route[1].encode())]


def test_the_ca_is_told_to_everybody(door: Door) -> None:
    assert door.ask(head("GET", "/ca.pem")).body == door.keys.ca.read_bytes()

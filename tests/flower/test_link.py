"""The public port: who gets in, and that nothing else of Flower does."""

import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.flower.helpers import FACTS, TOKEN, Federation, federation
from tinylora.errors import BaseModelError, NetworkError, RefusedError, SettingError
from tinylora.flower.enrolment import JOIN_PATH, STATE_PATH, Address, ask_state, join
from tinylora.flower.identity import new_identity
from tinylora.flower.link import ADMIN_HEADER, MAX_BODY_BYTES, PUBLIC_PATHS, serve_in_thread

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of alembic, about flwr's use


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with federation(tmp_path_factory.mktemp("link")) as running:
        yield running


def flower_routes(served: Federation) -> list[tuple[str, str]]:
    """Flower's own list of what it answers, which only the admin header opens."""
    response = httpx.get(served.address.url("/openapi.json"), headers={ADMIN_HEADER: served.link.admin})
    paths: dict[str, dict[str, Any]] = response.json()["paths"]
    return sorted((path, verb) for path, verbs in paths.items() for verb in verbs)


# --- the guard --------------------------------------------------------------------------------------------------


def test_everything_of_flower_but_the_fleet_is_closed(served: Federation) -> None:
    routes = flower_routes(served)
    closed = [(path, verb) for path, verb in routes if path not in PUBLIC_PATHS]
    assert len(closed) > 20 and {path for path, _ in routes} >= PUBLIC_PATHS - {JOIN_PATH, STATE_PATH}
    with httpx.Client() as client:
        for path, verb in closed:
            response = client.request(verb, served.address.url(path))
            assert response.status_code == 403, f"{verb} {path}: {response.status_code}"


@pytest.mark.parametrize("verb", ["GET", "POST", "HEAD", "PUT", "OPTIONS"])
@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run", "/V1/Control/start-run", "//v1/control/start-run", "/v1//control/start-run",
        "/v1/fleet/../control/start-run", "/v1/fleet/%2e%2e/control/start-run", "/v1/fleet/register-node",
        "/v1/fleet/get-fab", "/v1/runtime/acquire-task", "/docs", "/openapi.json", "/", "/health/", "/tinylora/join/",
    ],
)  # fmt: skip
def test_odd_spellings_are_closed_too(served: Federation, verb: str, path: str) -> None:
    host, port = served.address.host_port.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as raw:  # a client library would tidy the path
        raw.sendall(
            f"{verb} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".encode()
        )
        head = raw.makefile("rb").readline()
    assert head.split()[1] in (b"403", b"404", b"405")


def test_a_wrong_admin_header_opens_nothing(served: Federation) -> None:
    response = httpx.post(served.address.url("/v1/control/list-runs"), headers={ADMIN_HEADER: "0" * 64})
    assert response.status_code == 403 and response.json()["error"] == "forbidden"


def test_the_fleet_wants_a_signature(served: Federation) -> None:
    from tinylora.flower.compat.fleet import ActivateNodeRequest, FleetHttpClient

    request = ActivateNodeRequest(public_key=new_identity().public_pem, heartbeat_interval=30.0)
    client = FleetHttpClient.from_server_address(served.address.host_port, True, None, [])
    with client, pytest.raises(httpx.HTTPStatusError) as caught:
        client.ActivateNode(request)
    assert caught.value.response.status_code == 401


def test_a_large_body_is_refused_by_its_length_alone(served: Federation) -> None:
    host, port = served.address.host_port.split(":")
    for path, length in ((JOIN_PATH, 70_000), ("/v1/fleet/push-object", MAX_BODY_BYTES + 1)):
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            raw.sendall(f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {length}\r\n\r\n".encode())
            assert raw.makefile("rb").readline().split()[1] == b"413"


def test_a_body_without_a_length_is_refused(served: Federation) -> None:
    response = httpx.post(served.address.url(JOIN_PATH), content=iter([b"{}"]))
    assert response.status_code == 411


def test_health_and_state_are_public(served: Federation) -> None:
    assert httpx.get(served.address.url("/health")).status_code == 200
    assert ask_state(served.address).phase == "waiting"


# --- joining ----------------------------------------------------------------------------------------------------


def test_the_token_opens_the_door_and_joining_again_is_harmless(served: Federation) -> None:
    identity = new_identity()
    first = join(served.address, TOKEN, identity, name="mine\x1b[2J\n")
    again = join(served.address, TOKEN, identity, name="mine", base=FACTS)
    assert first.answer.worker == again.answer.worker == identity.worker
    assert first.answer.base == FACTS and abs(first.clock_offset_s) < 1.0
    nodes = [node for node in served.link.state.get_node_info() if node.public_key == identity.public_pem]
    assert [node.name for node in nodes] == ["mine [2J"]  # nothing that a terminal would obey


def test_a_wrong_token_is_told_so_and_learns_nothing(served: Federation) -> None:
    with pytest.raises(RefusedError, match="token is wrong"):
        join(served.address, TOKEN + "x", new_identity())
    body = {"token": "no", "public_key": "k", "protocol": 99, "base": None}
    response = httpx.post(served.address.url(JOIN_PATH), json=body)
    assert response.status_code == 403 and set(response.json()) == {"error", "reason", "expected", "received", "time_s"}
    assert response.json()["error"] == "token" and FACTS.base_id not in response.text


def test_another_protocol_is_a_conflict_with_both_numbers(served: Federation) -> None:
    body = {"token": TOKEN, "public_key": new_identity().public_pem.decode(), "protocol": 99, "news": True}
    response = httpx.post(served.address.url(JOIN_PATH), json=body)
    assert response.status_code == 409
    assert {"error": "protocol", "expected": "1", "received": "99"}.items() <= response.json().items()


@pytest.mark.parametrize("part", ["fingerprint", "tokenizer_fingerprint", "feature_hash"])
def test_another_base_is_a_conflict_that_names_the_part(served: Federation, part: str) -> None:
    other = FACTS.model_copy(update={part: "e" * 64})
    with pytest.raises(BaseModelError, match=f"{part} .*{'e' * 16}"):
        join(served.address, TOKEN, new_identity(), base=other)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"token": 1}', b'{"token": "t", "public_key": "k", "protocol": "x"}']
)
def test_a_body_that_is_no_request_is_told_what_is_wrong(served: Federation, body: bytes) -> None:
    response = httpx.post(served.address.url(JOIN_PATH), content=body)
    assert response.status_code == 400 and "join request: field" in response.json()["reason"]


def test_a_key_that_is_none_is_refused(served: Federation) -> None:
    response = httpx.post(served.address.url(JOIN_PATH), json={"token": TOKEN, "public_key": "hello", "protocol": 1})
    assert response.status_code == 403 and response.json()["error"] == "key"


def test_a_worker_that_was_removed_stays_out(served: Federation) -> None:
    from tinylora.flower.compat.link import NOOP_FLWR_AID

    identity = new_identity()
    join(served.address, TOKEN, identity)
    node = served.link.state.get_node_id_by_public_key(identity.public_pem)
    assert node is not None
    served.link.state.delete_node(NOOP_FLWR_AID, node)
    with pytest.raises(RefusedError, match="removed from the run"):
        join(served.address, TOKEN, identity)


# --- addresses --------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_one_sentence(served: Federation) -> None:
    port = int(served.address.host_port.split(":")[1])
    with pytest.raises(NetworkError, match=f"127.0.0.1:{port}: .*choose another --host or --port"):
        serve_in_thread(served.link.app, port=port)


def test_nobody_there_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(NetworkError, match="no coordinator answers"):
        join(Address.parse(f"127.0.0.1:{port}"), TOKEN, new_identity())


def test_somebody_else_there_is_told_as_such(served: Federation) -> None:
    async def stranger(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"<html>"})
        else:
            await _live(receive, send)

    with serve_in_thread(stranger) as other, pytest.raises(NetworkError, match="not as a TinyLoRA coordinator"):
        join(Address.parse(other.host_port), TOKEN, new_identity())


async def _live(receive: Any, send: Any) -> None:
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": f"{message['type']}.complete"})
    await send({"type": "lifespan.shutdown.complete"})


@pytest.mark.parametrize(
    ("text", "host_port", "is_plain"),
    [
        ("127.0.0.1:8443", "127.0.0.1:8443", True),
        ("http://example.org:80/", "example.org:80", True),
        ("https://example.org", "example.org:443", False),
        ("http://[::1]:9", "[::1]:9", True),
        ("localhost", "localhost:80", True),
    ],
)
def test_addresses_are_read(text: str, host_port: str, is_plain: bool) -> None:
    assert Address.parse(text) == Address(host_port, is_plain)


@pytest.mark.parametrize("text", ["", "ftp://a:1", "http://", "a:0", "a:99999", "http://a/path"])
def test_what_is_no_address_is_a_setting_error(text: str) -> None:
    with pytest.raises(SettingError, match="expected the coordinator's address"):
        Address.parse(text)

"""The link: who is let in to Flower by its join route, and that the inner listener answers our own processes alone."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tinylora_coordinator.front_door import listen, serve_internal

from tests.flower.helpers import FACTS, TOKEN, Federation, federation
from tinylora.errors import BaseModelError, NetworkError, RefusedError, SettingError
from tinylora.flower.compat.rounds import Status
from tinylora.flower.enrolment import JOIN_PATH, STATE_PATH, Address, join
from tinylora.flower.identity import new_identity
from tinylora.flower.link import ADMIN_HEADER, LinkSecrets, create_link

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of alembic, about flwr's use


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with federation(tmp_path_factory.mktemp("link")) as running:
        yield running


# --- the guard --------------------------------------------------------------------------------------------------


def test_the_inner_listener_answers_nobody_without_the_header(served: Federation) -> None:
    for headers in ({}, {ADMIN_HEADER: "0" * 64}, {ADMIN_HEADER: ""}):
        for path in ("/openapi.json", "/health", "/v1/control/list-runs", STATE_PATH):
            response = httpx.post(served.inside.url(path), headers=headers)
            assert response.status_code == 403 and response.json()["error"] == "forbidden"


def test_the_header_opens_all_of_flower(served: Federation) -> None:
    headers = {ADMIN_HEADER: served.link.admin}
    paths = httpx.get(served.inside.url("/openapi.json"), headers=headers).json()["paths"]
    assert len(paths) > 20 and "/v1/control/start-run" in paths


def test_the_rounds_end_earlier_runs_and_the_link_does_not(tmp_path: Path) -> None:
    with federation(tmp_path) as first, first.transport():
        before = first.link.state.get_run_info(statuses=[Status.RUNNING])
        assert len(before) == 1
        again = create_link(first.database)
        assert [run.run_id for run in again.state.get_run_info(statuses=[Status.RUNNING])] == [before[0].run_id]
        with first.transport():
            running = first.link.state.get_run_info(statuses=[Status.RUNNING])
            assert [run.run_id for run in running if run.run_id == before[0].run_id] == [] and len(running) == 1


def test_secrets_come_from_outside_where_there_is_a_supervisor(tmp_path: Path) -> None:
    link = create_link(tmp_path / "link.db", LinkSecrets("a" * 64, b"s" * 32))
    assert (link.admin, link.superexec_secret) == ("a" * 64, b"s" * 32)
    assert "a" * 64 not in repr(link) and "ssss" not in repr(link)


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
    identity = new_identity()
    join(served.address, TOKEN, identity)
    served.link.remove(identity.public_pem)
    served.link.remove(identity.public_pem)  # again is harmless
    assert not served.link.is_registered(identity.public_pem)
    with pytest.raises(RefusedError, match="removed from the run"):
        join(served.address, TOKEN, identity)


# --- addresses --------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_one_sentence(served: Federation) -> None:
    port = int(served.address.host_port.split(":")[1])
    with pytest.raises(NetworkError, match=f"127.0.0.1:{port}: .*choose another --host or --port"):
        listen("127.0.0.1", port)


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

    with (
        serve_internal(stranger, listen("127.0.0.1", 0)) as other,
        pytest.raises(NetworkError, match="not as a TinyLoRA coordinator"),
    ):
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

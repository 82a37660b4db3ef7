"""The router between real sockets: which leaf is asked, and that nothing else of a request or an answer changes."""

import contextlib
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.helpers import tiny_base_dir
from tests.proxy.servers import PATIENCE_S, WORDS, LeafServer, served
from tests.routing.test_text_router import bundle_of
from tinylora.base_model import load_base
from tinylora.bundle import write_bundle
from tinylora.proxy.app import LEAF_HEADER, MODEL_HEADER, Limits, make_app
from tinylora.proxy.choosing import Chooser, leaf_name
from tinylora.proxy.upstream import RESPONSE_HEADERS, Upstream
from tinylora.text_router import TextRouter

NAMES = ("leaf-010", "leaf-011", "leaf-1")
"""Of the four leaves, 00 was never trained."""
PATH = "/v1/completions"


@dataclass
class Scene:
    """A client, the router, and the server behind it."""

    client: httpx.Client
    server: LeafServer
    router: TextRouter
    direct: str
    texts: dict[str, str]
    """A text for each leaf."""

    def ask(self, path: str = PATH, **body: Any) -> httpx.Response:
        return self.client.post(path, json=body)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("bundle") / "bundle.safetensors"
    write_bundle(bundle_of(load_base(tiny_base_dir())), file)
    return file


@pytest.fixture(scope="module")
def router(bundle: Path) -> TextRouter:
    return TextRouter.open(bundle, tiny_base_dir())


@pytest.fixture(scope="module")
def texts(router: TextRouter) -> dict[str, str]:
    found: dict[str, str] = {}
    for number in range(1000):
        text = f"{chr(97 + number % 26) * (number % 7 + 1)} {number * number}"
        found.setdefault(router.way(text).path, text)
        if len(found) == len(router.topology.leaves):
            return found
    raise AssertionError(f"no text for some leaves, only for {sorted(found)}")


@pytest.fixture(scope="module")
def running(router: TextRouter, texts: dict[str, str]) -> Iterator[Scene]:
    server = LeafServer(("the-base", *NAMES))
    with served(server.app) as direct, before(router, direct) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield Scene(client, server, router, direct, texts)


@pytest.fixture
def scene(running: Scene) -> Scene:
    running.server.seen.clear()
    running.server.arrived.clear()
    running.server.left.clear()
    return running


@contextlib.contextmanager
def before(router: TextRouter, direct: str, **options: Any) -> Iterator[str]:
    upstream = Upstream(direct, timeout_s=options.pop("timeout_s", PATIENCE_S), fallback="told")
    with served(make_app(Chooser(router), upstream, name="tree", **options)) as url:
        yield url


# --- which leaf -------------------------------------------------------------------------------------------------------


def test_each_text_goes_to_its_leaf(scene: Scene) -> None:
    for leaf, text in scene.texts.items():
        told = scene.ask(model="tree", prompt=text, temperature=0.25, max_tokens=3)
        model = leaf_name(leaf) if leaf != "00" else "the-base"  # which nobody has trained
        assert told.headers[LEAF_HEADER] == leaf and told.headers[MODEL_HEADER] == model
        assert told.json()["model"] == model and told.json()["choices"][0]["text"] == f"{model} says {text}"
        sent = {"model": model, "prompt": text, "temperature": 0.25, "max_tokens": 3}
        assert scene.server.seen.pop()[2] == sent


def test_a_request_that_names_no_model_is_the_trees(scene: Scene) -> None:
    assert scene.ask(prompt=scene.texts["1"]).json()["model"] == "leaf-1"


def test_tokens_are_routed_as_their_text(scene: Scene) -> None:
    ids = scene.router.ids_of(scene.texts["010"])
    assert scene.ask(model="tree", prompt=ids).headers[LEAF_HEADER] == "010"
    assert scene.server.seen.pop()[2]["prompt"] == ids
    refused = scene.ask(model="tree", prompt=[1, 10**9])
    assert refused.status_code == 400 and "expected tokens from 0" in refused.json()["error"]["message"]


def test_a_long_text_is_routed_as_a_short_one(scene: Scene) -> None:
    long = f"{scene.texts['010']}\n" * 1000
    assert scene.ask(model="tree", prompt=long).headers[LEAF_HEADER] == scene.router.way(long).path
    assert scene.server.seen.pop()[2]["prompt"] == long


def test_nothing_is_known_of_an_empty_text(scene: Scene) -> None:
    told = scene.ask(model="tree", prompt="")
    assert told.headers[LEAF_HEADER] == "none" and told.json()["model"] == "the-base"


def test_other_models_are_passed_on_as_they_stand(scene: Scene) -> None:
    for model in ("leaf-011", "the-base", "nobody"):
        body = json.dumps({"prompt": "x", "model": model, "odd": [1.0, 10**30]}, indent=3).encode()
        headers = {"content-type": "application/json"}
        direct = httpx.post(scene.direct + PATH, content=body, headers=headers)
        told = scene.client.post(PATH, content=body, headers=headers)
        assert (told.status_code, told.content) == (direct.status_code, direct.content)
        assert LEAF_HEADER not in told.headers


def test_a_conversation_is_routed_by_its_texts(scene: Scene) -> None:
    text = scene.texts["011"]
    messages = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    told = scene.ask("/v1/chat/completions", model="tree", messages=messages)
    assert told.headers[LEAF_HEADER] == "011"  # this base has no chat template: the contents alone
    assert told.json()["choices"][0]["message"]["content"].startswith("leaf-011 says")
    assert scene.server.seen.pop()[2]["messages"] == messages
    assert scene.ask("/v1/chat/completions", model="tree", messages=[]).status_code == 400


def test_a_chat_template_is_used_where_there_is_one(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}{{ raise }}"
    messages = [{"role": "user", "content": "hello"}]
    monkeypatch.setattr(scene.router.tokenizer, "chat_template", template)
    ids = scene.router.ids_of_chat(messages, max_chars=100)
    assert ids[0] == 0 and ids[-1] == 1 and scene.router.tokenizer.decode(ids[1:-1]) == "user: hello"
    assert len(scene.router.ids_of_chat(messages, max_chars=8)) == 6
    monkeypatch.setattr(scene.router.tokenizer, "chat_template", "{{ raise_exception('no') }}")
    assert scene.router.ids_of_chat(messages, max_chars=100) == scene.router.ids_of("hello")


# --- batches ----------------------------------------------------------------------------------------------------------


def test_a_batch_of_several_leaves_comes_back_in_order(scene: Scene) -> None:
    leaves = ["1", "010", "00", "1", "011", "010"]
    prompts = [scene.texts[leaf] for leaf in leaves]
    told = scene.ask(model="tree", prompt=prompts, n=2)
    found = told.json()
    models = [leaf_name(leaf) if leaf != "00" else "the-base" for leaf in leaves]
    expected = [f"{m} says {t}{end}" for m, t in zip(models, prompts, strict=True) for end in ("", "+")]
    assert [choice["text"] for choice in found["choices"]] == expected
    assert [choice["index"] for choice in found["choices"]] == list(range(12))
    assert found["usage"]["total_tokens"] == 18 and found["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}
    assert found["model"] == "tree" and len(scene.server.seen) == 4
    assert told.headers[LEAF_HEADER] == "1,010,00,011"


def test_a_batch_of_one_leaf_is_one_request(scene: Scene) -> None:
    prompts = [scene.texts["1"], scene.texts["1"]]
    told = scene.ask(model="tree", prompt=prompts)
    direct = httpx.post(scene.direct + PATH, json={"model": "leaf-1", "prompt": prompts})
    assert told.content == direct.content and len(scene.server.seen) == 2


def test_a_batch_of_several_leaves_cannot_stream(scene: Scene) -> None:
    told = scene.ask(model="tree", prompt=[scene.texts["1"], scene.texts["010"]], stream=True)
    assert told.status_code == 400 and told.json()["error"]["code"] == "several_leaves"
    assert not scene.server.seen


@pytest.mark.parametrize(("mood", "status"), [("busy", 429), ("junk", 502)])
def test_where_a_part_of_a_batch_fails_all_of_it_does(scene: Scene, mood: str, status: int) -> None:
    told = scene.ask(model="tree", prompt=[scene.texts["1"], scene.texts["010"]], user=mood)
    assert told.status_code == status and "message" in told.json()["error"]
    if status == 429:
        assert told.json() == {"error": {"message": "busy"}} and told.headers["retry-after"] == "3"


# --- streams ----------------------------------------------------------------------------------------------------------


def test_streams_come_part_by_part(scene: Scene) -> None:
    body = {"model": "tree", "prompt": scene.texts["1"], "stream": True, "user": "steps"}
    with scene.client.stream("POST", PATH, json=body) as told:
        assert told.headers["content-type"].startswith("text/event-stream") and told.headers[LEAF_HEADER] == "1"
        events = told.iter_lines()
        for number in range(WORDS):
            scene.server.go.release()  # the next part is not even made before the last one was seen here
            assert f"{scene.texts['1']} {number}" in next(line for line in events if line)
        assert [line for line in events if line] == ["data: [DONE]"]


def test_streams_are_the_same_bytes(scene: Scene) -> None:
    body = {"prompt": scene.texts["010"], "stream": True}
    direct = httpx.post(scene.direct + PATH, json=body | {"model": "leaf-010"})
    assert scene.ask(model="tree", **body).content == direct.content


def test_a_stream_that_breaks_off_breaks_off(scene: Scene) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        scene.ask(model="tree", prompt=scene.texts["1"], stream=True, user="breaks")


@pytest.mark.parametrize("mood", ["silent", "endless"])
def test_who_leaves_ends_what_was_asked(scene: Scene, mood: str) -> None:
    body = {"model": "tree", "prompt": scene.texts["1"], "stream": mood == "endless", "user": mood}
    data = json.dumps(body).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    address = (scene.client.base_url.host, scene.client.base_url.port)
    with socket.create_connection(address, timeout=PATIENCE_S) as client:
        client.sendall(head.encode() + data)
        assert scene.server.arrived.wait(PATIENCE_S)
        if mood == "endless":
            assert client.recv(16) == b"HTTP/1.1 200 OK\r"
    assert scene.server.left.wait(PATIENCE_S)


# --- what passes ------------------------------------------------------------------------------------------------------


def test_errors_are_the_servers_own(scene: Scene) -> None:
    told = scene.ask(model="tree", prompt=scene.texts["1"], user="busy")
    assert (told.status_code, told.json()) == (429, {"error": {"message": "busy"}})
    assert told.headers["retry-after"] == "3"
    missing = scene.ask(model="leaf-000", prompt="x")
    assert (missing.status_code, missing.json()["error"]["message"]) == (404, "no leaf-000")


def test_only_headers_on_the_list_pass(scene: Scene) -> None:
    given = {"authorization": "Bearer k", "x-request-id": "r9", "cookie": "a=b", "x-forwarded-for": "1.2.3.4"}
    told = scene.client.post(PATH, json={"model": "tree", "prompt": scene.texts["1"]}, headers=given)
    sent = scene.server.seen.pop()[1]
    assert sent["authorization"] == "Bearer k" and sent["x-request-id"] == "r9"
    assert "cookie" not in sent and "x-forwarded-for" not in sent and sent["host"] in scene.direct
    ours = {LEAF_HEADER, MODEL_HEADER, "date", "x-ratelimit-remaining-requests"}
    assert set(told.headers) <= RESPONSE_HEADERS | ours
    assert told.headers["x-request-id"] == "r1" and told.headers["x-ratelimit-remaining-requests"] == "7"


def test_models_and_health(scene: Scene) -> None:
    told = scene.client.get("/v1/models").json()
    assert [one["id"] for one in told["data"]] == ["tree", *NAMES] and told["object"] == "list"
    assert scene.client.get("/v1/models/leaf-1").json()["id"] == "leaf-1"
    assert scene.client.get("/v1/models/leaf-00").status_code == 404
    assert scene.client.get("/health").json() == {"status": "ok", "upstream": True}


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", PATH, b"{", 400),
        ("POST", PATH, b'{"model":"tree"}', 400),
        ("POST", PATH, b'{"model":7,"prompt":"x"}', 400),
        ("GET", PATH, b"", 405),
        ("POST", "/v1/embeddings", b"{}", 404),
        ("GET", "/..%2fetc", b"", 404),
    ],
)
def test_refusals_have_openais_shape(scene: Scene, method: str, path: str, content: bytes, status: int) -> None:
    told = scene.client.request(method, path, content=content)
    assert told.status_code == status and set(told.json()["error"]) == {"message", "type", "param", "code"}
    assert not scene.server.seen


# --- faults -----------------------------------------------------------------------------------------------------------


def test_long_and_slow_bodies_are_refused(scene: Scene) -> None:
    limits = Limits(body_bytes=100, body_s=0.2)
    with before(scene.router, scene.direct, limits=limits) as url:
        for content in (b"x" * 101, (part for part in (b"x" * 60, b"y" * 60))):
            assert httpx.post(url + PATH, content=content).status_code == 413
        with socket.create_connection(("127.0.0.1", httpx.URL(url).port), timeout=PATIENCE_S) as client:
            client.sendall(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{{".encode())
            assert client.recv(12) == b"HTTP/1.1 408"


def test_a_server_that_is_not_there(scene: Scene) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    with before(scene.router, f"http://127.0.0.1:{port}") as url:
        told = httpx.post(url + PATH, json={"model": "tree", "prompt": scene.texts["00"]})
        assert told.status_code == 502 and told.json()["error"]["code"] == "upstream_unreachable"
        assert httpx.get(url + "/health").status_code == 503


def test_a_server_that_says_nothing(scene: Scene) -> None:
    with before(scene.router, scene.direct, timeout_s=0.3) as url:
        told = httpx.post(url + PATH, json={"model": "tree", "prompt": scene.texts["1"], "user": "silent"})
        assert told.status_code == 504 and told.json()["error"]["code"] == "upstream_timeout"
    assert scene.server.left.wait(PATIENCE_S)


def test_a_fault_of_our_own_is_told(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene.router, "way_of_ids", lambda _ids: 1 / 0)
    told = scene.ask(model="tree", prompt="x")
    assert told.status_code == 500 and told.json()["error"]["type"] == "server_error"

"""The whole way: a bundle, its exported leaves in an OpenAI-compatible server, the router as a process of its own."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from tests.helpers import tiny_base_dir
from tests.proxy.servers import PATIENCE_S, LeafServer, served
from tests.routing.test_text_router import bundle_of
from tinylora.base_model import LoadedBase, load_base
from tinylora.bundle import Bundle, read_bundle, write_bundle
from tinylora.cli import app
from tinylora.command_line import exit_code_of
from tinylora.export import Places, export_leaf
from tinylora.model import TreeModel
from tinylora.text_router import TextRouter

N_NEW = 6
LEAVES = ("010", "1")
TEXTS = {"010": "ffffff 25", "1": "a 0"}
"""A text for each leaf, by the router."""
START_S = 90.0


@pytest.fixture(scope="module")
def base() -> LoadedBase:
    return load_base(tiny_base_dir())


@pytest.fixture(scope="module")
def bundle(base: LoadedBase) -> Bundle:
    made = bundle_of(base)
    generator = torch.Generator().manual_seed(0)
    for state in made.nodes.values():
        for name, tensor in state.items():
            state[name] = 0.5 * torch.randn(tensor.shape, generator=generator)
    return made


@pytest.fixture(scope="module")
def file(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("bundle") / "bundle.safetensors"
    write_bundle(bundle, found, dtype="F32")
    router = TextRouter.open(found, tiny_base_dir())
    assert {leaf: router.way(text).path for leaf, text in TEXTS.items()} == {leaf: leaf for leaf in TEXTS}
    return found


@pytest.fixture(scope="module")
def exported(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every leaf as a folder of its name."""
    folder, read = tmp_path_factory.mktemp("leaves"), read_bundle(file)
    for leaf in LEAVES:
        export_leaf(read, leaf, folder / f"leaf-{leaf}", places=Places.find(tiny_base_dir()), base=str(tiny_base_dir()))
    return folder


@pytest.fixture(scope="module")
def expected(bundle: Bundle) -> dict[str, str]:
    """What our own model writes behind each text, at its leaf."""
    base = load_base(tiny_base_dir())
    model = TreeModel.from_bundle(bundle, base, "hard")
    found = {}
    for leaf, text in TEXTS.items():
        model.route_to(leaf)
        ids = base.tokenizer(text, return_tensors="pt")["input_ids"]
        out = model.generate(ids, max_new_tokens=N_NEW, eos_token_id=())
        found[leaf] = base.tokenizer.decode(out[0, ids.shape[1] :])
    assert found["010"] != found["1"]
    return found


@contextmanager
def process(*arguments: str, cwd: Path | None = None, **environment: str) -> Iterator[subprocess.Popen[str]]:
    command, variables = [sys.executable, "-m", *arguments], {**os.environ, **environment}
    made = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, text=True, env=variables)
    try:
        yield made
    finally:
        made.kill()
        made.wait()
        if made.stdout:
            made.stdout.close()


def answered_by_peft(base: LoadedBase, folder: Path) -> Any:
    """Greedy continuation by transformers and PEFT alone, of the leaf that is asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, about what will change
        from peft import PeftModel

        model = PeftModel.from_pretrained(base.model, str(folder / "leaf-010"), "leaf-010")
        model.load_adapter(str(folder / "leaf-1"), "leaf-1")

    @torch.no_grad()
    def complete(name: str, prompt: str) -> str:
        model.set_adapter(name)
        ids = base.tokenizer(prompt, return_tensors="pt")["input_ids"]
        n_read = ids.shape[1]
        for _ in range(N_NEW):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
        return base.tokenizer.decode(ids[0, n_read:])

    return complete


def test_the_router_as_a_process(base: LoadedBase, file: Path, exported: Path, expected: dict[str, str]) -> None:
    """An ordinary client gets, from an ordinary server, what our own model would say; then the end is asked for."""
    server = LeafServer(("base", *(f"leaf-{leaf}" for leaf in LEAVES)), complete=answered_by_peft(base, exported))
    with served(server.app) as url:
        options = (str(file), "--base", str(tiny_base_dir()), "--upstream", f"{url}/v1", "--port", "0", "--check-base")
        with process("tinylora.cli", "route-proxy", *options, PYTHONUNBUFFERED="1") as router:
            assert router.stdout
            line = router.stdout.readline()
            address = re.match(r"(http://127\.0\.0\.1:\d+/v1) routes model 'tree' to 3 leaves", line)
            assert address, line
            assert "has no model leaf-011" in router.stdout.readline()
            with openai.OpenAI(base_url=address[1], api_key="k", max_retries=0, timeout=PATIENCE_S) as client:
                for leaf, text in TEXTS.items():
                    told = client.completions.create(model="tree", prompt=text)
                    assert (told.model, told.choices[0].text) == (f"leaf-{leaf}", expected[leaf])
                both = client.completions.create(model="tree", prompt=[*TEXTS.values()])
                assert [choice.text for choice in both.choices] == [*expected.values()]
                assert both.usage and both.usage.completion_tokens == 2
                stream = client.completions.create(model="tree", prompt=TEXTS["1"], stream=True)
                assert [part.choices[0].text for part in stream] == [f"{expected['1']} {n}" for n in range(3)]
                with pytest.raises(openai.RateLimitError, match="busy"):
                    client.completions.create(model="tree", prompt=TEXTS["1"], user="busy")
                assert "leaf-010" in [model.id for model in client.models.list()]
            router.send_signal(signal.SIGTERM)
            assert router.wait(PATIENCE_S) == 0


def test_what_cannot_work_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    command = ["route-proxy", str(tmp_path / "none")]
    assert exit_code_of(lambda: app([*command, "--upstream", "127.0.0.1:8000"])) == 2
    assert exit_code_of(lambda: app([*command, "--upstream", "http://x", "--name", "leaf-1"])) == 2
    assert exit_code_of(lambda: app([*command, "--upstream", "http://x"])) == 5


def test_a_port_that_is_taken(file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = ["route-proxy", str(file), "--base", str(tiny_base_dir()), "--upstream", "http://x", "--port", port]
        assert exit_code_of(lambda: app(command)) == 6


# --- transformers' own server -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_in_front_of_transformers_serve(file: Path, exported: Path, expected: dict[str, str], tmp_path: Path) -> None:
    """`transformers serve` takes folders as model names: the base with a leaf's adapter beside it, in each."""
    for leaf in LEAVES:
        folder = shutil.copytree(exported / f"leaf-{leaf}", tmp_path / f"leaf-{leaf}")
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny_base_dir() / name, folder / name)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = ("serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32")
    offline = {"HF_HUB_OFFLINE": "1"}
    with process("transformers.cli.transformers", *arguments, cwd=tmp_path, **offline):
        _until_it_answers(f"http://127.0.0.1:{port}/health")
        options = (str(file), "--base", str(tiny_base_dir()), "--upstream", f"http://127.0.0.1:{port}", "--port", "0")
        with process("tinylora.cli", "route-proxy", *options, PYTHONUNBUFFERED="1") as router:
            assert router.stdout
            address = router.stdout.readline().split()[0]
            known: dict[str, Any] = {"api_key": "k", "max_retries": 0, "timeout": START_S}
            direct = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", **known)
            with openai.OpenAI(base_url=address, **known) as client, direct:
                for leaf, text in TEXTS.items():
                    asked: dict[str, Any] = {"prompt": text, "max_tokens": N_NEW, "temperature": 0.0}
                    told = client.completions.create(model="tree", **asked)
                    assert told.choices[0].text == expected[leaf] and told.model.startswith(f"leaf-{leaf}")
                    streams = (
                        client.completions.create(model="tree", stream=True, **asked),
                        direct.completions.create(model=f"leaf-{leaf}", stream=True, **asked),
                    )
                    ours, theirs = ([part.choices for part in stream] for stream in streams)
                    assert ours == theirs and len(ours) > 1
                with pytest.raises(openai.BadRequestError):  # it takes one prompt at a time, and says so
                    client.completions.create(model="tree", prompt=[*TEXTS.values()])


def _until_it_answers(url: str) -> None:
    """Connections are refused while it starts: each try waits a little by itself."""
    transport = httpx.HTTPTransport(retries=12)  # 0.5 s · 2^n between tries
    with httpx.Client(transport=transport, timeout=START_S) as client:
        assert client.get(url).status_code == 200

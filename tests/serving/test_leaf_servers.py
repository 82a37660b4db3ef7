"""Two processes, each with the base and its own leaves, serve one batch as one process with everything does."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.commands.test_simulate_command import run
from tests.helpers import tiny_base_dir, tiny_base_model
from tests.model.families import fill_randomly
from tinylora.adapters.spec import AdapterSpec
from tinylora.answering import opening
from tinylora.base_model import LoadedBase
from tinylora.bundle import Bundle, read_bundle, write_bundle
from tinylora.errors import DataError, SettingError, TinyLoraError
from tinylora.generation import Continuation, continue_prompts
from tinylora.model import TreeModel
from tinylora.routing.gates import Gate, Gates
from tinylora.routing.policy import Policy, Router
from tinylora.serving.servers import LeafServers, Served
from tinylora.tree import Topology

TREE = Topology(("0", "10", "11"))
LORA = AdapterSpec("lora", 4)
TRAINED = ("", "0", "10")
POLICY = Policy.parse("hard@sequence:6")
MAX_NEW = 10
MAP = "0=cpu:0,1=cpu:1"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with an adapter at the root, one leaf that nobody has trained, and gates that send texts everywhere."""
    base = tiny_base_model()
    model = TreeModel(base, nodes=TRAINED, spec=LORA, scale=1.0, router=_router(base))
    fill_randomly(model, size=0.4)
    nodes = {path: model.node_state(path) for path in TRAINED}
    bundle = Bundle(
        run="run", topology=TREE, base=base.facts, spec=LORA, scale=1.0, nodes=nodes, gates=_gates(base),
        policy=str(POLICY), projection=base.routing_feature.projection,
    )  # fmt: skip
    file = tmp_path_factory.mktemp("bundle") / "bundle.safetensors"
    write_bundle(bundle, file, dtype="F32")
    return file


def _gates(base: LoadedBase) -> Gates:
    generator = np.random.default_rng(0)
    dim = base.facts.feature_dim
    return Gates({node: Gate(generator.normal(size=dim), 0.0, 1.0) for node in TREE.inner}, dim)


def _router(base: LoadedBase) -> Router:
    return Router(base.routing_feature, _gates(base), TREE, TRAINED)


@pytest.fixture(scope="module")
def whole(file: Path) -> TreeModel:
    """Everything in this process."""
    return TreeModel.from_bundle(read_bundle(file), tiny_base_model())


@pytest.fixture(scope="module")
def shared_pair(file: Path) -> Iterator[LeafServers]:
    with LeafServers(file, tiny_base_dir(), MAP, batch_size=4, threads=1) as servers:
        yield servers


@pytest.fixture
def pair(shared_pair: LeafServers) -> LeafServers:
    """The two servers, up again if a test has ended them."""
    shared_pair.start()
    return shared_pair


def prompts(n: int = 24) -> list[list[int]]:
    """Texts of 1 to 12 tokens: half of them are too short for a decision at token 6."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 250, (1 + i % 12,), generator=generator).tolist() for i in range(n)]


def in_one_process(whole: TreeModel, rows: list[list[int]], **options: Any) -> list[Continuation]:
    """Each row in one batch of the whole model."""
    return continue_prompts(whole, rows, max_new_tokens=MAX_NEW, **options)


def as_one(found: list[Served]) -> list[Continuation]:
    return [Continuation(row.tokens, row.text, row.finish) for row in found]


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("policy", ["hard@sequence:6", "hard@sequence:1", "elastic:0.6@sequence:6"])
def test_two_processes_say_what_one_says(pair: LeafServers, whole: TreeModel, policy: str) -> None:
    pair.policy = whole.policy = Policy.parse(policy)
    rows, n_short = prompts(), 10 if pair.policy.size == 6 else 0
    order = []
    found = pair.generate(rows, max_new_tokens=MAX_NEW, eos_token_id=(), on_row=lambda i, _: order.append(i))
    assert as_one(found) == in_one_process(whole, rows, eos_token_id=())
    assert {row.device for row in found} == {"cpu:0", "cpu:1"}
    assert all(row.device == pair.devices.of_leaf.get(str(row.path), row.device) for row in found)
    assert sorted(order) == list(range(len(rows))) and order != sorted(order)
    assert sum(len(row) < pair.policy.size for row in rows) == n_short
    paths = {row.path for row in found}
    assert paths == {"0", "10", "11"} if pair.policy.decision == "hard" else len(paths) > 2


def test_rows_end_where_they_end_in_one_process(pair: LeafServers, whole: TreeModel) -> None:
    pair.policy = whole.policy = POLICY
    rows = prompts()
    free = in_one_process(whole, rows, eos_token_id=())
    ends = [row.tokens[i % 8] for i, row in enumerate(free)][::4]
    options = {"eos_token_id": ends, "stop": [row.text[2:4] for row in free[::3]]}
    found = pair.generate(rows, max_new_tokens=MAX_NEW, **options)
    assert as_one(found) == in_one_process(whole, rows, **options)
    assert {row.finish for row in found} == {"end", "stop", "length"}
    assert any(row.path is None for row in found)


def test_drawn_tokens_are_those_of_one_process(pair: LeafServers, whole: TreeModel) -> None:
    pair.policy = whole.policy = POLICY
    options: dict[str, Any] = {"temperature": 1.2, "top_k": 50, "seed": 3, "eos_token_id": ()}
    found = pair.generate(prompts(), max_new_tokens=MAX_NEW, **options)
    assert as_one(found) == in_one_process(whole, prompts(), **options)
    own = pair.generate(prompts(2), max_new_tokens=MAX_NEW, **{**options, "seed": [7, 8]})
    assert as_one(own) == in_one_process(whole, prompts(2), **options | {"seed": [7, 8]})
    pair.generate(prompts(2), max_new_tokens=1, temperature=1.0)


def test_texts(pair: LeafServers, whole: TreeModel) -> None:
    pair.policy = whole.policy = POLICY
    found = pair.generate(["to be"], max_new_tokens=MAX_NEW)
    ids = [0, *whole.base.tokenizer("to be", add_special_tokens=False)["input_ids"]]
    assert as_one(found) == in_one_process(whole, [ids])
    assert pair.generate([], max_new_tokens=4) == []


@pytest.mark.parametrize("policy", ["hard@sequence:6", "elastic:0.6@sequence:6"])
def test_scores(pair: LeafServers, whole: TreeModel, policy: str) -> None:
    pair.policy = whole.policy = Policy.parse(policy)
    rows = prompts()
    for row, values in zip(rows, pair.score(rows), strict=True):
        expected = whole.token_nll(torch.tensor([row]))[0][0] if len(row) > 1 else torch.zeros(0)
        torch.testing.assert_close(torch.tensor(values), expected, rtol=0, atol=1e-5)


def test_each_has_read_its_leaves_and_what_is_above_them(pair: LeafServers, whole: TreeModel) -> None:
    size = sum(tensor.nbytes for tensor in whole.node_state("0").values())
    assert pair.held == {
        "cpu:0": {"nodes": ["", "0"], "adapter_bytes": 2 * size},
        "cpu:1": {"nodes": ["", "10", "11"], "adapter_bytes": 2 * size},
    }


def test_a_failure_costs_the_request_and_nothing_else(pair: LeafServers) -> None:
    pids = pair.pids
    with pytest.raises(SettingError, match="expected temperature >= 0"):
        pair.generate(prompts(), max_new_tokens=3, temperature=-1.0)
    with pytest.raises(DataError, match="token 4000: this base has tokens 0 to 258"):
        pair.generate([[3] * 8, [4000]], max_new_tokens=3)
    with pytest.raises(SettingError, match="with leaves on 2 devices a text must stay on one path; choose hard@seq"):
        pair.policy = Policy.parse("soft")
    with pytest.raises(SettingError, match="this base attends to 64"):
        pair.score([[3] * 65])
    assert len(pair.generate(prompts(), max_new_tokens=3)) == 24
    assert pair.pids == pids


def test_one_that_is_killed_is_told_of_and_ends_the_other(pair: LeafServers) -> None:
    pids = pair.pids
    with pytest.raises(TinyLoraError, match=r"leaves on cpu:1 is gone: .*SIGKILL"):
        pair.generate(prompts(), max_new_tokens=MAX_NEW, on_row=lambda *_: os.kill(pids["cpu:1"], signal.SIGKILL))
    assert all(gone(pid) for pid in pids.values())
    with pytest.raises(TinyLoraError, match="not running"):
        pair.generate(prompts(), max_new_tokens=1)


def test_the_command_writes_the_lines_that_one_process_writes(
    pair: LeafServers, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.policy = POLICY
    asked = tmp_path / "asked.jsonl"
    rows: list[dict[str, Any]] = [
        {"prompt": text} for text in ("to be", "or", "not to be", "x", "that is the question")
    ]
    rows.append({"messages": [{"role": "user", "content": "is it?"}]})
    asked.write_text("\n".join(map(json.dumps, rows)))
    given = []
    monkeypatch.setattr(opening, "LeafServers", lambda *some, **_: given.extend(some) or pair)
    monkeypatch.setattr(pair, "close", lambda: None)
    common = ("generate", file, "--base", tiny_base_dir(), "--max-new-tokens", 8, "--temperature", 0.7, "--threads", 1)
    assert run(*common, "--in", asked, "--out", tmp_path / "one") == 0
    assert given == []
    assert run(*common, "--in", asked, "--out", tmp_path / "two", "--device-map", MAP) == 0
    assert given == [file, str(tiny_base_dir()), MAP]
    lines = (tmp_path / "two").read_text()
    assert lines == (tmp_path / "one").read_text()
    assert len({json.loads(line)["leaf"] for line in lines.splitlines()}) > 2
    assert run(*common, "--prompt", "to be", "--device-map", MAP) == 0
    for more in (("--device", "cpu"), ("--leaves", "0")):
        assert run(*common, "--prompt", "a", "--device-map", MAP, *more) == 2

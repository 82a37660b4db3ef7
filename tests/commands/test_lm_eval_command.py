"""`tinylora lm-eval`: lm-eval's own numbers for a bundle, with a task of our own, so that nothing is downloaded."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.commands.test_eval_command import three_leaves
from tests.commands.test_simulate_command import run
from tests.helpers import WINDOW_TOKENS, tiny_base_dir
from tinylora.bundle import read_bundle
from tinylora.eval_harness import TreeLM, evaluate_on_tasks
from tinylora.export import Places, export_leaf
from tinylora.model import TreeModel
from tinylora.routing.decision import Policy

# Of lm-eval and what it imports, not of ours.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

CHOICES = {
    "cat": ["dog", "bird"],
    "1 2": ["3 4", "4 3"],
    "the hill is": ["green", "a number"],
    "x": ["y", "longer than y"],
}
TASKS = {
    "own_choice": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: label
metric_list:
  - metric: acc
  - metric: acc_norm
""",
    "own_writing": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["e"], max_gen_toks: 8, do_sample: false}
metric_list:
  - metric: exact_match
""",
    "own_text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{long}}"
metric_list:
  - metric: bits_per_byte
""",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("lm-eval")


@pytest.fixture(scope="module")
def bundle(place) -> Path:
    return three_leaves(place / "bundle.safetensors")


@pytest.fixture(scope="module")
def tasks(place) -> Path:
    folder = place / "tasks"
    folder.mkdir()
    rows = [
        {"question": question, "choices": choices, "label": number % 2, "long": f"{question} {choices} " * 5}
        for number, (question, choices) in enumerate(CHOICES.items())
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in TASKS.items():
        data = (
            f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / 'rows.jsonl'}}}}}\ntest_split: test"
        )
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{data}{text}")
    return folder


@pytest.fixture
def model(bundle) -> TreeModel:
    return TreeModel.from_pretrained(tiny_base_dir(), bundle)


class Request:
    def __init__(self, *arguments: object) -> None:
        self.args = self.arguments = arguments


def pairs() -> list[tuple[str, str]]:
    return [(question, f" {choice}") for question, choices in CHOICES.items() for choice in choices]


def bos_first(lm: TreeLM, text: str) -> torch.Tensor:
    return torch.tensor([[lm.prefix_token_id, *lm.tok_encode(text)]])


@pytest.mark.parametrize("policy", ["soft", "hard", "top2", "hard@sequence:8"])
def test_log_likelihoods_are_those_of_token_nll_whatever_the_batch(model, policy):
    model.policy = Policy.parse(policy)
    for batch_size in (1, 3, 8):
        lm = TreeLM(model, batch_size=batch_size)
        requests = [Request(*pair) for pair in pairs()]
        for (context, more), (found, _) in zip(pairs(), lm.loglikelihood(requests, disable_tqdm=True), strict=True):
            nll, _ = model.token_nll(torch.tensor([lm.tok_encode(context + more)]))
            n_more = len(lm.tok_encode(more))
            assert found == pytest.approx(-float(nll[0, -n_more:].sum()), abs=1e-4)


@pytest.mark.parametrize("policy", ["soft", "hard", "hard@window:8", "hard@sequence:8"])
def test_a_long_text_keeps_its_routing_from_window_to_window(model, policy):
    """Two windows by hand: the router has read all before, the base its window."""
    model.policy = Policy.parse(policy)
    texts = ["a cat and 12 dogs " * 5, "short", ""]
    requests, lm = [Request(text) for text in texts], TreeLM(model, batch_size=1)
    found = lm.loglikelihood_rolling(requests, disable_tqdm=True)
    assert found == pytest.approx(TreeLM(model, batch_size=4).loglikelihood_rolling(requests), abs=1e-3)
    ids = bos_first(lm, texts[0])
    n_tokens, window = ids.shape[1], WINDOW_TOKENS
    assert window < n_tokens < 2 * window
    first, _ = model.token_nll(ids[:, : window + 1])
    start = n_tokens - 1 - window
    assert model.router is not None
    _, state = model.router(ids[:, :start], policy=model.policy)
    last, _ = model.token_nll(ids[:, start:], state=state)
    long = float(first.sum() + last[:, window - n_tokens + 1 :].sum())
    short = float(model.token_nll(bos_first(lm, texts[1]))[0].sum())
    assert found == pytest.approx([-long, -short, 0.0], abs=1e-3)


def test_writing_stops_where_the_task_says_and_does_not_depend_on_the_batch(model):
    options = {"until": ["a", "\n"], "max_gen_toks": 12, "do_sample": False}
    requests = [Request(text, options) for text in ("the cat", "1", "a longer prompt of words", "")]
    written = [TreeLM(model, batch_size=size).generate_until(requests, disable_tqdm=True) for size in (1, 4)]
    assert written[0] == written[1]
    lm = TreeLM(model)
    alone = model.generate(torch.tensor([lm.tok_encode("the cat")]), max_new_tokens=12, stop=["a", "\n"])
    text = lm.tok_decode(alone[0, len(lm.tok_encode("the cat")) :].tolist())
    assert written[0][0] == text.split("a")[0].split("\n")[0]
    assert not any("a" in text or "\n" in text for text in written[0])


def test_every_task_under_each_policy_asked_for(bundle, tasks, capsys, place):
    names = "own_choice,own_writing"  # standard errors of own_text are bootstrapped, which takes long
    out = place / "results.json"
    options = ("--base", tiny_base_dir(), "--include-path", tasks, "--threads", 1, "--tasks", names, "--limit", 3)
    asked = ("--policy", "soft", "--policy", "hard", "--leaf", "10", "--with-base", "--out", out)
    assert run("lm-eval", bundle, *options, *asked, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads(out.read_text())
    assert list(result["systems"]) == ["base", "leaf:10", "routed:hard", "routed:soft"]  # JSON's keys are sorted
    for system in result["systems"].values():
        assert set(system["results"]) == set(names.split(",")) and set(system["n_samples"].values()) == {3}
    assert [result["systems"][name]["active_rank"] for name in ("base", "leaf:10", "routed:soft")] == [0, 4, 12]


def test_the_table_has_a_line_for_each_metric(bundle, tasks, capsys):
    options = ("--base", tiny_base_dir(), "--include-path", tasks, "--threads", 1, "--tasks", "own_choice")
    assert run("lm-eval", bundle, *options, "--policy", "hard", "--limit", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["task", "metric", "routed:hard", "±", "of", "routed:hard"]
    assert [line.split()[:2] for line in lines[1:3]] == [["own_choice", "acc"], ["own_choice", "acc_norm"]]
    assert lines[-3].split() == ["active", "rank", "4"]


def test_bad_input_is_one_sentence(bundle, tasks, capsys, monkeypatch, place):
    def says(code: int, *words: str, more: Sequence[object] = ()) -> None:
        known = ("--base", tiny_base_dir(), "--include-path", tasks, "--limit", 1)
        assert run("lm-eval", bundle, *known, *more) == code
        error = capsys.readouterr().err
        assert "Traceback" not in error and all(word in error for word in words), error

    says(2, "wild", more=("--tasks", "own_choice", "--policy", "wild"))
    says(2, "'110'", more=("--tasks", "own_choice", "--leaf", "110"))
    says(8, "cannot be written", more=("--tasks", "own_choice", "--out", place / "nowhere" / "x.json"))
    (tasks / "broken.yaml").write_text(
        "task: own_broken\ndataset_path: json\ndataset_kwargs: {data_files: {test: no.jsonl}}\n"
    )
    says(3, "own_broken", more=("--tasks", "own_broken"))
    (tasks / "broken.yaml").unlink()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    says(2, "tinylora[eval]", more=("--tasks", "own_choice"))


@pytest.mark.slow
def test_an_unknown_task(bundle, tasks, capsys):
    assert run("lm-eval", bundle, "--base", tiny_base_dir(), "--include-path", tasks, "--tasks", "no_such") == 2
    assert "'no_such'" in capsys.readouterr().err


@pytest.mark.slow
def test_plain_lm_eval_on_an_exported_leaf_says_the_same(bundle, tasks, place):
    """`lm_eval --model hf --model_args pretrained=B,peft=LEAF`, which knows nothing of us."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    places = Places.find(tiny_base_dir())
    export_leaf(read_bundle(bundle), "10", place / "leaf-10", places=places)
    evaluate = getattr(lm_eval, "simple_evaluate")  # noqa: B009  (it is made when it is asked for, which the type checker cannot see)
    theirs = evaluate(
        model="hf",
        model_args=f"pretrained={tiny_base_dir()},peft={place / 'leaf-10'},dtype=float32",
        device="cpu",
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
    )["results"]
    ours = evaluate_on_tasks(
        bundle,
        tiny_base_dir(),
        list(TASKS),
        policies=(),
        leaves=["10"],
        include_path=tasks,
        bootstrap_iters=0,
        threads=1,
    )["systems"]["leaf:10"]["results"]
    for task, metrics in theirs.items():
        for name, value in metrics.items():
            if isinstance(value, float) and "," in name:
                assert ours[task][name] == pytest.approx(value, abs=1e-5), (task, name)

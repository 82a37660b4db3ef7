"""`tinylora generate`: a prompt as it is written, files of them in batches; refused before the work, or done whole."""

import json
from pathlib import Path

import pytest

from tests.answering.trees import random_bundle_file
from tests.commands.test_simulate_command import run
from tests.helpers import tiny_base_dir, tiny_base_model
from tinylora.answering import opening
from tinylora.tree import is_under

LINES = ["the cat", "", "x", "1 2 3 4 5 6 7 8", "äöü", "a dog ran"]
ASKED = [line for line in LINES if line]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("generate")


@pytest.fixture(scope="module")
def bundle(place) -> Path:
    return random_bundle_file(tiny_base_model(), place)


@pytest.fixture(scope="module")
def lines(place) -> Path:
    file = place / "asked.txt"
    file.write_text("\r\n".join(LINES) + "\n")
    return file


def generate(bundle: Path, *more: object) -> int:
    return run("generate", bundle, "--base", tiny_base_dir(), "--threads", 1, "--max-new-tokens", 8, *more)


def answers(out: Path) -> list[dict]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_a_file_is_its_prompts_one_by_one(place, bundle, lines, capsys):
    found = {}
    for size in (1, 4):
        assert generate(bundle, "--in", lines, "--out", place / f"{size}.jsonl", "--batch-size", size) == 0
        assert "5 prompts of" in capsys.readouterr().err
        found[size] = answers(place / f"{size}.jsonl")
    assert found[1] == found[4] and [answer["prompt"] for answer in found[1]] == ASKED
    assert len({answer["leaf"] for answer in found[1]}) > 1
    for answer in found[1]:
        assert generate(bundle, "--prompt", answer["prompt"], "--json") == 0
        assert json.loads(capsys.readouterr().out) == answer
        assert generate(bundle, "--prompt", answer["prompt"]) == 0
        assert capsys.readouterr().out == answer["completion"] + "\n"


def test_draws_are_the_prompts_own(place, bundle, lines):
    """Not those of its batch; and the same again with the same seed."""
    drawing = ("--temperature", 1.5, "--top-p", 0.9, "--top-k", 50, "--seed")
    for name, more in (("a", (3, "--batch-size", 2)), ("b", (3,)), ("c", (4,))):
        assert generate(bundle, "--in", lines, "--out", place / name, *drawing, *more) == 0
    assert answers(place / "a") == answers(place / "b") != answers(place / "c")


def test_rows_go_along_and_conversations_are_answered(place, bundle, capsys):
    rows = [
        {"prompt": "the cat", "id": 7, "completion": "what somebody wrote"},
        {"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}], "id": 8},
        {"conversations": [{"from": "human", "value": "hello"}]},
    ]
    file = place / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    assert generate(bundle, "--in", file) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer.get("id") for answer in found] == [7, 8, None]
    assert found[0]["completion"] != "what somebody wrote"
    assert found[1]["n_prompt_tokens"] == 1 + len("System: be kind\nUser: hello\nAssistant:")


def test_a_stop_text_ends_an_answer(bundle, capsys):
    assert generate(bundle, "--prompt", "the cat", "--json") == 0
    whole = json.loads(capsys.readouterr().out)["completion"]
    assert generate(bundle, "--prompt", "the cat", "--stop", "never there", "--stop", whole[3], "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["completion"] == whole.partition(whole[3])[0] and answer["finish"] == "stop"


def test_a_subtree_alone(bundle, capsys):
    assert generate(bundle, "--prompt", "the cat", "--leaves", "0", "--no-verify", "--json") == 0
    assert json.loads(capsys.readouterr().out)["leaf"] in ("00", "01", "1")
    assert generate(bundle, "--prompt", "the cat", "--leaves", "0,7") == 2
    assert "leaf '7': no such node" in capsys.readouterr().err


# --- refused before the work -----------------------------------------------------------------------------------------


@pytest.fixture
def no_base(monkeypatch) -> None:
    """Whoever loads the base has begun to work."""

    def load(*_: object, **__: object) -> None:
        raise AssertionError("the base was loaded")

    monkeypatch.setattr(opening.TreeModel, "from_pretrained", load)


@pytest.mark.usefixtures("no_base")
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"prompt": "fine"}\n\n{"prompt": 3}\n', ("line 3", "expected text, got")),
        (b'{"prompt": "fine"}\n{"prompt": broken\n', ("line 2", "not readable as JSON")),
        (b'{"text": "fine"}\n', ("line 1", "no column 'prompt' or 'messages'; found: text")),
        (
            b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
            ("line 1", "last"),
        ),
        (b'{"messages": []}', ("line 1", "nothing to answer")),
        (b'{"messages": [{"role": "robot", "content": "a"}]}', ("line 1", "message 1", "unknown role")),
        (b"\n\n", ("no prompt",)),
    ],
)
def test_a_bad_line_is_named_before_anything_is_loaded(place, bundle, capsys, data, words):
    file = place / "bad.jsonl"
    file.write_bytes(data)
    assert generate(bundle, "--in", file, "--out", place / "bad.out") == 3
    error = capsys.readouterr().err
    assert all(word in error for word in ("bad.jsonl", *words)), error
    assert not list(place.glob("*bad.out*"))


@pytest.mark.usefixtures("no_base")
def test_a_line_that_is_no_text(place, bundle, capsys):
    file = place / "bad.txt"
    file.write_bytes(b"fine\n\xff\xfe\n")
    assert generate(bundle, "--in", file) == 3
    assert "bad.txt, line 2: " in capsys.readouterr().err


@pytest.mark.usefixtures("no_base")
def test_an_output_that_cannot_be_written(place, bundle, lines, capsys):
    for out, words in ((place, "not a file"), (place / "asked.txt" / "x", "cannot be written")):
        assert generate(bundle, "--in", lines, "--out", out) == 8
        assert words in capsys.readouterr().err
    assert generate(bundle, "--in", lines, "--out", lines) == 2
    assert "is one of the files that are read" in capsys.readouterr().err


@pytest.mark.usefixtures("no_base")
@pytest.mark.parametrize("options", [(), ("--prompt", "a", "--in", "b"), ("--prompt", "a", "--out", "b")])
def test_either_a_prompt_or_files(bundle, options):
    assert generate(bundle, *options) == 2


@pytest.mark.parametrize("options", [("--device", "moon"), ("--dtype", "fp12"), ("--policy", "x"), ("--stop", "")])
def test_words_that_there_are_not(bundle, capsys, options):
    assert generate(bundle, "--prompt", "a", *options) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_prompt_that_is_too_long_is_named_and_nothing_is_written(place, bundle, capsys):
    file, out = place / "long.txt", place / "long.out"
    file.write_text("short\n" + "word " * 20)
    out.write_text("from before")
    assert generate(bundle, "--in", file, "--out", out) == 3
    assert "long.txt, line 2: 101 tokens and 8 new ones: this base attends to 64" in capsys.readouterr().err
    assert out.read_text() == "from before" and not list(place.glob(".long*"))


def test_the_leaf_is_where_the_gates_send_the_prompt(place, bundle, capsys):
    """Before the first decision nobody answers but the base."""
    for policy in ("soft", "top2", "hard", "elastic:0.3"):
        assert generate(bundle, "--prompt", "the cat", "--policy", policy, "--json") == 0
        answer = json.loads(capsys.readouterr().out)
        assert run("route", bundle, "the cat", "--base", tiny_base_dir(), "--policy", policy, "--json") == 0
        way = json.loads(capsys.readouterr().out)
        likeliest = max(way["weights"], key=lambda leaf: way["weights"][leaf]) if "weights" in way else answer["leaf"]
        assert is_under(likeliest.removeprefix("root"), answer["leaf"])
    assert generate(bundle, "--prompt", "the cat", "--policy", "hard@sequence:50", "--json") == 0
    assert json.loads(capsys.readouterr().out)["leaf"] is None

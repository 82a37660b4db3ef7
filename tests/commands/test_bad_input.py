"""Bad input ends with one sentence, its exit code, no traceback, and nothing half-written."""

import errno
import os
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.commands.test_simulate_command import run, simulate, write_text
from tests.helpers import tiny_base_dir


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("bad")


@pytest.fixture(scope="module")
def text(place) -> Path:
    return write_text(place / "text", "some words that make up a text ")


@pytest.fixture(scope="module")
def bundle(place, text) -> Path:
    return simulate(place, [text, write_text(place / "other", "1 2 3 4 5 ")], "out") / "bundle.safetensors"


def says(capsys, code: int, *words: str) -> None:
    """The last command's stderr is one error sentence with these words."""
    error = capsys.readouterr().err.strip()
    assert re.match(r"(error|Usage): ", error), error
    assert "Traceback" not in error
    if code != 2 or error.startswith("error"):
        assert len(error.splitlines()) == 1, error
    for word in words:
        assert word in error, error


def test_a_truncated_bundle(place, bundle, capsys):
    short = place / "short.safetensors"
    short.write_bytes(bundle.read_bytes()[:-1])
    assert run("verify", short) == 5
    says(capsys, 5, "short.safetensors")


@pytest.mark.parametrize("where", [0, 9, 0.2, 0.5, 0.9, -1])
def test_one_flipped_byte(place, bundle, capsys, where):
    data = bytearray(bundle.read_bytes())
    position = where if isinstance(where, int) else int(where * len(data))
    data[position] ^= 1
    flipped = place / "flipped.safetensors"
    flipped.write_bytes(data)
    assert run("verify", flipped) == 5
    says(capsys, 5, "flipped.safetensors")


def test_a_bundle_that_is_none(place, capsys):
    other = place / "other.safetensors"
    other.write_bytes(safetensors.torch.save({"x": torch.zeros(3)}))
    assert run("inspect", other) == 5
    says(capsys, 5, "other.safetensors")
    assert run("inspect", place / "nowhere.safetensors") == 5
    says(capsys, 5, "nowhere.safetensors")


def test_a_base_that_does_not_belong_to_the_bundle(bundle, text, capsys):
    assert run("eval", bundle, "--base", tiny_base_dir(seed=1), "--data", text) == 4
    says(capsys, 4, "base")


def test_a_base_path_without_a_model(place, bundle, text, capsys):
    (place / "empty").mkdir(exist_ok=True)
    assert run("eval", bundle, "--base", place / "empty", "--data", text) == 4
    says(capsys, 4, "empty", "no model")


def test_data_that_is_missing_empty_binary_or_too_small(place, capsys):
    (place / "nothing").mkdir(exist_ok=True)
    (place / "binary").mkdir(exist_ok=True)
    (place / "binary" / "x.txt").write_bytes(b"\x00\x01\x02" * 100)
    write_text(place / "small", "few words ", n_documents=2)
    for name in ("nowhere", "nothing", "binary", "small"):
        out = place / f"out-{name}"
        arguments = ("--base", tiny_base_dir(), "--depth", 0, "--data", place / name, "--out", out)
        assert run("simulate", *arguments) == 3, name
        says(capsys, 3, name)
        assert not (out / "bundle.safetensors").exists()


def test_an_unreadable_line_and_an_unknown_column(place, bundle, capsys):
    lines = place / "lines.jsonl"
    lines.write_text('{"text": "fine"}\n{"text": "fine too"}\n{"text": broken\n')
    base = ("--base", tiny_base_dir())
    assert run("eval", bundle, *base, "--data", lines) == 3
    says(capsys, 3, "lines.jsonl", "line 3")
    lines.write_text('{"body": "fine"}\n')
    assert run("eval", bundle, *base, "--data", lines) == 3
    says(capsys, 3, "lines.jsonl", "text", "body")


def test_no_data_at_all(bundle, capsys):
    assert run("eval", bundle, "--base", tiny_base_dir()) == 2
    says(capsys, 2, "--data")


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("--depth", 40, "depth"),
        ("--rank", 0, "rank"),
        ("--rank", 5000, "rank"),
        ("--adapter", "tied", "adapter 'tied': expected one of lora, nested"),
        ("--router-sync", "magic", "router_sync"),
    ],
)
def test_numbers_out_of_range(place, text, capsys, option, value, word):
    assert run("simulate", "--base", tiny_base_dir(), "--data", text, "--out", place / "range", option, value) == 2
    says(capsys, 2, word)
    assert not (place / "range" / "bundle.safetensors").exists()


def test_a_fault_of_nobody(place, text, capsys):
    assert (
        run("simulate", "--base", tiny_base_dir(), "--depth", 0, "--data", text, "--kill", "7@1", "--out", place / "f")
        == 2
    )
    says(capsys, 2, "7")
    assert run("simulate", "--data", text, "--delay", "1@1", "--out", place / "f") == 2
    says(capsys, 2, "--delay", "W@U:S")
    assert run("simulate", "--data", text, "--drop", "1.0", "--out", place / "f") == 2
    says(capsys, 2, "--drop 1.0", "less than 1")


def test_an_unknown_policy(bundle, text, capsys):
    assert run("eval", bundle, "--base", tiny_base_dir(), "--data", text, "--policy", "wild") == 2
    says(capsys, 2, "wild")


def test_an_output_that_cannot_be_written(place, text, capsys):
    (place / "file").write_text("a file, not a folder")
    assert run("simulate", "--base", tiny_base_dir(), "--data", text, "--out", place / "file" / "out") == 8
    says(capsys, 8, "--out")


def test_a_prompt_that_is_too_long(bundle, capsys):
    assert run("generate", bundle, "--base", tiny_base_dir(), "--prompt", "word " * 4000) == 2
    says(capsys, 2, "prompt")


def test_a_full_disk(bundle, text, capsys, monkeypatch, place):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(place / "full" / "bundle.safetensors"))

    monkeypatch.setattr(os, "fsync", full)
    arguments = ("--base", tiny_base_dir(), "--depth", 0, "--leaf-steps", 1, "--data", text, "--out", place / "full")
    assert run("simulate", *arguments) == 8
    says(capsys, 8, "disk")
    assert [file.name for file in (place / "full").iterdir()] == []

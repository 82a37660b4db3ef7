"""`tinylora export` and `tinylora import`, as typed: what is written, what is said, how they end."""

import json
import shlex
from pathlib import Path

import pytest
import torch

from tests.bundle.leaves import LEAF, make_bundle
from tests.commands.test_simulate_command import run
from tests.helpers import tiny_base_dir
from tinylora.base_model import load_base
from tinylora.bundle import read_bundle, write_bundle
from tinylora.derive import leaf_state


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def bundle(place: Path) -> Path:
    base = load_base(tiny_base_dir())
    write_bundle(make_bundle(base, "nested", ("00", LEAF), 4, {}), place / "b.safetensors", dtype="F32")
    return place / "b.safetensors"


def test_a_leaf_at_a_lower_rank_and_back(place: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, back, more, base = (place / "leaf", place / "back.safetensors", place / "more.safetensors", tiny_base_dir())
    assert run("export", bundle, "--leaf", "leaf-01", "--base", base, "--out", out, "--nested-rank", 2, "--json") == 0
    assert json.loads(capsys.readouterr().out)["rank"] == 2
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["base_model_name_or_path"]) == (2, str(base))
    assert run("import", out, "--base", base, "--out", back) == 0
    assert "leaf root of rank 2, on 14 linears of the base, zeros on 0" in capsys.readouterr().out
    whole, cut = leaf_state(read_bundle(bundle), LEAF), leaf_state(read_bundle(back), "")
    assert torch.equal(cut["mlp.up_proj.lora_A"], whole["mlp.up_proj.lora_A"][:, :2])
    assert run("import", out, "--base", base, "--into", bundle, "--leaf", "10", "--out", more) == 0
    assert "plain LoRAs now" in capsys.readouterr().out
    assert sorted(read_bundle(more).nodes) == ["00", "01", "10"]


def test_vllm_says_the_command_alone_on_stdout(place: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("export", bundle, "--format", "vllm", "--base", tiny_base_dir(), "--base-id", "org/tiny")
    assert run(*arguments, "--out", place / "leaves") == 0
    said = capsys.readouterr()
    words = shlex.split(said.out)
    assert words[:3] == ["vllm", "serve", "org/tiny"]
    assert words[-1] == f"leaf-11={place}/leaves/leaf-11"
    assert "nobody has trained 10, 11" in said.err
    assert run(*arguments, "--out", place / "leaves") == 8
    assert "--force" in capsys.readouterr().err
    assert run(*arguments, "--out", place / "leaves", "--force") == 0


def test_merged(place: Path, bundle: Path) -> None:
    arguments = ("export", bundle, "--format", "merged", "--leaf", LEAF, "--base", tiny_base_dir())
    assert run(*arguments, "--out", place / "merged") == 0
    load_base(place / "merged")


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--format", "gguf"], 2, "expected peft, vllm, merged"),
        (["--format", "vllm", "--leaf", "00"], 2, "takes all leaves"),
        ([], 2, "name one of 00, 01, 10, 11"),
        (["--leaf", "0"], 2, "no leaf '0'"),
        (["--leaf", "11"], 2, "nobody has trained it"),
        (["--leaf", "00", "--nested-rank", "9"], 2, "expected 1 to 4"),
        (["--leaf", "00", "--base", "org/missing"], 4, "hf download org/missing"),
        (["--leaf", "00", "--base", ""], 2, "not the base of this bundle"),
    ],
)
def test_what_cannot_be_exported(
    place: Path, bundle: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, sentence: str
) -> None:
    base = [] if "--base" in words else ["--base", tiny_base_dir()]
    assert run("export", bundle, "--out", place / "not", *words, *base) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and len(error.splitlines()) == 1
    assert not (place / "not").exists()

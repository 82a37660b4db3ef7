"""`--quantise` at the commands: what is trained on a quantised base is a bundle for the base itself."""

from pathlib import Path

import pytest

from tests.commands.test_simulate_command import run, simulate, write_text
from tests.helpers import tiny_base_dir
from tinylora.base_model import load_base

pytest.importorskip("bitsandbytes")  # there is no build for macOS


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("text")
    return [write_text(place / name, words) for name, words in {"a": "the cat and a dog ", "b": "0 1 2 3 4 5 "}.items()]


def test_a_bundle_trained_on_nf4_fits_the_base_however_it_is_held(text, tmp_path, capsys):
    bundle = simulate(tmp_path, text, "out", "--quantise", "nf4") / "bundle.safetensors"
    for more in ((), ("--quantise", "int8")):
        data = ("--data", text[0], "--threads", 1)
        assert run("eval", bundle, "--base", tiny_base_dir(), *data, *more) == 0
    assert run("generate", bundle, "--base", tiny_base_dir(), "--prompt", "the", "--max-new-tokens", 2, *more) == 0
    assert run("eval", bundle, "--base", tiny_base_dir(), *data, "--quantise", "int4") == 2
    assert "error: quantise 'int4': expected int8 or nf4" in capsys.readouterr().err


def test_a_volunteer_with_nf4_has_the_base_that_the_run_names():
    assert load_base(tiny_base_dir(), quantise="nf4").facts == load_base(tiny_base_dir()).facts

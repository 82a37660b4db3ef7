"""The commands as an operator types them: exit codes, and one sentence when something is wrong."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tinylora_coordinator.cli import app
from tinylora_coordinator.folder import RunFolder, read_run

from tests.helpers import WINDOW_TOKENS, tiny_base_dir
from tinylora.command_line import exit_code_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of alembic, about flwr's use


@pytest.fixture(autouse=True)
def own_flower_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FLWR_HOME", "")  # `serve` sets it; put back afterwards
    yield


def call(*words: object) -> int:
    return exit_code_of(lambda: app([str(word) for word in words]))


def made(folder: Path) -> Path:
    settings = ("--set", f"window_tokens={WINDOW_TOKENS}", "--set", "depth=1")
    assert call("init", folder, "--base", tiny_base_dir(), *settings) == 0
    return folder


def test_init_writes_a_run_and_refuses_to_do_it_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made(tmp_path / "run")
    files = read_run(RunFolder(folder))
    assert files.settings.depth == 1 and files.base.feature_dim == 256
    assert sorted(file.name for file in folder.iterdir()) == ["base.json", "keys", "run.toml"]
    assert call("init", folder, "--base", tiny_base_dir()) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_status_of_a_run_that_has_not_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made(tmp_path / "run")
    capsys.readouterr()
    assert call("status", folder, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["phase"], found["workers"], found["run"]) == ("not begun", [], "run")
    assert call("status", folder) == 0
    assert "run run: not begun" in capsys.readouterr().out
    assert call("bundle", folder, "--out", tmp_path / "b.safetensors") != 0
    assert not (tmp_path / "b.safetensors").exists()


def test_a_port_in_use_ends_serve_with_its_own_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made(tmp_path / "run")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert call("serve", folder, "--port", port) == 6
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: 127.0.0.1:{port}: ") and "choose another" in error


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("serve", "FOLDER"), 2, "no run here"),
        (("status", "FOLDER"), 2, "no run here"),
        (("bundle", "FOLDER", "--out", "b.safetensors"), 2, "no run here"),
        (("init", "FOLDER", "--base", "BASE", "--set", "depth=17"), 2, "depth"),
        (("init", "FOLDER", "--base", "BASE", "--set", "window_tokens=65"), 2, "at most 64 tokens"),
        (("init", "FOLDER", "--base", "FOLDER"), 4, "no model in this folder"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, sentence: str
) -> None:
    names = {"FOLDER": tmp_path, "BASE": tiny_base_dir()}
    assert call(*(names.get(word, word) for word in words)) == code
    error = capsys.readouterr().err
    assert sentence in error and error.startswith("error: ") and "Traceback" not in error
    assert not list(tmp_path.iterdir())

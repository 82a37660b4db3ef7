"""The command line: help, where the token comes from, what each verb does, and that looking is quick."""

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from tinylora_worker import cli
from tinylora_worker.agent import client
from tinylora_worker.wire.worker_pb2 import Status

from tinylora.command_line import exit_code_of
from tinylora.flower.membership import Membership, save_membership
from tinylora.flower.receipts import ReceiptBook
from tinylora.protocol.documents import Receipt

Capture = pytest.CaptureFixture[str]
TOKEN = f"tl1.system.abcd.{'s' * 32}"


def call(*words: object) -> int:
    return exit_code_of(lambda: cli.app([str(word) for word in words]))


# --- help -------------------------------------------------------------------------------------------------------------


def commands(group: click.Command | None = None, name: str = "") -> list[tuple[str, click.Command]]:
    """Every verb with its full name."""
    group = typer.main.get_command(cli.app) if group is None else group
    found: list[tuple[str, click.Command]] = [(name, group)] if name else []
    for word, inner in getattr(group, "commands", {}).items():
        found += commands(inner, f"{name} {word}".strip())
    return found


def test_every_verb_is_there_with_a_sentence_and_an_example() -> None:
    found = dict(commands())
    verbs = "join run status pause resume finish stop limits doctor clean receipts audit"
    assert set(verbs.split()) <= set(found)
    assert {"limits get", "limits set", "service install", "service uninstall"} <= set(found)
    for name, command in found.items():
        assert command.help, name
        if not getattr(command, "commands", None):
            assert f"tinylora-worker {name}" in (command.epilog or ""), name


def test_help_shows_few_options_first() -> None:
    for name, command in commands():
        common = [option for option in command.params if getattr(option, "rich_help_panel", "") == "Common"]
        assert len(common) <= 8, name


# --- where the token comes from ---------------------------------------------------------------------------------------


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, dict[str, Any]]]:
    """What the command would have begun to join: address, token, options."""
    found: list[tuple[str, str, dict[str, Any]]] = []

    def join(url: str, token: str, home: Path, said: dict[str, Any], *_: object) -> int:
        found.append((url, token, said))
        return 0

    monkeypatch.delenv("TINYLORA_TOKEN", raising=False)
    monkeypatch.delenv("TINYLORA_HOME", raising=False)
    monkeypatch.setattr(cli, "_join", join)
    return found


def test_the_token_comes_from_an_option_a_file_a_variable_stdin_or_a_prompt(
    joined: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    words = ["join", "a:1", "--data", tmp_path, "--home", tmp_path / "home"]
    monkeypatch.setattr("sys.stdin", StringIO(f"{TOKEN}\nmore\n"))
    assert call(*words, "--token", TOKEN) == 0
    assert call(*words, "--token-file", tmp_path / "token") == 0
    assert call(*words, "--token", "-") == 0
    assert call(*words) == 0  # no terminal: nobody is asked
    monkeypatch.setenv("TINYLORA_TOKEN", TOKEN)
    assert call(*words) == 0
    monkeypatch.delenv("TINYLORA_TOKEN")
    keyboard = StringIO()
    monkeypatch.setattr(keyboard, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", keyboard)
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("typer.prompt", lambda text, **options: asked.append(options) or TOKEN)
    assert call(*words) == 0 and asked[0]["hide_input"] and asked[0]["err"]
    assert [token for _, token, _ in joined] == [TOKEN, TOKEN, TOKEN, "", TOKEN, TOKEN]


def test_a_token_file_that_is_gone_matters_to_strangers_alone(
    joined: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    words = ["join", "a:1", "--data", tmp_path, "--home", tmp_path, "--token-file", tmp_path / "gone", "--yes"]
    assert call(*words) == 2 and joined == []
    save_membership(tmp_path, Membership(url="https://a:1", run="r", run_key="a" * 64))
    assert call(*words) == 0
    assert [token for _, token, _ in joined] == [""] and "its own key is enough" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--token-file", "missing"], "--token-file missing: not readable"),
        (["--token", TOKEN, "--token-file", "missing"], "give one of them"),
        (["--token", TOKEN, "--skip-check", "all"], "no such check"),
        (["--token", TOKEN, "--map", "text"], "--map text: expected ROLE=COLUMN"),
        (["--token", TOKEN, "--vram-limit", "lots"], "--vram-limit:"),
    ],
)
def test_options_that_make_no_sense_are_one_sentence(
    joined: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, words: list[str], sentence: str
) -> None:
    monkeypatch.setattr("sys.stdin", StringIO(""))
    assert call("join", "a:1", "--data", tmp_path, "--home", tmp_path, *words) == 2
    error = capsys.readouterr().err
    assert sentence in error and "ssss" not in error and joined == []


def test_options_reach_the_join(joined: list[Any], tmp_path: Path) -> None:
    words = ["--data", "a.jsonl", "--data", "b/*.csv", "--map", "prompt=question", "--text-column", "body"]
    more = ["--vram-limit", "8GB", "--allow", "emails", "--device", "cpu", "--max-rank", "4", "--quantise", "nf4"]
    assert call("join", "a:1", "--token", TOKEN, "--home", tmp_path, *words, *more) == 0
    ((url, _, said),) = joined
    assert url == "a:1" and said["data"] == ("a.jsonl", "b/*.csv")
    assert said["columns"] == {"text": "body", "prompt": "question"} and said["vram_limit_bytes"] == 8_000_000_000
    assert (said["allow"], said["device"], said["max_rank"], said["quantise"]) == (("emails",), "cpu", 4, "nf4")


# --- while it works ---------------------------------------------------------------------------------------------------


def test_a_pause_has_an_end_in_seconds_since_1970(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ends: list[float] = []
    monkeypatch.setattr(client, "pause", lambda home, until_s: ends.append(until_s) or "paused")
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0)
    assert call("pause", "--home", tmp_path) == 0 == call("pause", "--for", "2h", "--home", tmp_path)
    assert call("pause", "--until", "18:00", "--home", tmp_path) == 0
    assert ends[:2] == [0.0, 1_800_007_200.0] and 0 < ends[2] - 1_800_000_000 <= 25 * 3600 and ends[2] % 60 == 0
    assert call("pause", "--for", "2h", "--until", "18:00", "--home", tmp_path) == 2
    assert call("pause", "--for", "soon", "--home", tmp_path) == 2 and len(ends) == 3


@pytest.mark.parametrize("verb", ["resume", "finish", "stop"])
def test_a_wish_is_passed_on_and_the_answer_is_talk(
    verb: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture
) -> None:
    monkeypatch.setattr(client, {"stop": "leave"}.get(verb, verb), lambda home: f"{verb} of {home.name}")
    assert call(verb, "--home", tmp_path / "h") == 0
    out, said = capsys.readouterr()
    assert (out, said) == ("", f"{verb} of h\n")


@pytest.mark.parametrize("verb", ["status", "health", "pause", "resume", "finish", "stop"])
def test_where_nobody_works_it_is_said(verb: str, tmp_path: Path, capsys: Capture) -> None:
    assert call(verb, "--home", tmp_path) == 6
    assert "no worker is at work" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("state", "reason", "code"),
    [
        ("working", "", 0), ("paused", "battery", 0), ("waiting", "coordinator_unreachable", 0), ("starting", "", 0),
        ("waiting", "error", 6), ("waiting", "update_required", 6),
    ],
)  # fmt: skip
def test_a_worker_is_well_unless_something_has_to_be_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture, state: str, reason: str, code: int
) -> None:
    now = Status(state=state, reason=reason, device="CPU", detail="no trainer starts" if code else "")
    monkeypatch.setattr(client, "status", lambda home: now)
    assert call("health", "--home", tmp_path, "--json") == code
    out, said = capsys.readouterr()
    told = json.loads(out)
    assert (told["is_healthy"], told["state"], told["reason"]) == (code == 0, state, reason) and told["has_trainer"]
    assert f"the worker is {state}" in said and (not code or "(" + reason + ", no trainer starts)" in said)


def test_status_is_a_screen_a_document_or_lines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture
) -> None:
    now = Status(version="0.4.0", run="r", worker="w-1", state="paused", reason="battery")
    monkeypatch.setattr(client, "status", lambda home: now)
    monkeypatch.setattr(client, "follow", lambda home: iter([now, now, Status(state="finished")]))
    assert call("status", "--home", tmp_path) == 0 and "paused: on battery" in capsys.readouterr().out
    assert call("status", "--json", "--home", tmp_path) == 0
    assert json.loads(capsys.readouterr().out)["reason"] == "battery"
    assert call("status", "--follow", "--json", "--home", tmp_path) == 0
    assert [json.loads(line)["state"] for line in capsys.readouterr().out.splitlines()] == ["paused"] * 2 + ["finished"]
    assert call("status", "--follow", "--home", tmp_path) == 0
    assert [line.split("  ")[1] for line in capsys.readouterr().out.splitlines()] == ["paused: on battery", "finished"]


def test_limits_are_shown_set_and_followed_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture
) -> None:
    told: list[Path] = []
    assert call("limits", "set", "vram=8GB", "cpu_threads=2", "--home", tmp_path) == 0  # nobody works here
    monkeypatch.setattr(client, "reload_limits", lambda home: told.append(home) or "read again")
    assert call("limits", "set", "max_temp_c=80", "--home", tmp_path) == 0 and told == [tmp_path]
    capsys.readouterr()
    assert call("limits", "get", "vram", "--home", tmp_path) == 0 and capsys.readouterr().out == "8GB\n"
    assert call("limits", "--json", "--home", tmp_path) == 0
    assert json.loads(capsys.readouterr().out)["cpu_threads"] == 2
    assert call("limits", "--home", tmp_path) == 0 and "max_temp_c" in capsys.readouterr().out
    assert call("limits", "set", "vram=lots", "--home", tmp_path) == 2


# --- look and care ----------------------------------------------------------------------------------------------------

QUICK = """
import sys
from tinylora_worker import cli
sys.argv = ["tinylora-worker", *sys.argv[1:]]
try:
    cli.main()
finally:
    heavy = {"torch", "transformers", "datasets", "flwr", "matplotlib"} & set(sys.modules)
    print("loaded:", *sorted(heavy), file=sys.stderr)
"""


@pytest.mark.parametrize("words", [["doctor", "--json", "https://127.0.0.1:1"], ["status"], ["health"]])
def test_what_only_looks_loads_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", QUICK, *words, "--home", str(tmp_path / "a home, über")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr.splitlines()[-1] == "loaded:", done.stderr
    if words[0] == "doctor":
        checks = json.loads(done.stdout)["checks"]
        assert done.returncode == 6 and {"name", "status", "found", "needed", "cure", "code"} == set(checks[0])
        assert "TL-NET-001" in {check["code"] for check in checks}
        assert not (tmp_path / "a home, über").exists()  # it looked, and left nothing


def test_receipts_are_listed(tmp_path: Path, capsys: Capture) -> None:
    assert call("receipts", "--home", tmp_path) == 0 and "0 receipts, 0 tokens" in capsys.readouterr().err
    receipt = Receipt(
        run="r", unit_id="u1", worker="w", kind="train", node="01", tokens=7, payload_sha256="a" * 64, event=3,
        log_sha256="b" * 64,
    )  # fmt: skip
    ReceiptBook(tmp_path).keep([receipt, receipt.model_copy(update={"unit_id": "u2", "node": ""})])
    assert call("receipts", "--home", tmp_path) == 0
    out, said = capsys.readouterr()
    assert out.splitlines() == ["r u1 train node 01: 7 tokens", "r u2 train node root: 7 tokens"]
    assert said == "2 receipts, 14 tokens\n"
    assert call("receipts", "--home", tmp_path, "--json") == 0
    assert [row["event"] for row in json.loads(capsys.readouterr().out)] == [3, 3]


def test_clean_says_what_went_and_asks_before_what_is_of_value(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "worker.log").write_text("long ago")
    (tmp_path / "identity.pem").write_text("a key")
    assert call("clean", "--dry-run", "--json", "--home", tmp_path) == 0
    assert json.loads(capsys.readouterr().out)["dry_run"] and (tmp_path / "logs").exists()
    assert call("clean", "--home", tmp_path) == 0 and not (tmp_path / "logs").exists()
    monkeypatch.setattr("typer.prompt", lambda text, **options: "no")
    assert call("clean", "--all", "--home", tmp_path) == 2 and (tmp_path / "identity.pem").exists()
    monkeypatch.setattr("typer.prompt", lambda text, **options: "remove everything")
    assert call("clean", "--all", "--home", tmp_path) == 0 and not tmp_path.exists()

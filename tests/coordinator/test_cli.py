"""The commands as an operator types them: exit codes, JSON on stdout, and one sentence when something is wrong."""

import json
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tinylora_coordinator import desk
from tinylora_coordinator.access_tokens import mark_of, parse_access
from tinylora_coordinator.cli import app
from tinylora_coordinator.durations import as_date, parse_duration
from tinylora_coordinator.folder import RunFolder, read_run, write_run
from tinylora_coordinator.keys import pin_of, run_public
from tinylora_coordinator.operator_store import OperatorStore, Worker
from tinylora_coordinator.selfcheck import Check

from tests.federation.facts import FACTS, SETTINGS
from tests.helpers import WINDOW_TOKENS, tiny_base_dir
from tinylora.command_line import exit_code_of
from tinylora.errors import SettingError
from tinylora.export import Places
from tinylora.federation.events import BundlePublished, RunPaused, RunResumed, RunStarted, WorkerJoined
from tinylora.flower.join_token import parse_token
from tinylora.ledger.sqlite import SqliteLedger

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of alembic, about flwr's use

Capture = pytest.CaptureFixture[str]
NOW = 1_700_000_000.0


@pytest.fixture(autouse=True)
def own_flower_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_HOME", "")  # `serve` sets it; put back afterwards


def call(*words: object) -> int:
    return exit_code_of(lambda: app([str(word) for word in words]))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has not been served yet."""
    write_run(RunFolder(tmp_path / "run"), SETTINGS, FACTS, None, hosts=["tree.example.org"])
    return tmp_path / "run"


def begin(run: Path, *events: Any) -> None:
    """Let the rounds have written these."""
    with SqliteLedger(run) as ledger:
        past = ledger.events()
        first = [] if past else [RunStarted(run="test", settings=SETTINGS, base=FACTS)]
        ledger.append([*first, *events], 0.0)


def enrol(run: Path, worker: str = "w-1") -> str:
    """Let a worker in; returns the id of its token."""
    with OperatorStore(run) as store:
        token = store.create_token(pin_of(RunFolder(run).keys), now_s=NOW, needs_approval=True, tags=["gpu"])
        who = {"name": "mine", "token_id": token.token_id, "secret": token.secret, "now_s": NOW}
        assert isinstance(store.enrol(worker, f"key of {worker}", **who), Worker)
    return token.token_id


def printed(capsys: Capture, *words: object) -> Any:
    """The JSON that a command prints."""
    capsys.readouterr()
    assert call(*words, "--json") == 0
    return json.loads(capsys.readouterr().out)


# --- init -------------------------------------------------------------------------------------------------------------


def test_init_writes_a_run_and_refuses_to_do_it_twice(tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "run"
    words = ["init", folder, "--base", tiny_base_dir(), "--host", "Tree.example.org"]
    assert call(*words, "--set", f"window_tokens={WINDOW_TOKENS}", "--set", "depth=1") == 0
    said = capsys.readouterr().err
    assert f"tinylora-coordinator serve {folder}" in said and f"tinylora-coordinator token create {folder}" in said
    files = read_run(RunFolder(folder))
    assert files.settings.depth == 1 and files.base.feature_dim == 256
    assert sorted(file.name for file in folder.iterdir()) == [
        "base.json",
        "keys",
        "lookup.safetensors",
        "places.json",
        "run.toml",
        "tokenizer.json",
    ]
    assert Places.read(RunFolder(folder).places_file) == Places.find(tiny_base_dir())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert call(*words) == 2
    assert "holds a run already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--set", "depth=17"], 2, "depth"),
        (["--set", "window_tokens=65"], 2, "at most 64 tokens"),
        (["--host", "http://a"], 2, "expected a host name or an address"),
        (["--certificate", "a.pem"], 2, "give both, or neither"),
        (["--ca", "a.pem"], 2, "give both, or neither"),
        (["--certificate", "a.pem", "--private-key", "b.pem"], 2, "a.pem: No such file"),
    ],
)
def test_init_refuses_before_it_writes(
    tmp_path: Path, capsys: Capture, words: list[str], code: int, sentence: str
) -> None:
    assert call("init", tmp_path / "run", "--base", tiny_base_dir(), *words) == code
    error = capsys.readouterr().err
    assert sentence in error and error.startswith("error: ") and not list(tmp_path.iterdir())


# --- no run, bad words ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "serve", "status", "token create", "token list", "token revoke|abcd", "workers", "workers list",
        "workers approve|w-1", "workers revoke|w-1", "workers erase|w-1", "workers release|w-1",
        "workers reassign|w-1|0", "pause", "resume", "finish", "verify-log",
        "selfcheck", "bundle|--out|b.safetensors", "leaf|0|--out|leaf.zip",
    ],
)  # fmt: skip
def test_a_folder_without_a_run_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    verb, *rest = words.split("|")
    folder = tmp_path / "run"
    folder.mkdir()
    assert call(*verb.split(), folder, *rest) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {folder}: no run here") and error.count("\n") == 1
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["token", "create", "RUN", "--uses", "0"],
        ["token", "create", "RUN", "--expires", "soon"],
        ["token", "create", "RUN", "--expires", "0d"],
        ["token", "create", "RUN", "--tag", "\x1b[2J"],
        ["token", "create", "RUN", "--url", "ftp://a"],
        ["token", "create", "RUN", "--role", "king"],
        ["token", "create", "RUN", "--role", "viewer", "--uses", "2"],
        ["token", "create", "RUN", "--role", "admin", "--approve"],
        ["token", "create", "RUN", "--role", "admin", "--note", "\x1b[2J"],
        ["token", "create", "RUN", "--role", "admin", "--expires", "never"],
        ["token", "create", "RUN", "--note", "for a worker"],
        ["token", "revoke", "RUN", "abcd"],
        ["workers", "approve", "RUN", "w-9"],
        ["workers", "revoke", "RUN", "w-9"],
        ["workers", "erase", "RUN", "w-9"],
        ["workers", "release", "RUN", "w-9"],
        ["workers", "reassign", "RUN", "w-9", "01"],
        ["workers", "reassign", "RUN", "w-9", "../x"],
        ["serve", "RUN", "--insecure", "--host", "0.0.0.0"],
        ["serve", "RUN", "--certificate", "a.pem"],
        ["serve", "RUN", "--port", "65536"],
        ["status", "RUN", "--follow", "--every", "0"],
        ["token"],
        ["workers"],
        [],
    ],
)
def test_words_that_make_no_sense_end_with_2_and_change_nothing(run: Path, capsys: Capture, words: list[str]) -> None:
    assert call(*(run if word == "RUN" else word for word in words)) == 2
    assert "Traceback" not in capsys.readouterr().err
    with OperatorStore(run) as store:
        assert (store.tokens(NOW), store.workers(), store.jobs()) == ([], [], [])


def test_every_verb_names_its_exit_codes(capsys: Capture) -> None:
    verbs = [[command.name or command.callback.__name__] for command in app.registered_commands if command.callback]
    for group in app.registered_groups:
        assert group.typer_instance is not None
        verbs += [[str(group.name), str(command.name)] for command in group.typer_instance.registered_commands]
    assert len(verbs) >= 15
    for verb in verbs:
        assert call(*verb, "--help") == 0
        assert "Exit codes:" in capsys.readouterr().out, verb


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_a_token_is_printed_once_with_the_command_that_uses_it(run: Path, capsys: Capture) -> None:
    assert call("token", "create", run, "--uses", 3, "--expires", "7d", "--tag", "night", "--approve") == 0
    out, said = capsys.readouterr()
    token = parse_token(out)
    assert token.pin == pin_of(RunFolder(run).keys) and out == f"{token.text}\n"
    assert "lets 3 workers in until" in said and "tinylora-worker join https://tree.example.org:8443" in said
    (row,) = printed(capsys, "token", "list", run)
    assert row.pop("created") < row.pop("expires")
    assert row == {
        "token_id": token.token_id, "role": "worker", "state": "open", "max_workers": 3, "n_workers": 0,
        "needs_approval": True, "tags": ["night"],
    }  # fmt: skip
    assert call("token", "list", run) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{token.token_id} open: 0 of 3 workers, until ") and token.secret not in text


def test_a_token_as_json(run: Path, capsys: Capture) -> None:
    made = printed(capsys, "token", "create", run, "--url", "https://here:9")
    assert set(made) == {"token", "token_id", "expires", "max_workers", "command"} and made["max_workers"] == 1
    assert made["command"] == "tinylora-worker join https://here:9 --data TEXTS"
    assert parse_token(made["token"]).token_id == made["token_id"]


def test_a_revoked_token_takes_its_workers_along_only_when_told(run: Path, capsys: Capture) -> None:
    first, second = enrol(run, "w-1"), enrol(run, "w-2")
    assert call("token", "revoke", run, first) == 0
    assert [row["state"] for row in printed(capsys, "workers", run)] == ["pending", "pending"]
    assert call("token", "revoke", run, second, "--with-workers") == 0
    assert "1 workers are out: when the run is served next" in capsys.readouterr().err
    assert [row["state"] for row in printed(capsys, "workers", "list", run)] == ["pending", "revoked"]
    assert [row["state"] for row in printed(capsys, "token", "list", run)] == ["revoked", "revoked"]


@pytest.mark.parametrize(("role", "version", "who"), [("viewer", "tlv1", "a viewer"), ("admin", "tla1", "an admin")])
def test_a_token_for_people_is_another_kind(run: Path, capsys: Capture, role: str, version: str, who: str) -> None:
    assert call("token", "create", run, "--role", role, "--expires", "7d", "--note", "for Ada") == 0
    out, said = capsys.readouterr()
    mark = mark_of(run_public(RunFolder(run).keys))
    token = parse_access(out, mark)
    assert out == f"{token.text}\n" and out.startswith(f"{version}.{mark}.") and f"lets {who} in until" in said
    (row,) = printed(capsys, "token", "list", run)
    assert row.pop("created") < row.pop("expires")
    assert row == {"token_id": token.token_id, "role": role, "state": "open", "note": "for Ada"}
    assert call("token", "revoke", run, token.token_id) == 0 == call("token", "list", run)
    text = capsys.readouterr().out
    assert text.startswith(f"{token.token_id} revoked: {role}, until ") and text.endswith(", for Ada\n")
    assert token.secret not in text and set(printed(capsys, "token", "create", run, "--role", role)) == {
        "token", "token_id", "role", "expires"
    }  # fmt: skip


# --- workers and orders -----------------------------------------------------------------------------------------------


def test_workers_are_listed_approved_and_revoked(run: Path, capsys: Capture) -> None:
    token_id = enrol(run)
    begin(run, WorkerJoined(worker="w-1", name="mine"))
    assert call("workers", "approve", run, "w-1") == 0
    (row,) = printed(capsys, "workers", run)
    assert row == {
        "worker": "w-1", "name": "mine", "state": "approved", "token_id": token_id, "tags": ["gpu"],
        "first_seen": as_date(NOW), "units": 0, "tokens": 0, "node": None,
    }  # fmt: skip
    assert call("workers", run) == 0 and "w-1 (mine) approved: 0 units, 0 tokens [gpu]" in capsys.readouterr().out
    assert call("workers", "revoke", run, "w-1", "--reason", "noise") == 0
    assert call("workers", "erase", run, "w-1") == 0
    with OperatorStore(run) as store:
        assert [(order.kind, order.worker, order.reason) for order in store.orders()] == [
            ("revoke", "w-1", "noise"),
            ("erase", "w-1", ""),
        ]


def test_a_worker_is_released_and_moved(run: Path, capsys: Capture) -> None:
    enrol(run)
    assert call("workers", "release", run, "w-1", "--reason", "hangs") == 0
    assert "the unit of w-1 is free when the run is served next" in capsys.readouterr().err
    assert call("workers", "reassign", run, "w-1", "01") == 0
    assert call("workers", "reassign", run, "w-1", "root") == 0
    assert call("workers", "reassign", run, "w-1", "") == 2
    with OperatorStore(run) as store:
        assert [(order.kind, order.worker, order.node, order.reason) for order in store.orders()] == [
            ("release", "w-1", "", "hangs"),
            ("reassign", "w-1", "01", ""),
            ("reassign", "w-1", "", ""),
        ]


def test_orders_wait_and_the_status_tells_them(run: Path, capsys: Capture) -> None:
    for kind in ("pause", "resume", "finish"):
        assert call(kind, run, "--reason", "so") == 0
        assert f"{kind}, when the run is served next" in capsys.readouterr().err
    assert [order["kind"] for order in printed(capsys, "status", run)["orders"]] == ["pause", "resume", "finish"]
    RunFolder(run).lock_file.write_text(str(os.getpid()))
    assert call("pause", run) == 0 and "within seconds" in capsys.readouterr().err


# --- looking ----------------------------------------------------------------------------------------------------------


def test_status_of_a_run_that_has_not_begun(run: Path, tmp_path: Path, capsys: Capture) -> None:
    found = printed(capsys, "status", run)
    assert (found["phase"], found["workers"], found["run"], found["orders"]) == ("not begun", [], "test", [])
    assert call("status", run) == 0
    assert "run test: not begun" in capsys.readouterr().out
    assert call("bundle", run, "--out", tmp_path / "b.safetensors") != 0
    assert not (tmp_path / "b.safetensors").exists()


def test_status_tells_a_pause(run: Path, capsys: Capture) -> None:
    begin(run, RunPaused())
    assert printed(capsys, "status", run)["phase"] == "paused"
    begin(run, RunResumed())
    assert printed(capsys, "status", run)["phase"] == "waiting for sketches"


def test_status_follows_until_the_end(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    looks = iter(["training", "training", "paused", "finished (done)"])
    monkeypatch.setattr("tinylora_coordinator.overview.overview", lambda folder: {"phase": next(looks)})
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert call("status", run, "--follow", "--json") == 0
    lines = [json.loads(line)["phase"] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["training", "paused", "finished (done)"]


def test_verify_log_finds_what_was_altered(run: Path, capsys: Capture) -> None:
    assert printed(capsys, "verify-log", run) == {"n_events": 0, "chain": "", "faults": []}
    begin(run, WorkerJoined(worker="w-1", name="mine"))
    sound = printed(capsys, "verify-log", run)
    assert (sound["n_events"], sound["faults"], len(sound["chain"])) == (2, [], 64)
    with SqliteLedger(run) as ledger:
        ledger.put_blob(b"x")
    alter(run, "UPDATE event SET body = replace(body, 'mine', 'ours')")
    capsys.readouterr()
    assert call("verify-log", run, "--json") == 8
    out, error = capsys.readouterr()
    assert json.loads(out)["faults"] and "error: " in error and "event 2" in error


def alter(run: Path, statement: str) -> None:
    import sqlite3

    with sqlite3.connect(run / "ledger.sqlite") as database:
        database.execute(statement)
    database.close()


def test_selfcheck_tells_each_check_and_ends_with_1_when_one_failed(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    checks = [
        Check("surface", "ok", "closed", "closed", "", "surface"),
        Check("disk", "warn", "1 GiB", "2", "free", "d"),
    ]
    monkeypatch.setattr("tinylora_coordinator.selfcheck.selfcheck", lambda folder, url: checks)
    assert call("selfcheck", run) == 0
    assert capsys.readouterr().out.splitlines() == ["ok   surface: closed", "warn disk: 1 GiB; needed: 2; free"]
    assert [row["status"] for row in printed(capsys, "selfcheck", run)] == ["ok", "warn"]
    checks.append(Check("permissions", "fail", "0644", "0600", "chmod", "p"))
    assert call("selfcheck", run, "--url", "https://a:1") == 1
    assert "error: https://a:1: 1 checks failed" in capsys.readouterr().err


# --- outputs ----------------------------------------------------------------------------------------------------------


def unwritable(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file" / "b.safetensors"


@pytest.mark.parametrize("place", [lambda folder: folder, lambda folder: folder / "no" / "b.safetensors", unwritable])
def test_an_output_that_cannot_be_written_is_refused_before_work(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, place: Callable[[Path], Path]
) -> None:
    monkeypatch.setattr("tinylora_coordinator.service.bundle", lambda *words: pytest.fail("it worked"))
    assert call("bundle", run, "--out", place(tmp_path)) == 8
    assert capsys.readouterr().err.startswith("error: ")


def test_a_bundle_may_leave_a_worker_out(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    asked: list[tuple[Path, Path, str, str]] = []

    def write(root: Path, out: Path, *, without: str, statistics: str) -> BundlePublished:
        asked.append((root, out, without, statistics))
        return BundlePublished(sha256="ab" * 32, bytes=9, n_events=7, log_sha256="cd" * 32, router_version=2, at_s=1.5)

    monkeypatch.setattr("tinylora_coordinator.service.bundle", write)
    out = tmp_path / "b.safetensors"
    assert call("bundle", run, "--out", out) == 0 == call("bundle", run, "--out", out, "--without", "w-1")
    assert asked == [(run, out, "", "leaf"), (run, out, "w-1", "leaf")]
    assert f"{out}: sha256 abab" in capsys.readouterr().err
    assert printed(capsys, "bundle", run, "--out", out) == {
        "file": str(out), "without": "", "sha256": "ab" * 32, "bytes": 9, "n_events": 7, "log_sha256": "cd" * 32,
        "router_version": 2, "at_s": 1.5, "statistics": "leaf", "signed_by": run_public(RunFolder(run).keys),
    }  # fmt: skip
    assert call("bundle", run, "--out", out, "--no-statistics") == 0 and asked[-1][3] == "none"
    assert call("bundle", run, "--out", out, "--statistics", "pooled") == 0 and asked[-1][3] == "pooled"
    assert call("bundle", run, "--out", out, "--statistics", "some") == 2


def test_looking_whether_it_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    desk.check_output(tmp_path / "old")
    desk.check_output(tmp_path / "new")
    assert [file.name for file in tmp_path.iterdir()] == ["old"] and (tmp_path / "old").read_text() == "old"


# --- serve ------------------------------------------------------------------------------------------------------------


def test_a_port_in_use_ends_serve_with_its_own_code(run: Path, capsys: Capture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert call("serve", run, "--port", port) == 6
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: 127.0.0.1:{port}: ") and "choose another" in error


def test_a_port_that_was_chosen_for_the_dashboard_is_that_one_or_none(run: Path, capsys: Capture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert call("serve", run, "--port", 0, "--dashboard-port", port) == 6
    assert f"error: 127.0.0.1:{port}: " in capsys.readouterr().err


@pytest.mark.parametrize("words", [("--viewers", "king"), ("--dashboard-port", "-1"), ("--dashboard-port", "65536")])
def test_serve_refuses_what_makes_no_sense(run: Path, words: tuple[str, str]) -> None:
    assert call("serve", run, *words) == 2


# --- spans of time ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("12h", 43_200), ("7d", 604_800), ("1.5h", 5400)],
)
def test_spans_of_time(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "-1d", "0s", "1 d", "1y", "1e3s", "nan", "9999999d", "1d2h"])
def test_what_is_no_span_of_time(text: str) -> None:
    with pytest.raises(SettingError, match="expected a span of time"):
        parse_duration(text)

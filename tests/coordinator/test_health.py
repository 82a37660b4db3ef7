"""`health`, `init --if-missing` and `token create --out`: what containers and services ask for when they start."""

import json
import ssl
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tinylora_coordinator import desk
from tinylora_coordinator.cli import app
from tinylora_coordinator.folder import RunFolder, read_run, write_run
from tinylora_coordinator.health import check_health
from tinylora_coordinator.served import forget_served, note_served, served_at

from tests.federation.facts import FACTS, SETTINGS
from tests.helpers import WINDOW_TOKENS, tiny_base_dir
from tinylora import failpoints
from tinylora.command_line import exit_code_of
from tinylora.demo.experiment import BASE_DIR, place_of_base
from tinylora.flower.join_token import parse_token

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of alembic, about flwr's use

Capture = pytest.CaptureFixture[str]
RUNNING = (200, {"run": "mine", "phase": "running", "protocol": 1})


def call(*words: object) -> int:
    return exit_code_of(lambda: app([str(word) for word in words]))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has not been served yet."""
    write_run(RunFolder(tmp_path / "run"), SETTINGS, FACTS, None)
    return tmp_path / "run"


@contextmanager
def answering(status: int, body: object, run: Path | None = None) -> Iterator[str]:
    """Somebody who answers every question so; with the certificate of a run, if one is given."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = json.dumps(body).encode() if self.path == "/tinylora/state" else b"elsewhere"
            self.send_response(status)
            self.send_header("content-length", str(len(found)))
            self.end_headers()
            self.wfile.write(found)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        if run is not None:
            context, keys = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), RunFolder(run).keys
            context.load_cert_chain(keys.server, keys.server_key)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"{'http' if run is None else 'https'}://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


# --- health -----------------------------------------------------------------------------------------------------------


def test_who_answers_as_a_run_does_is_healthy(run: Path, capsys: Capture) -> None:
    with answering(*RUNNING, run) as url:
        assert call("health", url) == 0
        assert capsys.readouterr().err == f"{url}: run mine is running\n"
        note_served(run, url)
        assert call("health", run, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "is_healthy": True, "phase": "running", "sentence": f"{url}: run mine is running", "url": url,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("status", "body"), [(503, RUNNING[1]), (200, ["a list"]), (200, {"run": "mine"}), (404, {"error": "not_found"})]
)
def test_who_answers_otherwise_is_not(status: int, body: object, capsys: Capture) -> None:
    with answering(status, body) as url:
        assert call("health", url, "--json") == 6
    out, said = capsys.readouterr()
    assert not json.loads(out)["is_healthy"] and f"HTTP {status}" in said


def test_where_nobody_answers_it_is_said_in_time(run: Path, capsys: Capture) -> None:
    assert call("health", run) == 6 and "nobody serves this run" in capsys.readouterr().err
    with answering(*RUNNING) as url:
        pass
    note_served(run, url)  # killed: nobody took the note away
    before = time.monotonic()
    assert call("health", run, "--timeout", 2) == 6 and time.monotonic() - before < 3
    assert "no coordinator answers" in capsys.readouterr().err
    forget_served(run)
    assert served_at(run) == ""


def test_a_folders_run_is_known_by_its_own_ca(run: Path, tmp_path: Path) -> None:
    write_run(RunFolder(tmp_path / "other"), SETTINGS, FACTS, None)
    with answering(*RUNNING, tmp_path / "other") as url:
        note_served(run, url)
        found = check_health(str(run))
    assert not found.is_healthy and "CERTIFICATE_VERIFY_FAILED" in found.sentence


@pytest.mark.parametrize("where", ["", "nowhere", "ftp://a", "https://", "https://a:x", "https://a/b"])
def test_what_is_neither_a_folder_nor_an_address_is_one_sentence(where: str, capsys: Capture) -> None:
    assert call("health", where) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "expected" in error and error.count("\n") == 1


# --- a second start ---------------------------------------------------------------------------------------------------


def test_init_leaves_a_run_that_is_there(tmp_path: Path, capsys: Capture) -> None:
    words = ["init", tmp_path / "run", "--base", tiny_base_dir(), "--set", f"window_tokens={WINDOW_TOKENS}"]
    assert call(*words, "--set", "name=first", "--if-missing") == 0
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    capsys.readouterr()
    assert call(*words, "--set", "name=second", "--if-missing") == 0
    assert "run first is there already" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()} == before
    (tmp_path / "run" / "base.json").unlink()
    assert call(*words, "--if-missing") == 2  # a run that cannot be served is not taken for one


def test_init_finishes_what_an_earlier_one_began(tmp_path: Path) -> None:
    words = ["init", tmp_path / "run", "--base", tiny_base_dir(), "--set", f"window_tokens={WINDOW_TOKENS}"]
    with failpoints.armed("folder.write.before:1:enospc"):
        assert call(*words, "--if-missing") == 8
    keys = {file: file.read_bytes() for file in (tmp_path / "run" / "keys").iterdir()}
    assert keys and call(*words, "--if-missing") == 0
    assert {file: file.read_bytes() for file in (tmp_path / "run" / "keys").iterdir()} == keys
    assert read_run(RunFolder(tmp_path / "run"))


def test_demo_is_the_base_that_comes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert place_of_base("demo") == str(BASE_DIR) and place_of_base("org/name") == "org/name" and not place_of_base("")
    (tmp_path / "demo").mkdir()
    assert place_of_base("demo") == "demo"


# --- a token in a file ------------------------------------------------------------------------------------------------


def test_a_token_in_a_file_is_its_owners_alone(run: Path, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "token"
    assert call("token", "create", run, "--uses", 2, "--out", file, "--json") == 0
    out, said = capsys.readouterr()
    token = parse_token(file.read_text())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and file.read_text() == f"{token.text}\n"
    assert token.secret not in out + said and json.loads(out)["token_id"] == token.token_id
    assert call("token", "create", run, "--out", file) == 2
    assert "is there already" in capsys.readouterr().err and len(desk.tokens(run, now_s=0)) == 1


@pytest.mark.parametrize("role", ["worker", "viewer", "admin"])
def test_a_second_start_finds_the_token_of_the_first(run: Path, tmp_path: Path, role: str, capsys: Capture) -> None:
    words = ["token", "create", run, "--role", role, "--out", tmp_path / "token", "--if-missing"]
    assert call(*words) == 0
    text = (tmp_path / "token").read_text()
    desk.revoke_token(run, text.split(".")[2], with_workers=False, now_s=0)
    capsys.readouterr()
    assert call(*words) == 0 and (tmp_path / "token").read_text() == text
    assert "of this run already (revoked)" in capsys.readouterr().err
    assert len(desk.tokens(run, now_s=0)) == 1


def test_a_file_that_holds_something_else_is_refused(run: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ["token", "create", run, "--if-missing", "--out", tmp_path / "token"]
    assert call(*words, "--role", "viewer") == 0
    assert call(*words) == 2  # a viewer's is no worker's
    (tmp_path / "token").write_text("notes")
    assert call(*words) == 2 and (tmp_path / "token").read_text() == "notes"
    assert "no worker's token of this run" in capsys.readouterr().err
    assert call("token", "create", run, "--if-missing") == 2 and "only with --out" in capsys.readouterr().err
    assert call("token", "create", run, "--out", tmp_path / "no" / "token") == 8
    assert call("token", "create", run, "--out", tmp_path) == 8
    with failpoints.armed("folder.rename.before:1:enospc"):
        assert call("token", "create", run, "--out", tmp_path / "new") == 8
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run", "token"]


def test_a_token_from_before_another_certificate_is_refused(run: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ["token", "create", run, "--if-missing", "--out", tmp_path / "token"]
    assert call(*words) == 0
    keys = RunFolder(run).keys
    keys.ca.unlink()
    keys.server.unlink()
    write_run(RunFolder(run), SETTINGS, FACTS, None)
    assert call(*words) == 2 and "certificate was changed" in capsys.readouterr().err

"""Where a run is reached behind a proxy: what tokens pin, which command is shown, and what the commands refuse."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tinylora_coordinator.cli import app
from tinylora_coordinator.dashboard.opening import reach_of
from tinylora_coordinator.desk import create_token
from tinylora_coordinator.folder import RunFolder, write_run
from tinylora_coordinator.front_door import own_hosts
from tinylora_coordinator.keys import (
    KeyFolder,
    join_url,
    pin_of,
    read_public,
    served_ca,
    server_identity,
    write_public,
)
from tinylora_coordinator.public_address import PublicAddress, make_public

from tests.federation.facts import FACTS, SETTINGS
from tinylora.command_line import exit_code_of
from tinylora.errors import SettingError
from tinylora.flower.join_token import SYSTEM, parse_token

URL = "https://run.example.org"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_run(RunFolder(tmp_path / "run"), SETTINGS, FACTS, None, hosts=["inside.example.org"])
    return tmp_path / "run"


@pytest.fixture
def keys(run: Path) -> KeyFolder:
    return RunFolder(run).keys


def make_token(run: Path) -> tuple[str, str]:
    """A token's pin and the command that goes with it."""
    made = create_token(run, now_s=0.0, uses=1, expires="1h", tags=[], needs_approval=False, url="")
    return parse_token(made["token"]).pin, made["command"]


def test_where_bytes_are_passed_through_tokens_pin_the_runs_own_ca(run: Path, keys: KeyFolder) -> None:
    before = pin_of(keys)
    write_public(keys, make_public(f"{URL}:443/"))
    assert make_token(run) == (before, f"tinylora-worker join {URL} --data TEXTS") and served_ca(keys) == keys.ca


def test_where_the_proxy_ends_tls_tokens_pin_who_vouches_for_its_certificate(run: Path, keys: KeyFolder) -> None:
    before = pin_of(keys)
    write_public(keys, make_public(URL, ca="system"))
    assert make_token(run) == (SYSTEM, f"tinylora-worker join {URL} --data TEXTS") and served_ca(keys) is None
    write_public(keys, make_public(URL, is_plain=True))
    assert pin_of(keys) == SYSTEM
    write_public(keys, make_public(f"{URL}:444", ca=str(keys.ca)))  # any CA: here the run's own signed the proxy's
    assert make_token(run) == (before, f"tinylora-worker join {URL}:444 --data TEXTS")
    write_public(keys, None)
    assert read_public(keys) is None and join_url(keys, 8443) == "https://inside.example.org:8443"


def test_the_dashboard_tells_everybody_the_same_address(keys: KeyFolder) -> None:
    write_public(keys, make_public(URL))
    reach = reach_of(keys, "127.0.0.1", 8443, is_tls=False, local=own_hosts(8444))
    for came_by in ("http://127.0.0.1:8444", "http://127.0.0.1:8443", "https://evil.example", ""):
        assert reach.as_workers_do(came_by) == URL


def test_the_certificate_names_the_public_host(keys: KeyFolder) -> None:
    said: list[str] = []
    server_identity(keys, hosts=[PublicAddress(URL).host], now=datetime.now(UTC), say=said.append)
    assert "did not name run.example.org" in said[0]


@pytest.mark.parametrize(
    "url", ["http://run.example.org", "http://127.0.0.1:80", "run example", f"{URL}/x", f"{URL}?x"]
)
def test_a_public_address_is_https_and_nothing_behind_it(url: str) -> None:
    with pytest.raises(SettingError):
        make_public(url)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"url": "https://a", "by_proxy": false}'])
def test_a_note_that_is_none_is_told(keys: KeyFolder, text: str) -> None:
    keys.public.write_text(text)
    with pytest.raises(SettingError, match="delete it"):
        read_public(keys)


def test_a_ca_that_is_none_is_refused(keys: KeyFolder, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="No such file"):
        write_public(keys, make_public(URL, ca=str(tmp_path / "none.pem")))
    assert read_public(keys) is None


# --- the commands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--insecure", "--host", "0.0.0.0"], "only this machine"),
        (["--insecure", "--proxy", "127.0.0.1"], "--public-url"),
        (["--insecure", "--host", "0.0.0.0", "--proxy", "203.0.113.1", "--public-url", URL], "not a private network"),
        (["--proxy", "10.0.0.2"], "could say to be"),
        (["--proxy", "10.0.0.2", "--public-url", URL], "could say to be"),
        (["--proxy", "0.0.0.0/0", "--proxy-protocol"], "may say who he is"),
        (["--proxy", "nginx", "--proxy-protocol"], "--proxy nginx"),
        (["--proxy-protocol"], "name the proxy"),
        (["--public-ca", "system"], "--public-url"),
        (["--public-url", "http://run.example.org"], "https"),
    ],
)
def test_serve_refuses_what_would_not_be_safe(
    run: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert exit_code_of(lambda: app(["serve", str(run), "--port", "0", *options])) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not RunFolder(run).keys.public.exists()


def test_serve_notes_where_the_run_is_reached(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, object]] = []
    monkeypatch.setattr("tinylora_coordinator.supervisor.serve", lambda root, **how: calls.append(how))

    def serve(*options: str) -> None:
        assert exit_code_of(lambda: app(["serve", str(run), *options])) == 0

    keys = RunFolder(run).keys
    serve("--insecure", "--host", "0.0.0.0", "--proxy", "172.18.0.0/16", "--proxy", "fd00::2", "--public-url", URL)
    assert calls[0]["proxies"] == ["172.18.0.0/16", "fd00::2/128"] and calls[0]["proxy_protocol"] is False
    assert json.loads(keys.public.read_text()) == {"url": URL, "by_proxy": True, "ca": None}
    serve("--insecure", "--proxy", "127.0.0.1")  # it is remembered
    assert pin_of(keys) == SYSTEM
    serve("--proxy", "127.0.0.1", "--proxy-protocol", "--public-url", URL)
    assert pin_of(keys) != SYSTEM and read_public(keys) == PublicAddress(URL)
    serve("--public-url", "")
    assert read_public(keys) is None

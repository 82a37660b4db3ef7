"""At the door: every refusal has its code, the token is not used up by looking, and no secret meets a stranger."""

import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tinylora_coordinator.folder import RunFolder, write_run
from tinylora_worker.preflight import door
from tinylora_worker.preflight.check import Check, exit_code_of_checks
from tinylora_worker.preflight.doctor import Asked, Examined, examine
from tinylora_worker.preflight.door import AT_THE_DOOR
from tinylora_worker.preflight.facts import Line

from tests.federation.facts import FACTS, SETTINGS
from tests.helpers import tiny_base_dir
from tests.worker.front import Served, ca_of, impostor, served
from tinylora.errors import NetworkError, RefusedError
from tinylora.flower.enrolment import join
from tinylora.flower.identity import IDENTITY_FILE, load_or_create, new_identity
from tinylora.flower.join_token import parse_token
from tinylora.flower.membership import Membership, save_membership
from tinylora.flower.reach import Address

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of alembic and pathspec, about flwr's use


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("run") / "run") as running:
        yield running


@pytest.fixture(autouse=True)
def quick_line(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Forty requests fewer, but where they are the matter."""
    if "measured" not in request.node.name:
        monkeypatch.setattr(door, "measure", lambda *_, **options: Line(0.042, 88e6, 21e6))


def look(home: Path, url: str, token: str = "", **changes: object) -> Examined:
    asked = Asked(home, url, token, base=str(tiny_base_dir()), data=(str(tiny_base_dir()),))
    return examine(replace(asked, **changes))  # pyright: ignore[reportArgumentType]


def check_of(examined: Examined, name: str) -> Check:
    (found,) = [check for check in examined.checks if check.name == name]
    return found


# --- let in -----------------------------------------------------------------------------------------------------------


def test_looking_uses_nothing_up_and_leaves_nothing_behind(run: Served, tmp_path: Path) -> None:
    token, home = run.token(), tmp_path / "home"
    look(home, run.url, token)
    examined = look(home, run.url, token)
    assert [check_of(examined, name).status for name in AT_THE_DOOR] == ["ok"] * 5
    assert examined.answer is not None and examined.answer.run == SETTINGS.name
    assert not (home / IDENTITY_FILE).exists() and run.store.workers() == []
    secret = parse_token(token).secret
    assert secret not in repr(examined) and secret not in str(examined.checks)
    join(Address.parse(run.url), token, new_identity())  # the one place was still free


def test_the_line_is_measured_against_the_coordinator_itself(run: Served, tmp_path: Path) -> None:
    found = check_of(look(tmp_path, run.url, run.token()), "network")
    assert found.status in ("ok", "warn")  # by how busy this machine is
    assert re.match(r"\d+ ms, about [\d.]+ / [\d.]+ Mbit/s down/up to the coordinator", found.found)


def test_who_has_joined_before_needs_no_token(run: Served, tmp_path: Path) -> None:
    address, identity = Address.parse(run.url), load_or_create(tmp_path)
    save_membership(tmp_path, Membership.of(address, join(address, run.token(), identity)))
    examined = look(tmp_path, "")
    assert check_of(examined, "token").status == "ok" and "joined before" in check_of(examined, "token").found
    run.store.revoke(identity.worker, reason="", now_s=0.0)
    assert check_of(look(tmp_path, ""), "token").code == "TL-TOK-006"


def test_without_a_coordinator_the_rest_is_looked_at(tmp_path: Path) -> None:
    examined = look(tmp_path, "")
    assert {check.name for check in examined.checks if check.status == "skip"} == set(AT_THE_DOOR)
    assert check_of(look(tmp_path, "", is_joining=True), "token").code == "TL-TOK-008"


def test_without_a_token_it_is_told_that_somebody_answers(run: Served, tmp_path: Path) -> None:
    examined = look(tmp_path, run.url)
    assert check_of(examined, "network").status == "ok" and "somebody answers" in check_of(examined, "network").found
    assert check_of(examined, "tls").status == "skip" and check_of(examined, "token").code == "TL-TOK-008"
    assert check_of(look(tmp_path, "https://127.0.0.1:1"), "network").code == "TL-NET-001"


def test_a_check_that_is_skipped_is_told_as_skipped(run: Served, tmp_path: Path) -> None:
    examined = look(tmp_path, run.url, run.token(), skip=frozenset({"device", "network"}))
    assert [check.name for check in examined.checks if check.status == "skip"] == ["device", "network"]


# --- refused ----------------------------------------------------------------------------------------------------------


def used_up(run: Served) -> str:
    token = run.token()
    join(Address.parse(run.url), token, new_identity())
    return token


def revoked(run: Served) -> str:
    token = run.token()
    run.store.revoke_token(parse_token(token).token_id, 0.0)
    return token


def wrong_secret(run: Served) -> str:
    return replace(parse_token(run.token()), secret="s" * 32).text


@pytest.mark.parametrize(
    ("token", "code", "exit_code"),
    [
        (lambda run: run.token(made_s_ago=7200.0), "TL-TOK-003", 7),
        (used_up, "TL-TOK-004", 7),
        (revoked, "TL-TOK-005", 7),
        (wrong_secret, "TL-TOK-002", 7),
        (lambda run: run.token()[:-60], "TL-TOK-001", 2),
        (lambda run: "garbage", "TL-TOK-001", 2),
        (lambda run: "", "TL-TOK-008", 2),
    ],
)
def test_a_token_that_opens_nothing_has_its_code(
    run: Served, tmp_path: Path, token: Callable[[Served], str], code: str, exit_code: int
) -> None:
    shown = token(run)
    examined = look(tmp_path, run.url, shown)
    found = check_of(examined, "token")
    assert (found.status, found.code, exit_code_of_checks(examined.checks)) == ("fail", code, exit_code)
    assert not shown or shown.rpartition(".")[2] not in str(examined.checks)


def test_who_needs_approval_is_told_that_it_will_wait(run: Served, tmp_path: Path) -> None:
    found = check_of(look(tmp_path, run.url, run.token(needs_approval=True)), "token")
    assert (found.status, found.code) == ("warn", "TL-TOK-007")


def test_another_protocol_is_noticed_before_the_token_is_sent(
    run: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinylora_worker.preflight.door.PROTOCOL_VERSION", 77)
    monkeypatch.setattr("tinylora_worker.preflight.door.join", None)
    found = check_of(look(tmp_path, run.url, run.token()), "protocol")
    assert found.code == "TL-PRO-001" and "77" in found.found


@pytest.mark.parametrize(
    ("url", "code"),
    [("ftp://here", "TL-NET-003"), ("http://tree.example.org", "TL-NET-003"), ("https://127.0.0.1:1", "TL-NET-001")],
)
def test_an_address_that_leads_nowhere_has_its_code(run: Served, tmp_path: Path, url: str, code: str) -> None:
    examined = look(tmp_path, url, run.token())
    assert check_of(examined, "network").code == code
    assert all(check_of(examined, name).status == "skip" for name in AT_THE_DOOR if name != "network")


# --- strangers --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of another run, with a CA of its own."""
    root = tmp_path_factory.mktemp("other") / "run"
    write_run(RunFolder(root), SETTINGS, FACTS, None)
    return root


@pytest.mark.parametrize(
    ("shows_right_ca", "code"),
    [(False, "TL-TLS-001"), (True, "TL-TLS-002")],
    ids=["its own CA", "the right CA, which anybody can copy, and no key of it"],
)
def test_whoever_is_not_the_coordinator_of_the_token_never_hears_its_secret(
    run: Served, other: Path, tmp_path: Path, shows_right_ca: bool, code: str
) -> None:
    token = run.token()
    with impostor(other, ca_of(run.root if shows_right_ca else other)) as stranger:
        examined = look(tmp_path, stranger.url, token, is_joining=True)
        with pytest.raises(RefusedError if code == "TL-TLS-001" else NetworkError):
            join(Address.parse(stranger.url), token, new_identity())
    assert check_of(examined, "tls").code == code and exit_code_of_checks(examined.checks) in (6, 7)
    heard = b"".join(stranger.heard)
    assert heard.startswith(b"GET /ca.pem ") and b"POST" not in heard
    parts = parse_token(token)
    for secret in (token, parts.secret, parts.token_id, load_or_create(tmp_path).worker):
        assert secret.encode() not in heard


def test_who_speaks_no_tls_hears_nothing_either(run: Served, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        heard: list[bytes] = []

        def answer() -> None:
            line, _ = server.accept()
            with line:
                heard.append(line.recv(65_536))
                line.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        token = run.token()
        examined = look(tmp_path, f"https://127.0.0.1:{server.getsockname()[1]}", token)
        thread.join(10.0)
    assert check_of(examined, "tls").code == "TL-TLS-003" and token.encode() not in b"".join(heard)

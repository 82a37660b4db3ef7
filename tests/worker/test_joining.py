"""Joining as a volunteer does: where the token comes from, where it never appears, approval, and coming back."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tinylora_coordinator.folder import RunFolder, read_run, write_run
from tinylora_coordinator.front_door import listen, serve_public, server_tls
from tinylora_coordinator.keys import pin_of, run_public
from tinylora_coordinator.operator_store import OperatorStore
from tinylora_coordinator.public_door import make_door
from tinylora_worker.agent.agent import Agent
from tinylora_worker.agent.options import Options

from tests.federation.facts import FACTS, SETTINGS
from tests.flower.helpers import QUICK, until
from tests.worker.agents import PROMPT, Calm, InThisProcess
from tinylora.errors import NetworkError, RefusedError, SettingError
from tinylora.flower.identity import IDENTITY_FILE
from tinylora.flower.link import Link, create_link
from tinylora.flower.membership import FILE, Membership, load_membership, save_membership

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of alembic and pathspec, about flwr's use

Capture = pytest.CaptureFixture[str]


@dataclass
class Served:
    """A run's public door over TLS, with no rounds behind it: it is over as soon as somebody asks."""

    root: Path
    link: Link
    store: OperatorStore
    port: int

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    def token(self, *, needs_approval: bool = False) -> str:
        pin = pin_of(RunFolder(self.root).keys)
        return self.store.create_token(pin, now_s=time.time(), needs_approval=needs_approval).text

    def options(self, home: Path, token: str, url: str | None = None) -> Options:
        base = self.root / "base.json"  # read by the fake trainer
        base.write_text(FACTS.model_dump_json())
        return Options(self.url if url is None else url, token, str(base), ("fake",), home)


@contextmanager
def opened(root: Path, port: int = 0) -> Iterator[Served]:
    folder = RunFolder(root)
    link = create_link(folder.link_database)
    link.phase = "finished"
    tls = server_tls(folder.keys.server, folder.keys.server_key)
    with OperatorStore(root) as store:
        door = make_door(link, folder, read_run(folder), store)
        with serve_public(door, listen("127.0.0.1", port), tls=tls) as served:
            yield Served(root, link, store, served.port)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("run") / "run"
    write_run(RunFolder(root), SETTINGS, FACTS, None)
    with opened(root) as running:
        yield running


def work(options: Options, log: list[str] | None = None, **how: Any) -> str:
    """An agent's whole life: the run is over as soon as it asks."""
    show = [].append if log is None else log.append
    fixed: dict[str, Any] = {"show": show, "make_trainer": InThisProcess, "sensors": Calm(), "pace": QUICK}
    return Agent(options, **(fixed | PROMPT | how)).work()


# --- coming in --------------------------------------------------------------------------------------------------------


def test_a_whole_join_shows_the_secret_nowhere(
    served: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: Capture
) -> None:
    caplog.set_level(logging.DEBUG)
    token, log = served.token(), []
    options = served.options(tmp_path / "home", token)
    assert work(options, log) == "finished"
    with pytest.raises(RefusedError) as caught:
        work(served.options(tmp_path / "other", token), log)
    captured = capfd.readouterr()
    secret = token.rpartition(".")[2]
    kept = [file.read_text(errors="replace") for file in (tmp_path / "home").rglob("*") if file.is_file()]
    kept += [file.read_text(errors="replace") for file in served.root.iterdir() if file.is_file()]
    seen = [caplog.text, captured.out, captured.err, *log, repr(options), str(caught.value), *kept]
    assert len(caplog.text) > 1000 and not any(secret in text for text in seen)


def test_a_worker_comes_back_without_a_token_and_without_an_address(served: Served, tmp_path: Path) -> None:
    log: list[str] = []
    work(served.options(tmp_path, served.token()), log)
    known = load_membership(tmp_path)
    assert known is not None and known.run_key == run_public(RunFolder(served.root).keys)
    assert work(served.options(tmp_path, "", url=""), log) == "finished"
    assert [line for line in log if "joined" in line] == [log[0]] * 2
    with pytest.raises(RefusedError, match="a new worker needs a join token"):
        (tmp_path / IDENTITY_FILE).unlink()
        work(served.options(tmp_path, "", url=""), log)


def test_who_needs_approval_waits_for_it(served: Served, tmp_path: Path) -> None:
    log: list[str] = []
    endings: list[str] = []
    options = served.options(tmp_path, served.token(needs_approval=True))

    def volunteer() -> None:
        endings.append(work(options, log, approval_poll_s=0.05))

    thread = threading.Thread(target=volunteer)
    thread.start()
    until(lambda: any(worker.state == "pending" for worker in served.store.workers()), what="a waiting worker")
    until(lambda: bool(log), what="its word")
    (waiting,) = [worker.worker for worker in served.store.workers() if worker.state == "pending"]
    assert log == [f"https://{served.url}: the operator has yet to approve this worker: {waiting}; waiting"]
    served.store.approve(waiting)
    thread.join(30.0)
    assert endings == ["finished"]


def test_a_revoked_worker_stays_out(served: Served, tmp_path: Path) -> None:
    token = served.token()
    work(served.options(tmp_path, token))
    worker = served.store.workers()[-1].worker
    served.store.revoke(worker, reason="", now_s=0.0)
    for shown in (token, ""):
        with pytest.raises(RefusedError, match="has been removed from the run"):
            work(served.options(tmp_path, shown))


def test_a_coordinator_that_has_another_ca_is_another_run(served: Served, tmp_path: Path) -> None:
    write_run(RunFolder(tmp_path / "run"), SETTINGS, FACTS, None)
    with opened(tmp_path / "run") as other:
        work(other.options(tmp_path / "home", other.token()))
        before = load_membership(tmp_path / "home")
        with pytest.raises(NetworkError, match="its certificate does not hold"):
            work(served.options(tmp_path / "home", other.token()))
    assert load_membership(tmp_path / "home") == before
    work(served.options(tmp_path / "home", served.token()))
    now = load_membership(tmp_path / "home")
    assert now is not None and before is not None and now.pin != before.pin


# --- what is remembered -----------------------------------------------------------------------------------------------


def test_a_membership_is_read_back(tmp_path: Path) -> None:
    membership = Membership(url="https://a:1", run="r", pin="a" * 64, ca_pem="pem", run_key="b" * 64)
    save_membership(tmp_path / "home", membership)
    assert load_membership(tmp_path / "home") == membership
    assert (tmp_path / "home" / FILE).stat().st_mode & 0o777 == 0o600
    assert load_membership(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "{}", '{"url": "u", "run": "r", "run_key": "short"}'])
def test_a_spoiled_membership_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(SettingError, match=r"membership\.json: not readable"):
        load_membership(tmp_path)


def test_a_home_that_has_joined_nothing_needs_a_token(served: Served, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="has joined no run yet"):
        work(served.options(tmp_path, "", url=""))
    assert list(tmp_path.iterdir()) == []

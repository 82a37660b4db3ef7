"""Joining as a volunteer does: where the token comes from, where it never appears, approval, and coming back."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tinylora_coordinator.folder import RunFolder, read_run, write_run
from tinylora_coordinator.front_door import listen, serve_public, server_tls
from tinylora_coordinator.keys import pin_of, run_public
from tinylora_coordinator.operator_store import OperatorStore
from tinylora_coordinator.public_door import make_door
from tinylora_worker.service import CheckBase, Options, work

from tests.federation.facts import FACTS, SETTINGS
from tests.flower.helpers import QUICK, make_update, until
from tinylora.errors import NetworkError, RefusedError, SettingError
from tinylora.flower.identity import IDENTITY_FILE, Identity
from tinylora.flower.link import Link, create_link
from tinylora.flower.membership import FILE, Membership, load_membership, save_membership
from tinylora.flower.messages import Handle
from tinylora.protocol.documents import Update, WorkUnit

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
        return Options(self.url if url is None else url, token, "fake", (self.root,), home)


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


def prepare(options: Options, identity: Identity, check_base: CheckBase) -> Handle:
    check_base(FACTS)

    def handle(unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
        return make_update(unit, identity.worker, payload), payload

    return handle


# --- coming in --------------------------------------------------------------------------------------------------------


def test_a_whole_join_shows_the_secret_nowhere(
    served: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: Capture
) -> None:
    caplog.set_level(logging.DEBUG)
    token, log = served.token(), []
    options = served.options(tmp_path / "home", token)
    assert work(options, prepare=prepare, pace=QUICK, log=log.append) == "finished"
    with pytest.raises(RefusedError) as caught:
        work(served.options(tmp_path / "other", token), prepare=prepare, pace=QUICK, log=log.append)
    captured = capfd.readouterr()
    secret = token.rpartition(".")[2]
    kept = [file.read_text(errors="replace") for file in (tmp_path / "home").rglob("*") if file.is_file()]
    kept += [file.read_text(errors="replace") for file in served.root.iterdir() if file.is_file()]
    seen = [caplog.text, captured.out, captured.err, *log, repr(options), str(caught.value), *kept]
    assert len(caplog.text) > 1000 and not any(secret in text for text in seen)


def test_a_worker_comes_back_without_a_token_and_without_an_address(served: Served, tmp_path: Path) -> None:
    log: list[str] = []
    work(served.options(tmp_path, served.token()), prepare=prepare, pace=QUICK, log=log.append)
    known = load_membership(tmp_path)
    assert known is not None and known.run_key == run_public(RunFolder(served.root).keys)
    assert work(served.options(tmp_path, "", url=""), prepare=prepare, pace=QUICK, log=log.append) == "finished"
    assert [line for line in log if "joined" in line] == [log[0]] * 2
    with pytest.raises(RefusedError, match="a new worker needs a join token"):
        (tmp_path / IDENTITY_FILE).unlink()
        work(served.options(tmp_path, "", url=""), prepare=prepare, pace=QUICK, log=log.append)


def test_who_needs_approval_waits_for_it(served: Served, tmp_path: Path) -> None:
    log: list[str] = []
    endings: list[str] = []
    options = served.options(tmp_path, served.token(needs_approval=True))

    def volunteer() -> None:
        endings.append(work(options, prepare=prepare, pace=QUICK, log=log.append, approval_poll_s=0.05))

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
    work(served.options(tmp_path, token), prepare=prepare, pace=QUICK, log=lambda line: None)
    worker = served.store.workers()[-1].worker
    served.store.revoke(worker, reason="", now_s=0.0)
    for shown in (token, ""):
        with pytest.raises(RefusedError, match="has been removed from the run"):
            work(served.options(tmp_path, shown), prepare=prepare, pace=QUICK, log=lambda line: None)


def test_a_coordinator_that_has_another_ca_is_another_run(served: Served, tmp_path: Path) -> None:
    write_run(RunFolder(tmp_path / "run"), SETTINGS, FACTS, None)
    with opened(tmp_path / "run") as other:
        work(other.options(tmp_path / "home", other.token()), prepare=prepare, pace=QUICK, log=lambda line: None)
        before = load_membership(tmp_path / "home")
        with pytest.raises(NetworkError, match="its certificate does not hold"):
            work(served.options(tmp_path / "home", other.token()), prepare=prepare, pace=QUICK, log=lambda line: None)
    assert load_membership(tmp_path / "home") == before
    work(served.options(tmp_path / "home", served.token()), prepare=prepare, pace=QUICK, log=lambda line: None)
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
        work(served.options(tmp_path, "", url=""), prepare=prepare)
    assert list(tmp_path.iterdir()) == []

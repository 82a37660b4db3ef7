"""A worker over the real wire whose process ends at the worst moments: each unit is done once, its update arrives."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.flower.helpers import (
    Federation,
    federation,
    make_unit,
    make_update,
    payload_of,
    replies,
    until,
)
from tinylora.errors import RefusedError
from tinylora.flower.fleet import FleetClient, FleetHttpClient
from tinylora.flower.messages import GivenBack, Handle
from tinylora.flower.node_memory import FolderNodeMemory
from tinylora.flower.outbox import FolderOutbox
from tinylora.flower.transport import FlowerTransport
from tinylora.protocol.documents import Update, WorkUnit

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of alembic and pathspec, about flwr's use


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with federation(tmp_path_factory.mktemp("link")) as running:
        yield running


@pytest.fixture
def running(served: Federation) -> Iterator[Federation]:
    yield served
    served.stop_workers()
    served.link.phase = "running"


@pytest.fixture
def transport(running: Federation) -> Iterator[FlowerTransport]:
    with running.transport() as opened:
        yield opened


class Killed(BaseException):
    """Ends a worker's thread as SIGKILL ends its process: nothing is cleared up, nobody is told."""


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody says good-bye any more."""
    monkeypatch.setattr(FleetClient, "_leave", lambda client: None)


def online(transport: FlowerTransport, n_workers: int) -> list[str]:
    until(lambda: len(transport.workers()) == n_workers, what=f"{n_workers} workers online")
    return [info.worker for info in transport.workers()]


def dying(done: list[str]) -> Any:
    def make(worker: str) -> Handle:
        def handle(unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
            done.append(unit.unit_id)
            raise Killed

        return handle

    return make


def counting(done: list[str]) -> Any:
    def make(worker: str) -> Handle:
        def handle(unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
            done.append(unit.unit_id)
            return make_update(unit, worker, payload[::-1]), payload[::-1]

        return handle

    return make


def test_a_worker_killed_in_mid_unit_is_the_same_node_at_once_and_goes_on(
    running: Federation, transport: FlowerTransport, tmp_path: Path, silent: None
) -> None:
    done: list[str] = []
    home = {"outbox": FolderOutbox(tmp_path), "node": FolderNodeMemory(tmp_path)}
    first = running.start_worker(dying(done), **home)
    online(transport, 1)
    transport.send(first.name, make_unit("u", b"abc"), b"abc")
    until(lambda: bool(first.endings), what="the kill")
    running.start_worker(counting(done), identity=first.identity, **home)
    assert payload_of(replies(transport, 1)["u"]) == b"cba" and done == ["u", "u"]
    assert not any("still counts as online" in line for line in running.workers[-1].log)
    transport.send(first.name, make_unit("v", b"12"), b"12")
    assert payload_of(replies(transport, 1)["v"]) == b"21"


@pytest.mark.parametrize("verb", ["PushMessages", "PushObject"])
def test_an_update_that_was_made_before_the_kill_is_sent_first_and_not_made_again(
    running: Federation,
    transport: FlowerTransport,
    tmp_path: Path,
    silent: None,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
) -> None:
    done: list[str] = []
    home = {"outbox": FolderOutbox(tmp_path), "node": FolderNodeMemory(tmp_path)}

    def killed(client: FleetHttpClient, request: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patch:
        first = running.start_worker(counting(done), **home)
        online(transport, 1)
        patch.setattr(FleetHttpClient, verb, killed)
        transport.send(first.name, make_unit("u", b"abc"), b"abc")
        until(lambda: bool(first.endings), what="the kill")
    assert [kept.unit.unit_id for kept in home["outbox"].unsent()] == ["u"]
    running.start_worker(counting(done), identity=first.identity, **home)
    assert payload_of(replies(transport, 1)["u"]) == b"cba" and done == ["u"]
    until(lambda: not home["outbox"].unsent(), what="the note that it was sent")


def test_where_flower_has_ended_the_run_the_unit_comes_again_and_is_answered_from_the_outbox(
    running: Federation, tmp_path: Path, silent: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    home = {"outbox": FolderOutbox(tmp_path), "node": FolderNodeMemory(tmp_path)}

    def killed(client: FleetHttpClient, request: Any) -> Any:
        raise Killed

    with running.transport() as transport, monkeypatch.context() as patch:
        first = running.start_worker(counting(done), **home)
        online(transport, 1)
        patch.setattr(FleetHttpClient, "PushMessages", killed)
        transport.send(first.name, make_unit("u", b"abc"), b"abc")
        until(lambda: bool(first.endings), what="the kill")
    again = running.start_worker(counting(done), identity=first.identity, **home)
    until(lambda: any("once more" in line for line in again.log), what="the old run's end")
    until(lambda: not home["outbox"].unsent(), what="the note that it will be asked for")
    assert home["outbox"].made(make_unit("u", b"abc"))
    with running.transport() as transport:
        transport.send(first.name, make_unit("u", b"abc"), b"abc")
        assert payload_of(replies(transport, 1)["u"]) == b"cba" and done == ["u"]


def test_a_copied_home_is_another_place_and_waits(
    running: Federation, transport: FlowerTransport, tmp_path: Path
) -> None:
    memory = FolderNodeMemory(tmp_path)
    first = running.start_worker(node=memory)
    online(transport, 1)
    until(lambda: memory.load(60.0) is not None, what="the memory")
    copied = tmp_path / "copy"
    copied.mkdir()
    (copied / "node.json").write_bytes((tmp_path / "node.json").read_bytes())
    assert FolderNodeMemory(copied).load(60.0) is None
    twin = running.start_worker(identity=first.identity, node=FolderNodeMemory(copied))
    until(lambda: bool(twin.endings), what="the twin's end")
    assert isinstance(twin.endings[0], RefusedError) and "already running" in str(twin.endings[0])


def test_a_memory_that_is_old_or_was_said_good_bye_to_is_none(tmp_path: Path) -> None:
    now = [1000.0]
    memory = FolderNodeMemory(tmp_path, clock=lambda: now[0])
    memory.save(2**63 + 7)
    assert memory.load(75.0) == 2**63 + 7
    now[0] += 76.0
    assert memory.load(75.0) is None
    memory.touch()
    assert memory.load(75.0) == 2**63 + 7
    now[0] -= 10.0
    assert memory.load(75.0) is None, "a clock that went back proves nothing"
    memory.forget()
    now[0] += 10.0
    assert memory.load(75.0) is None
    (tmp_path / "node.json").write_text("nonsense")
    assert memory.load(75.0) is None


def test_who_leaves_in_good_order_forgets_its_node(
    running: Federation, transport: FlowerTransport, tmp_path: Path
) -> None:
    memory = FolderNodeMemory(tmp_path)
    worker = running.start_worker(node=memory)
    online(transport, 1)
    worker.stop.set()
    until(lambda: bool(worker.endings), what="the end")
    assert not (tmp_path / "node.json").exists()


def test_who_is_not_ready_is_not_on_the_roster_and_comes_back(running: Federation, transport: FlowerTransport) -> None:
    is_ready, phases = threading.Event(), []
    worker = running.start_worker(ready=is_ready.is_set, on_phase=phases.append)
    until(lambda: phases == ["resting"], what="rest")
    assert online(transport, 0) == []
    is_ready.set()
    assert online(transport, 1) == [worker.name]
    transport.send(worker.name, make_unit("u", b"ab"), b"ab")
    assert payload_of(replies(transport, 1)["u"]) == b"ba"
    is_ready.clear()
    online(transport, 0)
    is_ready.set()
    online(transport, 1)
    worker.stop.set()
    until(lambda: worker.endings == ["stopped"], what="the end")
    assert [phase for phase in phases if phase in ("resting", "connecting")] == ["resting", "connecting"] * 2
    assert {"waiting", "fetching", "working", "sending"} <= set(phases)


def test_who_rests_hears_of_the_end_of_the_run(running: Federation, transport: FlowerTransport) -> None:
    worker = running.start_worker(ready=lambda: False)
    running.link.phase = "finished"
    until(lambda: worker.endings == ["finished"], what="the end")


def test_a_unit_that_is_given_back_says_so_and_leaves_nothing_in_the_outbox(
    running: Federation, transport: FlowerTransport, tmp_path: Path
) -> None:
    def busy(worker: str) -> Handle:
        def handle(unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
            raise GivenBack("the owner needs the machine")

        return handle

    outbox = FolderOutbox(tmp_path)
    worker = running.start_worker(busy, outbox=outbox)
    online(transport, 1)
    transport.send(worker.name, make_unit("u", b"ab"), b"ab")
    reply = replies(transport, 1)["u"]
    assert reply.is_returned and not reply.is_final and "the owner needs the machine" in reply.error
    until(lambda: not outbox.kept(), what="an empty outbox")


def test_a_coordinator_that_is_away_in_mid_unit_gets_its_update_afterwards(
    running: Federation, transport: FlowerTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody answers for a while, from the middle of a unit to some time after it; then all is as it was."""
    begun, release, is_away, phases = threading.Event(), threading.Event(), threading.Event(), []
    n_refused: list[str] = []

    def slow(worker: str) -> Handle:
        def handle(unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
            begun.set()
            assert release.wait(60.0)
            return make_update(unit, worker, payload[::-1]), payload[::-1]

        return handle

    outbox = FolderOutbox(tmp_path)
    worker = running.start_worker(slow, outbox=outbox, on_phase=phases.append)
    online(transport, 1)
    transport.send(worker.name, make_unit("u", b"abc"), b"abc")
    assert begun.wait(60.0)
    post = httpx.Client.send

    def away(client: httpx.Client, request: httpx.Request, **options: Any) -> httpx.Response:
        if is_away.is_set() and str(worker.client._address.host_port) in str(request.url):
            n_refused.append(request.url.path)
            raise httpx.ConnectError("nobody there")
        return post(client, request, **options)

    monkeypatch.setattr(httpx.Client, "send", away)
    is_away.set()
    assert not worker.client._beat()
    release.set()
    until(lambda: n_refused.count("/v1/fleet/push-messages") >= 3, what="three tries")
    assert [kept.unit.unit_id for kept in outbox.unsent()] == ["u"] and phases[-1] == "unreachable"
    is_away.clear()
    assert payload_of(replies(transport, 1)["u"]) == b"cba"
    assert not worker.endings

"""The two ends over a real link: what is sent arrives, and what goes wrong is told to the loop."""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.flower.helpers import (
    QUICK,
    Federation,
    federation,
    make_unit,
    make_update,
    payload_of,
    replies,
    reversing,
    until,
)
from tinylora.errors import DataError, RefusedError
from tinylora.flower.compat.rounds import RuntimeHttpClient
from tinylora.flower.fleet import FleetHttpClient
from tinylora.flower.identity import new_identity
from tinylora.flower.messages import Handle
from tinylora.flower.transport import FlowerTransport, SessionLost
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


def online(transport: FlowerTransport, n_workers: int) -> list[str]:
    until(lambda: len(transport.workers()) == n_workers, what=f"{n_workers} workers online")
    return [info.worker for info in transport.workers()]


def test_units_go_out_and_updates_come_back(running: Federation, transport: FlowerTransport) -> None:
    started = {running.start_worker(name=f"worker {number}").name for number in range(3)}
    names = online(transport, 3)
    assert set(names) == started and names == sorted(names)
    payloads = {worker: os.urandom(100_000) for worker in names}
    for worker, payload in payloads.items():
        transport.send(worker, make_unit(f"u-{worker}", payload), payload)
    found = replies(transport, 3)
    for worker, payload in payloads.items():
        reply = found[f"u-{worker}"]
        assert (reply.worker, reply.error, payload_of(reply)) == (worker, "", payload[::-1])
        assert Update.from_json(reply.update_json).worker == worker
    assert {info.name for info in transport.workers()} == {"worker 0", "worker 1", "worker 2"}
    assert {info.public_key for info in transport.workers()} == {w.identity.public_pem for w in running.workers}


def test_one_worker_gets_unit_after_unit_without_waiting_for_others(
    running: Federation, transport: FlowerTransport
) -> None:
    release = threading.Event()

    def slow(worker: str) -> Handle:
        def handle(unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
            assert release.wait(100.0)
            return make_update(unit, worker, payload), payload

        return handle

    stalled, quick = running.start_worker(slow).name, running.start_worker().name
    online(transport, 2)
    transport.send(stalled, make_unit("stalled", b"x"), b"x")
    for number in range(3):
        transport.send(quick, make_unit(f"quick-{number}", b"abc"), b"abc")
        assert payload_of(replies(transport, 1)[f"quick-{number}"]) == b"cba"
    release.set()
    assert payload_of(replies(transport, 1)["stalled"]) == b"x"


def test_a_payload_of_many_parts_and_an_empty_one_survive(running: Federation, transport: FlowerTransport) -> None:
    worker = running.start_worker().name
    online(transport, 1)
    large = os.urandom(3 * 2**20)
    transport.send(worker, make_unit("large", large), large)
    assert payload_of(replies(transport, 1)["large"]) == large[::-1]
    transport.send(worker, make_unit("empty", b""), b"")
    assert payload_of(replies(transport, 1)["empty"]) == b""


def test_an_error_of_the_trainer_is_a_reply_and_the_worker_stays(
    running: Federation, transport: FlowerTransport
) -> None:
    def moody(worker: str) -> Handle:
        def handle(unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
            if unit.unit_id == "bad":
                raise DataError("the shard has vanished")
            return make_update(unit, worker, payload), payload

        return handle

    worker = running.start_worker(moody)
    online(transport, 1)
    transport.send(worker.name, make_unit("bad", b""), b"")
    reply = replies(transport, 1)["bad"]
    assert "the shard has vanished" in reply.error and reply.worker == worker.name
    transport.send(worker.name, make_unit("good", b"1"), b"1")
    assert replies(transport, 1)["good"].error == ""
    assert any("the shard has vanished" in line for line in worker.log)


def test_a_payload_that_is_not_the_one_announced_is_not_worked_on(
    running: Federation, transport: FlowerTransport
) -> None:
    worker = running.start_worker().name
    online(transport, 1)
    transport.send(worker, make_unit("swapped", b"announced"), b"sent")
    assert "payload hash" in replies(transport, 1)["swapped"].error


def test_an_update_over_the_limit_is_refused_before_it_is_parsed(
    running: Federation, transport: FlowerTransport
) -> None:
    def inflating(worker: str) -> Handle:
        def handle(unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
            return make_update(unit, worker, result := os.urandom(6 * 2**20)), result

        return handle

    worker = running.start_worker(inflating).name
    online(transport, 1)
    transport.send(worker, make_unit("big", b""), b"")
    assert "max_update_mib" in replies(transport, 1)["big"].error


def test_a_unit_for_a_worker_that_is_not_there_waits_until_it_is(
    running: Federation, transport: FlowerTransport
) -> None:
    away = new_identity()
    transport.send(away.worker, make_unit("stale", b"-"), b"-")
    transport.send(away.worker, make_unit("early", b"12"), b"12")
    running.start_worker(identity=away)
    found = replies(transport, 1)
    assert set(found) == {"early"} and payload_of(found["early"]) == b"21"


def interrupted(worker: str) -> Handle:
    """A worker that is stopped in the middle of its unit."""

    def handle(unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
        raise KeyboardInterrupt

    return handle


def test_a_worker_that_leaves_is_missed_at_once_and_gets_its_unit_again_when_it_is_back(
    running: Federation, transport: FlowerTransport
) -> None:
    worker = running.start_worker(interrupted)
    online(transport, 1)
    transport.send(worker.name, make_unit("u", b"ab"), b"ab")
    online(transport, 0)
    assert transport.poll() == []
    running.start_worker(identity=worker.identity)
    assert payload_of(replies(transport, 1)["u"]) == b"ba"


def test_who_returns_after_the_deadline_is_asked_for_what_it_was_sent(
    running: Federation, transport: FlowerTransport
) -> None:
    worker = running.start_worker(interrupted)
    online(transport, 1)
    transport.send(worker.name, make_unit("u", b"late"), b"late")
    online(transport, 0)
    parcel = transport._parcels[worker.name]
    parcel.expires_at = time.monotonic()
    until(lambda: parcel.is_waiting, what="Flower's word that the node is gone")
    running.start_worker(identity=worker.identity)
    assert payload_of(replies(transport, 1)["u"]) == b"etal"


def test_what_was_done_already_is_not_done_again(running: Federation, transport: FlowerTransport) -> None:
    done: list[str] = []

    def counting(worker: str) -> Handle:
        def handle(unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
            done.append(unit.unit_id)
            return make_update(unit, worker, payload), payload

        return handle

    worker = running.start_worker(counting)
    online(transport, 1)
    for unit_id, nonce in (("u", "n1"), ("u", "n1"), ("u", "n2"), ("v", "n1")):
        transport.send(worker.name, make_unit(unit_id, b"x", nonce=nonce), b"x")
        assert Update.from_json(replies(transport, 1)[unit_id].update_json).nonce == nonce
    assert done == ["u", "u", "v"]


def test_half_a_unit_is_given_back_and_comes_again_whole(
    running: Federation, transport: FlowerTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link dies after it has taken a unit's head, and knows nothing of its parts."""
    monkeypatch.setattr("tinylora.flower.deliveries._PARTS_S", 0.3)
    push, cut_off = RuntimeHttpClient.PushObject, []

    def dying(client: RuntimeHttpClient, request: Any) -> Any:
        if not cut_off:
            cut_off.append(request)
            raise httpx.ReadError("cut off")
        return push(client, request)

    worker = running.start_worker()
    online(transport, 1)
    monkeypatch.setattr(RuntimeHttpClient, "PushObject", dying)
    transport.send(worker.name, make_unit("u", b"half"), b"half")
    assert payload_of(replies(transport, 1)["u"]) == b"flah" and cut_off


def test_what_may_be_lost_is_sent_again_and_answered_once(running: Federation, transport: FlowerTransport) -> None:
    begun, release = threading.Event(), threading.Event()

    def slow(worker: str) -> Handle:
        def handle(unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
            begun.set()
            assert release.wait(60.0)
            return make_update(unit, worker, payload), payload

        return handle

    worker = running.start_worker(slow)
    online(transport, 1)
    transport.send(worker.name, make_unit("u", b"1"), b"1")
    assert begun.wait(60.0)
    transport.doubt()
    release.set()
    assert set(replies(transport, 1)) == {"u"}
    transport.send(worker.name, make_unit("v", b"2"), b"2")
    assert set(replies(transport, 1)) == {"v"}


def test_the_end_of_the_run_ends_the_workers(running: Federation, transport: FlowerTransport) -> None:
    workers = [running.start_worker() for _ in range(2)]
    online(transport, 2)
    running.link.phase = "finished"
    until(lambda: all(worker.endings for worker in workers), what="the end of all workers")
    assert [worker.endings for worker in workers] == [["finished"], ["finished"]]
    until(lambda: running.link.online_workers() == [], what="nobody online")


def test_a_worker_that_is_busy_at_the_end_hears_of_it_with_its_heartbeat(
    running: Federation, transport: FlowerTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, release = threading.Event(), threading.Event()

    def slow(worker: str) -> Handle:
        def handle(unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
            begun.set()
            assert release.wait(60.0)
            return make_update(unit, worker, payload), payload

        return handle

    def no_answer(client: FleetHttpClient, request: Any) -> Any:
        raise httpx.ConnectError("nobody there")

    worker = running.start_worker(slow)
    online(transport, 1)
    transport.send(worker.name, make_unit("late", b""), b"")
    assert begun.wait(60.0)
    running.link.phase = "finished"
    assert worker.client._beat()
    monkeypatch.setattr(FleetHttpClient, "PushMessages", no_answer)  # the coordinator does not linger for ever
    release.set()
    until(lambda: bool(worker.endings), what="the worker's end")
    assert worker.endings == ["finished"]


def test_who_is_not_known_any_more_joins_again_by_itself(running: Federation, transport: FlowerTransport) -> None:
    """A clock that has jumped looks like that, and so does a coordinator that has lost its file."""
    rejoined: list[float] = []

    def rejoin() -> float:
        rejoined.append(0.0)
        return 0.0

    worker = running.start_worker(clock_offset_s=-7200.0, rejoin=rejoin)
    online(transport, 1)
    assert len(rejoined) == 1
    worker.client._signer.offset = timedelta(hours=-2)
    transport.send(worker.name, make_unit("u", b"12"), b"12")
    assert payload_of(replies(transport, 1)["u"]) == b"21" and len(rejoined) == 2
    worker.client._signer.offset = timedelta(hours=-2)
    assert worker.client._beat() and len(rejoined) <= 4


def test_who_is_not_let_in_again_is_refused(running: Federation) -> None:
    worker = running.start_worker(clock_offset_s=-7200.0, rejoin=lambda: -7200.0)
    until(lambda: bool(worker.endings), what="the refusal")
    assert isinstance(worker.endings[0], RefusedError)


def test_an_identity_works_once_at_a_time_and_again_after_it_left(
    running: Federation, transport: FlowerTransport
) -> None:
    first = running.start_worker()
    online(transport, 1)
    twin = running.start_worker(identity=first.identity)
    until(lambda: bool(twin.endings), what="the twin's end")
    assert isinstance(twin.endings[0], RefusedError) and "already running" in str(twin.endings[0])
    first.stop.set()
    until(lambda: bool(first.endings), what="the first one's end")
    again = running.start_worker(identity=first.identity)
    assert online(transport, 1) == [first.name] == [again.name]


def test_the_rounds_side_opens_a_new_session_when_flower_has_ended_the_old_one(
    running: Federation, transport: FlowerTransport
) -> None:
    begun, release, done = threading.Event(), threading.Event(), []

    def patient(worker: str) -> Handle:
        def handle(unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
            done.append(unit.unit_id)
            begun.set()
            assert unit.unit_id != "old" or release.wait(60.0)
            return make_update(unit, worker, payload), payload

        return handle

    worker = running.start_worker(patient)
    online(transport, 1)
    transport.send(worker.name, make_unit("old", b""), b"")
    assert begun.wait(60.0)
    for run in running.link.state.get_run_info():
        running.link.state.stop_run(run.run_id)
    release.set()  # the worker's answer meets a closed door; the unit comes again, and it has the answer at hand
    assert replies(transport, 1)["old"].error == ""
    transport.send(worker.name, make_unit("new", b"2"), b"2")
    assert payload_of(replies(transport, 1)["new"]) == b"2"
    assert done == ["old", "new"]


def test_a_session_is_hung_up_when_the_last_of_its_threads_has_its_answer(
    running: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, release = threading.Event(), threading.Event()
    held: list[RuntimeHttpClient] = []
    closed: list[RuntimeHttpClient] = []
    ask, hang_up = RuntimeHttpClient.GetNodes, RuntimeHttpClient.close

    def slow(client: RuntimeHttpClient, request: Any) -> Any:
        answer = ask(client, request)
        asked.set()
        assert release.wait(60.0)
        assert client not in closed
        held.append(client)
        return answer

    def record(client: RuntimeHttpClient) -> None:
        closed.append(client)
        hang_up(client)

    with running.wire() as wire:
        monkeypatch.setattr(RuntimeHttpClient, "GetNodes", slow)
        with ThreadPoolExecutor() as pool:
            stations = pool.submit(wire.stations)
            assert asked.wait(60.0)
            monkeypatch.setattr(RuntimeHttpClient, "close", record)
            for run in running.link.state.get_run_info():
                running.link.state.stop_run(run.run_id)
            with pytest.raises(SessionLost):
                wire.arrivals(["0" * 64])
            release.set()
            assert stations.result(60.0) == []
        assert held[0] in closed
        assert wire.stations() == []  # over another one


def test_a_second_link_over_the_same_file_knows_its_workers_and_forgets_old_units(tmp_path: Path) -> None:
    with federation(tmp_path) as first:
        worker = first.start_worker()
        with first.transport() as transport:
            online(transport, 1)
        identity = worker.identity
    with federation(tmp_path) as second, second.transport() as transport:
        runs = second.link.state.get_run_info()
        assert sorted(run.status.status for run in runs) == ["finished", "running"]
        second.start_worker(reversing, identity=identity, pace=QUICK)
        assert online(transport, 1) == [identity.worker]

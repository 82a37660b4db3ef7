"""The two ends over a real link: what is sent arrives, and what goes wrong is told to the loop."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flower.helpers import (
    QUICK,
    Federation,
    federation,
    make_unit,
    make_update,
    replies,
    reversing,
    until,
)
from tinylora.errors import DataError, RefusedError
from tinylora.flower.grid import FlowerTransport
from tinylora.flower.messages import Handle
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
        assert (reply.worker, reply.error, reply.payload) == (worker, "", payload[::-1])
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
        assert replies(transport, 1)[f"quick-{number}"].payload == b"cba"
    release.set()
    assert replies(transport, 1)["stalled"].payload == b"x"


def test_a_payload_of_many_parts_and_an_empty_one_survive(running: Federation, transport: FlowerTransport) -> None:
    worker = running.start_worker().name
    online(transport, 1)
    large = os.urandom(3 * 2**20)
    transport.send(worker, make_unit("large", large), large)
    assert replies(transport, 1)["large"].payload == large[::-1]
    transport.send(worker, make_unit("empty", b""), b"")
    assert replies(transport, 1)["empty"].payload == b""


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


def test_a_unit_for_a_worker_that_is_not_there_comes_back_as_an_error(transport: FlowerTransport) -> None:
    transport.send("w-nobody", make_unit("u", b""), b"")
    assert replies(transport, 1)["u"].error == "the worker is not connected"


def test_a_worker_that_leaves_is_missed_at_once_and_its_unit_comes_back(
    running: Federation, transport: FlowerTransport
) -> None:
    leaving = threading.Event()

    def interrupted(worker: str) -> Handle:
        def handle(unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
            raise KeyboardInterrupt if leaving.is_set() else AssertionError

        return handle

    worker = running.start_worker(interrupted)
    online(transport, 1)
    leaving.set()
    transport.send(worker.name, make_unit("u", b""), b"")
    reply = replies(transport, 1)["u"]
    assert reply.worker == worker.name and "Flower code 5" in reply.error
    online(transport, 0)


def test_the_end_of_the_run_ends_the_workers(running: Federation, transport: FlowerTransport) -> None:
    workers = [running.start_worker() for _ in range(2)]
    online(transport, 2)
    running.link.phase = "finished"
    until(lambda: all(worker.endings for worker in workers), what="the end of all workers")
    assert [worker.endings for worker in workers] == [["finished"], ["finished"]]
    until(lambda: running.link.online_workers() == [], what="nobody online")


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
    begun, release = threading.Event(), threading.Event()

    def patient(worker: str) -> Handle:
        def handle(unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
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
    assert "session was lost" in replies(transport, 1)["old"].error
    transport.send(worker.name, make_unit("new", b"2"), b"2")
    release.set()
    assert replies(transport, 1)["new"].payload == b"2"


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

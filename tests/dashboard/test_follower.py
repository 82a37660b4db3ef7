"""The views of a ledger that is being written, missing, exchanged, or in trouble."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from tinylora_coordinator.dashboard import follower as follower_module
from tinylora_coordinator.dashboard.follower import Follower
from tinylora_coordinator.dashboard.gate_blobs import read_gates
from tinylora_coordinator.dashboard.views import RunViews
from tinylora_coordinator.operator_store import OperatorStore

from tests.dashboard.runs import rows_of
from tests.federation.events import STARTED
from tinylora.errors import StorageError
from tinylora.federation.events import Event, GatesSolved, WorkerJoined, WorkerLost
from tinylora.ledger.sqlite import SqliteLedger
from tinylora.routing.gates import Gate, Gates

JOINED = [WorkerJoined(worker=f"w{n}", name=f"name {n}", at_s=float(n)) for n in range(1200)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[OperatorStore]:
    with OperatorStore(tmp_path) as store:
        yield store


@pytest.fixture
def shown(tmp_path: Path) -> Iterator[RunViews]:
    views = RunViews(tmp_path / "views.sqlite", run="test")
    yield views
    views.close()


def following(root: Path, views: RunViews, store: OperatorStore) -> Follower:
    return Follower(root, views, store, lambda: "running")


def write(root: Path, events: Sequence[Event]) -> None:
    with SqliteLedger(root) as ledger:
        ledger.append(events, 1.0)


def test_it_reads_what_is_there_in_batches_and_what_comes(
    tmp_path: Path, shown: RunViews, store: OperatorStore
) -> None:
    follower = following(tmp_path, shown, store)
    assert not follower.look()
    write(tmp_path, [STARTED, *JOINED[:800]])
    assert follower.look()
    assert shown.n_events == 500
    assert not follower.look()
    assert shown.n_events == 801
    with SqliteLedger(tmp_path) as ledger:
        assert not follower.look()
        ledger.append([JOINED[800]], 2.0)
        assert not follower.look()
        assert (shown.n_events, shown.chain) == ledger.head()
    assert len(shown.state().workers) == 801
    follower.stop()


def test_it_goes_on_where_it_was(tmp_path: Path, shown: RunViews, store: OperatorStore) -> None:
    write(tmp_path, [STARTED, *JOINED[:9]])
    first = following(tmp_path, shown, store)
    first.look()
    first.stop()
    position = shown.state().position
    write(tmp_path, [WorkerLost(worker="w1", at_s=20.0)])
    second = following(tmp_path, shown, store)
    second.look()
    patch = shown.patch(position)
    assert patch is not None
    assert [worker.state for worker in patch.workers] == ["lost"]
    second.stop()


@pytest.mark.parametrize("other", [[STARTED], [STARTED, *JOINED[5:30]]], ids=["shorter", "longer"])
def test_another_log_is_read_from_its_start(
    tmp_path: Path, shown: RunViews, store: OperatorStore, other: list[Event]
) -> None:
    write(tmp_path, [STARTED, *JOINED[:9]])
    first = following(tmp_path, shown, store)
    first.look()
    first.stop()
    position = shown.position
    for file in tmp_path.glob("ledger.sqlite*"):
        file.unlink()
    write(tmp_path, other)
    second = following(tmp_path, shown, store)
    second.look()
    assert shown.n_events == len(other)
    assert shown.patch(position) is None
    assert len(shown.state().workers) == len(other) - 1
    second.stop()


def test_a_ledger_that_cannot_be_read_is_read_later(tmp_path: Path, shown: RunViews, store: OperatorStore) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"not yet a database, but something is there")
    follower = following(tmp_path, shown, store)
    with pytest.raises(StorageError):
        follower.look()
    (tmp_path / "ledger.sqlite").unlink()
    write(tmp_path, [STARTED])
    assert not follower.look()
    assert shown.n_events == 1
    follower.stop()


def test_the_thread_wakes_readers_within_its_time(tmp_path: Path, shown: RunViews, store: OperatorStore) -> None:
    woken = threading.Event()
    store.create_token("pin", now_s=0.0)
    follower = following(tmp_path, shown, store)
    with SqliteLedger(tmp_path) as ledger:
        ledger.append([STARTED], 0.0)
        follower.start()
        shown.subscribe(lambda: woken.set() if shown.n_events == 2 else None)
        ledger.append([JOINED[0]], 1.0)
        assert woken.wait(10.0)
    follower.stop()
    assert shown.state().run.phase == "waiting"


def test_a_whole_run_through_a_ledger_is_as_told_directly(
    tmp_path: Path, shown: RunViews, store: OperatorStore
) -> None:
    told = RunViews(None, run="test", clock=lambda: 0.0)
    rows = [row for row in rows_of("leaves") if row[2].type in ("run_started", "worker_joined", "topology_set")]
    rows = [(number, 1.0, event) for number, (_, _, event) in enumerate(rows, 1)]
    told.take(rows)
    write(tmp_path, [event for _, _, event in rows])
    follower = following(tmp_path, shown, store)
    follower.look()
    follower.stop()
    ours, theirs = shown.state(), told.state()
    assert (ours.nodes, ours.workers, ours.feed) == (theirs.nodes, theirs.workers, theirs.feed)
    told.close()


def test_how_sharp_the_gates_are_is_read_once_a_version(
    tmp_path: Path, shown: RunViews, store: OperatorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = list[int]()
    monkeypatch.setattr(
        follower_module, "read_gates", lambda ledger, version: (read.append(version), read_gates(ledger, version))[1]
    )
    rows = [row[2] for row in rows_of("leaves") if row[2].type in ("run_started", "worker_joined", "topology_set")]
    follower = following(tmp_path, shown, store)
    for version, tau in ((1, 0.35), (2, 0.5)):
        gates = Gates({node: Gate(np.ones(3), 0.0, tau) for node in ("", "0", "1")}, 3)
        with SqliteLedger(tmp_path) as ledger:
            blob = ledger.put_blob(safetensors.numpy.save(gates.to_arrays()))
            ledger.append([*rows, GatesSolved(version=version, contributors=("w",), drift=1.0, blob=blob)], 1.0)
        rows = [WorkerLost(worker="w1", at_s=9.0)]
        position = shown.position
        follower.look()
        assert {gate.tau for gate in shown.routing().gates} == {tau}
        assert shown.position != position
        detail = shown.node("01")
        assert detail is not None
        assert [step.tau for step in detail.way] == [tau, tau, None]
        write(tmp_path, [WorkerLost(worker="w2", at_s=9.0)])
        follower.look()
    assert read == [1, 2]
    follower.stop()


def test_gates_that_cannot_be_read_are_shown_without_their_sharpness(
    tmp_path: Path, shown: RunViews, store: OperatorStore
) -> None:
    rows = [row[2] for row in rows_of("leaves") if row[2].type in ("run_started", "worker_joined", "topology_set")]
    with SqliteLedger(tmp_path) as ledger:
        blob = ledger.put_blob(b"no gates")
        ledger.append([*rows, GatesSolved(version=1, contributors=("w",), drift=1.0, blob=blob)], 1.0)
    follower = following(tmp_path, shown, store)
    follower.look()
    assert {gate.tau for gate in shown.routing().gates} == {None}
    assert shown.state().run.router_version == 1
    follower.stop()

"""A coordinator that means ill: it ships code, wraps it into units, and names files that are not its own."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from tests.flower.helpers import Federation, federation, make_unit, payload_of, replies, until
from tinylora.flower import grid
from tinylora.flower.fleet import FleetHttpClient
from tinylora.flower.messages import unit_record
from tinylora.flower.outbox import FolderOutbox
from tinylora.flower.transport import FlowerTransport
from tinylora.protocol.documents import WorkUnit

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of alembic and pathspec, about flwr's use
EVIL = "tinylora_evil_app"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with federation(tmp_path_factory.mktemp("link")) as found:
        yield found


@pytest.fixture
def running(served: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Federation]:
    """Flower's home, in which apps would be installed, is an empty one."""
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flower"))
    yield served
    served.stop_workers()


def everything_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")} if folder.exists() else set()


def test_an_app_that_the_run_ships_is_never_fetched_unpacked_or_imported(
    running: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker, asked = tmp_path / "run by the worker", []
    code = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n".encode()
    evil = {
        f"{EVIL}.py": code,
        "sitecustomize.py": code,
        "pyproject.toml": grid._STUB_APP["pyproject.toml"].replace(b"stub:", f"{EVIL}:".encode()),
    }
    monkeypatch.setattr(grid, "_STUB_APP", evil)
    unary = FleetHttpClient._unary_unary

    def noting(client: FleetHttpClient, **options: Any) -> Any:
        asked.append(options["path"])
        return unary(client, **options)

    monkeypatch.setattr(FleetHttpClient, "_unary_unary", noting)
    with running.transport() as transport:
        worker = running.start_worker(outbox=FolderOutbox(tmp_path / "home"))
        for number in range(2):
            until(lambda: len(transport.workers()) == 1, what="the worker online")
            transport.send(worker.name, make_unit(f"u{number}", b"ab"), b"ab")
            assert payload_of(replies(transport, 1)[f"u{number}"]) == b"ba"
    assert not marker.exists() and EVIL not in sys.modules and not worker.endings
    assert not [path for path in asked if "fab" in path or "get-run" in path], "it did not even ask"
    assert not everything_below(tmp_path / "flower") & {"apps", f"apps/{EVIL}"}


def fab_beside(unit: WorkUnit, payload: bytes) -> RecordDict:
    """A unit with an app beside it."""
    record = unit_record(unit, payload)
    record["fab"] = ConfigRecord({"hash": "a" * 64, "content": b"PK\x03\x04 evil"})
    return record


def pickled(unit: WorkUnit, payload: bytes) -> RecordDict:
    """A payload of Flower's usual kind, which numpy would read with a pickle in it."""
    record = unit_record(unit, payload)
    blob = Array(dtype="object", shape=(1,), stype="numpy.ndarray", data=b"\x80\x04cos\nsystem\n")
    record["arrays"] = ArrayRecord({"payload": blob})
    return record


def file_named(unit: WorkUnit, payload: bytes) -> RecordDict:
    """A payload under a name that leads elsewhere."""
    record = unit_record(unit, payload)
    blob = Array(dtype="uint8", shape=(len(payload),), stype="safetensors", data=payload)
    record["arrays"] = ArrayRecord({"../../../identity.pem": blob})
    return record


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (fab_beside, "expected document and arrays, got arrays, document, fab"),
        (pickled, "expected uint8 safetensors"),
        (file_named, "expected payload, got"),
    ],
)
def test_what_comes_beside_or_instead_of_a_unit_is_refused_and_the_worker_stays(
    running: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Any, reason: str
) -> None:
    outbox = FolderOutbox(tmp_path / "home")
    with running.transport() as transport:
        worker = running.start_worker(outbox=outbox)
        until(lambda: len(transport.workers()) == 1, what="the worker online")
        with monkeypatch.context() as patch:
            patch.setattr("tinylora.flower.transport.unit_record", made)
            transport.send(worker.name, make_unit("evil", b"ab"), b"ab")
            assert reason in replies(transport, 1)["evil"].error
        assert_still_at_work(transport, worker.name)
    assert not worker.endings and [kept.unit.unit_id for kept in outbox.kept()] == ["good"]


@pytest.mark.parametrize("name", ["../../evil", "C:\\evil", "u\x00"])
def test_a_unit_whose_id_leads_elsewhere_is_refused_and_writes_nothing(
    running: Federation, tmp_path: Path, name: str
) -> None:
    home = tmp_path / "home"
    outbox = FolderOutbox(home)
    before = everything_below(home)
    with running.transport() as transport:
        worker = running.start_worker(outbox=outbox)
        until(lambda: len(transport.workers()) == 1, what="the worker online")
        transport.send(worker.name, make_unit("u", b"ab").model_copy(update={"unit_id": name}), b"ab")
        assert "field unit_id" in replies(transport, 1)[name].error
        assert everything_below(home) == before and not (tmp_path / "evil").exists()
        assert_still_at_work(transport, worker.name)


def assert_still_at_work(transport: FlowerTransport, worker: str) -> None:
    transport.send(worker, make_unit("good", b"ab"), b"ab")
    assert payload_of(replies(transport, 1)["good"]) == b"ba"

"""A coordinator that is stopped by a signal and started again, while one worker trains a real, tiny base all along."""

import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from tinylora_coordinator.folder import RunFolder, changed, write_run
from tinylora_coordinator.keys import pin_of
from tinylora_coordinator.operator_store import OperatorStore
from tinylora_coordinator.overview import overview, past_events
from tinylora_coordinator.service import bundle
from tinylora_coordinator.supervisor import serve
from tinylora_worker.agent.agent import Agent
from tinylora_worker.agent.options import Options

from tests.flower.helpers import QUICK, until
from tests.helpers import WINDOW_TOKENS, tiny_base_dir, tiny_base_model
from tinylora.bundle import read_bundle, verify
from tinylora.federation.events import BundlePublished, RunFinished, UpdateAccepted, WorkerJoined
from tinylora.ledger.sqlite import SqliteLedger

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of alembic and pathspec, about flwr's use

SETTINGS = {
    "name": "two lives", "depth": 1, "rank": 2, "leaf_steps": 20, "unit_steps": 5, "batch_windows": 1,
    "warmup_steps": 1, "window_tokens": WINDOW_TOKENS, "min_sequences": 1, "router_period": 2,
}  # fmt: skip


def write_texts(folder: Path) -> Path:
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.txt").write_text(f"text {number}: " + " ".join(f"word{i * number}" for i in range(60)))
    return folder


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def trained(root: Path) -> list[UpdateAccepted]:
    return [event for event in past_events(root) if isinstance(event, UpdateAccepted) and event.kind == "train"]


def test_a_run_survives_its_coordinator_and_ends_with_a_bundle(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root, data, port = tmp_path / "run", write_texts(tmp_path / "data"), free_port()
    write_run(RunFolder(root), changed(dict(SETTINGS)), tiny_base_model().facts, None)
    log: list[str] = []
    said: list[str] = []
    with OperatorStore(root) as store:
        token = store.create_token(pin_of(RunFolder(root).keys), now_s=time.time()).text
    options = Options(f"127.0.0.1:{port}", token, str(tiny_base_dir()), (str(data),), tmp_path / "home", name="mine")
    endings: list[str] = []

    def volunteer() -> None:
        until(lambda: is_open(port), what="the open port")
        endings.append(Agent(options, pace=QUICK, show=log.append).work())

    def interrupt() -> None:
        until(lambda: is_open(port), what="the open port")  # the handler is in place before the port
        until(lambda: bool(trained(root)), what="the first update")
        os.kill(os.getpid(), signal.SIGTERM)

    worker, interrupter = threading.Thread(target=volunteer), threading.Thread(target=interrupt)
    worker.start()
    interrupter.start()
    serve(root, host="127.0.0.1", port=port, log=said.append)
    interrupter.join()
    n_before = len(past_events(root))
    assert "takes the run up again" in said[-1] and not endings
    assert 0 < len(trained(root)) < 4 and overview(root)["phase"] == "training"

    serve(root, host="127.0.0.1", port=port, log=said.append)
    worker.join(60.0)
    assert endings == ["finished"]
    assert f"taking the run up after {n_before} events" in capfd.readouterr().err

    events, found = past_events(root), overview(root)
    finished, published = events[-2:]
    assert isinstance(finished, RunFinished) and isinstance(published, BundlePublished)
    assert len([event for event in events if isinstance(event, WorkerJoined)]) == 1
    assert len({event.base_loads for event in trained(root)}) == 1  # loaded once, although it outlived a coordinator
    assert sum(event.n_steps for event in trained(root)) == SETTINGS["leaf_steps"]
    tokens = found["workers"][0]["tokens"]
    assert log[-2] == f"run two lives: 5 accepted updates, 4 of them trained, {tokens} tokens"
    assert found["steps"] == {"": 20} and found["workers"][0]["name"] == "mine"
    made = read_bundle(RunFolder(root).bundle_file)
    assert verify(RunFolder(root).bundle_file) and (made.run, len(made.nodes)) == ("two-lives", 2)
    again = bundle(root, tmp_path / "again.safetensors")
    assert (again.sha256, again.bytes) == (published.sha256, RunFolder(root).bundle_file.stat().st_size)
    assert (published.n_events, again.n_events) == (len(events) - 1, len(events))
    with SqliteLedger.open_readonly(root) as ledger:
        assert ledger.chain_at(published.n_events) == published.log_sha256
    serve(root, host="127.0.0.1", port=port, log=said.append)
    assert past_events(root) == events  # published and named once, however often it is served
    assert (tmp_path / "again.safetensors").read_bytes() == RunFolder(root).bundle_file.read_bytes()

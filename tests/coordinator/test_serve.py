"""Real processes: a coordinator that is stopped and started again, and a worker that trains a real, tiny base."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tinylora_coordinator.folder import RunFolder, changed, read_run, write_run
from tinylora_coordinator.overview import overview, past_events
from tinylora_coordinator.service import bundle

from tests.flower.helpers import until
from tests.helpers import WINDOW_TOKENS, tiny_base_dir, tiny_base_model
from tinylora.bundle import read_bundle, verify
from tinylora.federation.events import RunFinished, UpdateAccepted, WorkerJoined

SETTINGS = {
    "name": "two lives", "depth": 1, "rank": 2, "leaf_steps": 20, "unit_steps": 5, "batch_windows": 1,
    "warmup_steps": 1, "window_tokens": WINDOW_TOKENS, "min_sequences": 1, "router_period": 2,
}  # fmt: skip


@contextmanager
def process(module: str, *words: object) -> Iterator[subprocess.Popen[str]]:
    """A child that is never left behind."""
    command = [sys.executable, "-m", module, *(str(word) for word in words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def end_of(child: subprocess.Popen[str], *, timeout_s: float = 200.0) -> tuple[int, str]:
    """Exit code and stderr."""
    _, error = child.communicate(timeout=timeout_s)
    return child.returncode, error


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


@pytest.mark.timeout(300)  # three processes that load torch, one after the other, on a machine that may be busy
def test_a_run_survives_its_coordinator_and_ends_with_a_bundle(tmp_path: Path) -> None:
    root, data, port = tmp_path / "run", write_texts(tmp_path / "data"), free_port()
    write_run(RunFolder(root), changed(dict(SETTINGS)), tiny_base_model().facts, None)
    token = read_run(RunFolder(root)).token
    serve = ("tinylora_coordinator", "serve", root, "--port", port)
    join = ("tinylora_worker", "join", f"127.0.0.1:{port}", "--token", token, "--base", tiny_base_dir())

    with process(*serve) as first:
        until(lambda: is_open(port) or first.poll() is not None, what="the open port")
        with process(*join, "--data", data, "--home", tmp_path / "home", "--name", "mine", "--threads", 1) as worker:
            until(lambda: bool(trained(root)) or worker.poll() is not None, what="the first update", timeout_s=200.0)
            first.send_signal(signal.SIGTERM)
            code, error = end_of(first)
            assert code == 0 and "takes the run up again" in error, error
            n_before = len(past_events(root))
            assert 0 < len(trained(root)) < 4 and overview(root)["phase"] == "training"

            with process(*serve) as second:
                code, error = end_of(second)
                assert code == 0 and f"taking the run up after {n_before} events" in error, error
            code, error = end_of(worker)
            assert code == 0 and "the run is finished" in error, error

    events = past_events(root)
    assert isinstance(events[-1], RunFinished)
    assert len([event for event in events if isinstance(event, WorkerJoined)]) == 1
    assert {event.base_loads for event in trained(root)} == {1}
    assert sum(event.n_steps for event in trained(root)) == SETTINGS["leaf_steps"]
    found = overview(root)
    assert found["steps"] == {"": 20} and found["workers"][0]["name"] == "mine"
    made = read_bundle(RunFolder(root).bundle_file)
    assert verify(RunFolder(root).bundle_file) and (made.run, len(made.nodes)) == ("two-lives", 2)
    bundle(root, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == RunFolder(root).bundle_file.read_bytes()

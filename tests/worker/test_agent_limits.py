"""The agent keeps its owner's limits whatever fails beside; no coordinator and no trainer are needed."""

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tinylora_worker.agent.agent import Agent
from tinylora_worker.agent.loading import load_request
from tinylora_worker.agent.lookout import Lookout
from tinylora_worker.agent.options import Options
from tinylora_worker.limits import FILE, Limits, set_from_text
from tinylora_worker.machine import Machine
from tinylora_worker.trainer.loading import strictest_limit
from tinylora_worker.wire.worker_pb2 import LoadRequest

from tests.flower.helpers import FACTS
from tinylora.errors import StorageError
from tinylora.flower.enrolment import StateAnswer
from tinylora.flower.membership import Membership, save_membership
from tinylora.protocol.standstill import Reason


class Sensors:
    """Tell what they are told to, and remember for which limits."""

    def __init__(self) -> None:
        self.answer: Machine | Exception = Machine(0.0)
        self.asked: list[Limits] = []
        self.n_inside, self.most_inside = 0, 0

    def read(self, limits: Limits, **_: Any) -> Machine:
        self.n_inside += 1
        self.most_inside = max(self.most_inside, self.n_inside)
        self.asked.append(limits)
        threading.Event().wait(0.005)  # time for another to come in, were it let
        self.n_inside -= 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def close(self) -> None:
        """Nothing to close."""


class Worker:
    """An agent that is prepared, and ticks when it is told to."""

    def __init__(self, home: Path, **said: Any) -> None:
        save_membership(home, Membership(url="http://127.0.0.1:1", run="r", run_key="0" * 64))
        self.home, self.sensors, self.lines = home, Sensors(), list[str]()
        options = Options(url="", token="", base="b", data=("d",), home=home, **said)
        self.agent = Agent(options, show=self.lines.append, sensors=self.sensors)
        self.agent.prepare()

    def tick(self) -> str:
        """The reason of now."""
        assert self.agent._tick()
        return self.agent.status().reason

    def close(self) -> None:
        assert self.agent._life is not None
        self.agent._life.close()


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    found = Worker(tmp_path)
    yield found
    found.close()


@pytest.mark.parametrize("error", [StorageError("a sensor"), ZeroDivisionError("a bug"), OSError("a driver")])
def test_sensors_that_fail_leave_the_other_limits_in_force(worker: Worker, error: Exception) -> None:
    worker.sensors.answer = error
    assert worker.tick() != Reason.DATA_CAP
    set_from_text(worker.home, "data_cap=10B/month")
    worker.agent._machine = Machine(0.0, month_bytes=11)
    assert worker.tick() == worker.tick() == Reason.DATA_CAP
    assert len([line for line in worker.lines if str(error) in line]) == 1  # once, not every second
    worker.sensors.answer = Machine(1.0)
    assert worker.tick() != Reason.DATA_CAP


def test_a_broken_limits_file_is_told_once_and_changes_nothing(worker: Worker) -> None:
    set_from_text(worker.home, "on_battery=true")
    worker.sensors.answer = Machine(0.0, is_on_battery=True)
    assert worker.tick() != Reason.BATTERY
    (worker.home / FILE).write_text("on_battery = ")
    assert worker.tick() != Reason.BATTERY and worker.tick() != Reason.BATTERY
    assert len([line for line in worker.lines if "still holds" in line]) == 1
    (worker.home / FILE).write_text("on_battery = false")
    assert worker.tick() == Reason.BATTERY


def test_a_pause_that_is_over_is_over_on_a_full_disk(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    worker.agent.pause(worker.agent._wall() + 0.001)
    threading.Event().wait(0.01)

    def full(**_: object) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(worker.agent._store, "change", full)
    assert worker.tick() != Reason.USER_PAUSED


def test_at_the_traffic_cap_the_coordinator_is_asked_no_more(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ask(_door: object) -> StateAnswer:
        asked.append("asked")
        return StateAnswer(run="r", phase="running", protocol=1)

    monkeypatch.setattr(type(worker.agent._door), "ask_state", ask)
    lookout = worker.agent._lookout = Lookout(worker.agent._ask_state, lambda: None)
    set_from_text(worker.home, "data_cap=10B/month")
    for month_bytes, n_asked in ((0, 1), (11, 1), (0, 2)):
        worker.sensors.answer = Machine(0.0, month_bytes=month_bytes)
        worker.tick()
        lookout._asked_at_s = 0.0  # long ago
        assert lookout.phase() == "running" and len(asked) == n_asked


def test_the_command_line_and_the_clock_do_not_look_at_once(worker: Worker) -> None:
    threads = [threading.Thread(target=worker.agent.reload_limits) for _ in range(4)]
    for thread in threads:
        thread.start()
    worker.tick()
    for thread in threads:
        thread.join()
    assert worker.sensors.most_inside == 1 and len(worker.sensors.asked) == 5


def test_the_device_that_was_said_is_watched(tmp_path: Path) -> None:
    worker = Worker(tmp_path, device="cuda:1")
    worker.tick()
    worker.close()
    assert worker.sensors.asked[-1].cuda_device == "1"


@pytest.mark.parametrize(
    ("said", "limits", "device", "limit_bytes", "share"),
    [
        ({}, Limits(), "", 0, 0.0),
        ({}, Limits(gpu="1"), "cuda", 0, 0.0),
        ({"device": "cuda:1"}, Limits(gpu="cuda:1"), "cuda", 0, 0.0),  # its environment shows that one alone
        ({"device": "cuda:1"}, Limits(), "cuda:1", 0, 0.0),
        ({"device": "cpu"}, Limits(gpu="1"), "cpu", 0, 0.0),
        ({"vram_limit_bytes": 5}, Limits(vram="80%"), "", 5, 0.8),
        ({"vram_limit_bytes": 5}, Limits(vram="1kB"), "", 5, 0.0),
        ({"vram_limit_bytes": 5000}, Limits(vram="1kB"), "", 1000, 0.0),
    ],
)
def test_what_a_trainer_is_told_of_limits(
    tmp_path: Path, said: dict[str, Any], limits: Limits, device: str, limit_bytes: int, share: float
) -> None:
    options = Options(url="", token="", base="b", data=("d",), home=tmp_path, **said)
    request = load_request(options, limits, _welcome(), "w", 0)
    assert (request.device, request.vram_limit_bytes, request.vram_share) == (device, limit_bytes, share)
    if share:  # where the memory is known, it is an amount
        known = load_request(options, limits, _welcome(), "w", 5)
        assert (known.vram_limit_bytes, known.vram_share) == (4, 0.0)


@pytest.mark.parametrize(
    ("limit_bytes", "share", "total_bytes", "expected"),
    [(0, 0.0, 100, 0), (70, 0.0, 100, 70), (0, 0.8, 100, 80), (70, 0.8, 100, 70), (90, 0.8, 100, 80), (0, 0.8, 0, 0)],
)
def test_the_stricter_limit_of_a_trainer_holds(limit_bytes: int, share: float, total_bytes: int, expected: int) -> None:
    request = LoadRequest(vram_limit_bytes=limit_bytes, vram_share=share)
    assert strictest_limit(request, total_bytes) == expected


def _welcome() -> Any:
    """As much of one as is asked for."""
    return SimpleNamespace(answer=SimpleNamespace(base=FACTS))

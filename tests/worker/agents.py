"""Agents with trainers that only count, in threads of the test or in processes of their own."""

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from tinylora_worker.agent.agent import Agent
from tinylora_worker.agent.options import Options
from tinylora_worker.limits import Limits
from tinylora_worker.trainer.process import TrainerDied
from tinylora_worker.wire.worker_pb2 import Fit, Loaded, LoadRequest, RunEvent

from tests.flower.helpers import until
from tests.worker.agent_process import QUICK, ROOT, Calm, behave, make_fake, options
from tests.worker.fake_trainer import STEPS, FakeSession

PROMPT: dict[str, Any] = {"tick_s": 0.1, "receipts_s": 0.2, "backoff_s": (0.1,)}
__all__ = ["Calm", "behave", "make_fake", "options"]


class InThisProcess:
    """A fake trainer without a process of its own, where how a process ends is not the matter."""

    def __init__(self, home: Path, limits: Limits, say: Callable[[str], None]) -> None:
        self._session, self._is_stopped, self.pid = FakeSession(home, crash=_die), False, 0

    def start(self) -> None:
        """It is there."""

    def load(self, request: LoadRequest) -> Loaded:
        """What the fake says it has loaded."""
        return self._session.load(request, lambda event: None).loaded

    def size(self, settings_json: str) -> Fit:
        """Everything fits."""
        return Fit(micro_windows=1)

    def run(self, folder: Path) -> Iterator[RunEvent]:
        """Do a unit; it ends between two steps when it is stopped."""
        for event in self._session.steps(folder):
            yield event
            if self._is_stopped:
                self._session.write_down()
                raise TrainerDied("it was stopped")

    def stop(self) -> bool:
        """It is gone at the end of this step."""
        self._is_stopped = True
        return True

    def kill(self) -> None:
        """The same."""
        self._is_stopped = True


def _die() -> None:
    raise TrainerDied("it crashed")


def steps_of(home: Path) -> dict[str, list[int]]:
    """Steps that were done, by unit, in order; a step that was done twice is there twice."""
    found: dict[str, list[int]] = {}
    file = home / STEPS
    for line in file.read_text().splitlines() if file.exists() else ():
        unit_id, step, _ = line.split()
        found.setdefault(unit_id, []).append(int(step))
    return found


def lives(pid: int) -> bool:
    """Whether this process is there and not merely waited for."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def trainers_of(home: Path) -> list[int]:
    """Processes that worked for this home and still live; this one does not count."""
    file = home / STEPS
    pids = {int(line.split()[2]) for line in file.read_text().splitlines()} if file.exists() else set()
    return [pid for pid in pids - {os.getpid()} if lives(pid)]


@dataclass
class Running:
    """An agent in a thread."""

    agent: Agent
    lines: list[str]
    endings: list[object] = field(default_factory=list)
    thread: threading.Thread = field(default_factory=threading.Thread)

    def finish(self, timeout_s: float = 60.0) -> object:
        """Wait for its end; what `work` returned or raised."""
        self.thread.join(timeout_s)
        assert self.endings, f"the agent did not end within {timeout_s} s; it said {self.lines}"
        return self.endings[0]


@contextmanager
def running(asked: Options, **how: Any) -> Iterator[Running]:
    """An agent at work; it leaves at the end of the context."""
    lines: list[str] = []
    defaults = {"show": lines.append, "make_trainer": InThisProcess, "sensors": Calm(), "pace": QUICK} | PROMPT
    made = Running(Agent(asked, **(defaults | how)), lines)
    made.agent.prepare()

    def work() -> None:
        try:
            made.endings.append(made.agent.work())
        except BaseException as error:
            made.endings.append(error)

    made.thread = threading.Thread(target=work, daemon=True)
    made.thread.start()
    try:
        yield made
    finally:
        if made.thread.is_alive():
            made.agent.leave()
            made.finish()


def start_process(home: Path, url: str = "", token: str = "") -> "subprocess.Popen[bytes]":
    """An agent in a process of its own; what it says goes to HOME/said."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "said").open("ab") as said:
        command = [sys.executable, "-m", "tests.worker.agent_process", url, token, str(home)]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=said, cwd=ROOT)


def assert_nothing_is_left(home: Path, pid: int = 0) -> None:
    """No process of an agent that has ended, or that is paused, whatever did it; `pid` is its own."""
    until(lambda: not trainers_of(home), timeout_s=10.0, what="the end of all trainers")
    assert not (pid and lives(pid))


def repeated(steps: dict[str, list[int]]) -> Counter[str]:
    """By unit, how many steps were done more than once."""
    return Counter({unit: len(done) - len(set(done)) for unit, done in steps.items()})

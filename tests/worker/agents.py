"""Agents with trainers that only count (`fake_trainer.py`), in threads of the test or in processes of their own.

python -m tests.worker.agents URL TOKEN HOME    an agent in this process; without URL and TOKEN it comes back
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from tinylora_worker.agent.agent import Agent
from tinylora_worker.agent.options import Options
from tinylora_worker.limits import Limits
from tinylora_worker.machine import Machine
from tinylora_worker.trainer.process import TrainerProcess

from tests.federation.facts import FACTS
from tests.flower.helpers import QUICK, until
from tests.worker.fake_trainer import FAKE, STEPS
from tinylora.config import BaseFacts

FAKE_TRAINER = Path(__file__).with_name("fake_trainer.py")
ROOT = Path(__file__).parents[2]
PROMPT: dict[str, Any] = {"tick_s": 0.1, "receipts_s": 0.2, "backoff_s": (0.1,)}


class Calm:
    """Sensors of a machine on which nothing happens, unless told: `machine` is what they tell."""

    def __init__(self, **facts: Any) -> None:
        self.facts = facts

    def read(self, limits: Limits, **_: Any) -> Machine:
        """One look."""
        return Machine(**{"at_s": time.monotonic(), **self.facts})

    def close(self) -> None:
        """Nothing to close."""


def make_fake(home: Path, limits: Limits, say: Callable[[str], None]) -> TrainerProcess:
    """A trainer without torch; it finds the tests beside the packages."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = dict(os.environ) | {"PYTHONPATH": path}
    return TrainerProcess(
        home, say, command=(str(FAKE_TRAINER),), checkpoint_every_s=0.1, environment=environment
    )  # fmt: skip


def behave(home: Path, **how: Any) -> None:
    """Tell the fake trainer of this home how to behave, from its next step on."""
    home.mkdir(parents=True, exist_ok=True)
    fresh = home / f"{FAKE}.new"
    fresh.write_text(json.dumps(how))
    fresh.replace(home / FAKE)


def options(url: str, token: str, home: Path, *, facts: BaseFacts = FACTS, **changes: Any) -> Options:
    """What a volunteer of these tests says; the base is a file of facts."""
    home.mkdir(parents=True, exist_ok=True)
    base = home / "base.json"
    if not base.exists():
        base.write_text(facts.model_dump_json())
    return Options(url=url, token=token, base=str(base), data=("fake",), home=home, **changes)


def steps_of(home: Path) -> dict[str, list[int]]:
    """Steps that were done, by unit, in order; a step that was done twice is there twice."""
    found: dict[str, list[int]] = {}
    file = home / STEPS
    for line in file.read_text().splitlines() if file.exists() else ():
        unit_id, step, _ = line.split()
        found.setdefault(unit_id, []).append(int(step))
    return found


def trainers_of(home: Path) -> list[int]:
    """Processes that worked for this home and still live."""
    file = home / STEPS
    pids = {int(line.split()[2]) for line in file.read_text().splitlines()} if file.exists() else set()
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


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
    defaults = {"show": lines.append, "make_trainer": make_fake, "sensors": Calm(), "pace": QUICK} | PROMPT
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
        command = [sys.executable, "-m", "tests.worker.agents", url, token, str(home)]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=said, cwd=ROOT)


def assert_nothing_is_left(home: Path, pid: int) -> None:
    """No process, no socket folder and no lock of an agent that has ended, whatever ended it."""
    until(lambda: not trainers_of(home), timeout_s=10.0, what="the end of all trainers")
    with suppress(psutil.NoSuchProcess):
        assert psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def repeated(steps: dict[str, list[int]]) -> Counter[str]:
    """By unit, how many steps were done more than once."""
    return Counter({unit: len(done) - len(set(done)) for unit, done in steps.items()})


def main() -> None:
    """Entry point of the process."""
    from tinylora.command_line import exit_code_of

    url, token, home = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    asked = options(url, token, home)
    agent = Agent(asked, make_trainer=make_fake, sensors=Calm(), pace=QUICK, tick_s=0.1, backoff_s=(0.1,))
    sys.exit(exit_code_of(agent.work))


if __name__ == "__main__":
    main()

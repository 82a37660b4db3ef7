"""An agent with a trainer that only counts (`fake_trainer.py`), as a process; light, because it is started often.

python -m tests.worker.agent_process URL TOKEN HOME    without URL and TOKEN it comes back
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinylora_worker.agent.agent import Agent
from tinylora_worker.agent.options import Options
from tinylora_worker.limits import Limits
from tinylora_worker.machine import Machine
from tinylora_worker.trainer.process import TrainerProcess

from tests.federation.facts import FACTS
from tinylora.command_line import exit_code_of
from tinylora.config import BaseFacts
from tinylora.flower.fleet import Pace

FAKE_TRAINER = Path(__file__).with_name("fake_trainer.py")
FAKE = "fake.json"
"""As in `fake_trainer`."""
ROOT = Path(__file__).parents[2]
QUICK = Pace(busy_poll_s=0.05, idle_poll_s=0.2, phase_poll_s=0.5, heartbeat_s=30.0, activation_s=75.0, patience_s=100.0)
HEAVY = {"torch", "transformers", "datasets"}


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


def main() -> None:
    """Entry point of the process."""
    url, token, home = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    asked = options(url, token, home)
    agent = Agent(asked, make_trainer=make_fake, sensors=Calm(), pace=QUICK, tick_s=0.1, backoff_s=(0.1,))
    code = exit_code_of(agent.work)
    assert not HEAVY & sys.modules.keys(), "the agent has become heavy"
    sys.exit(code)


if __name__ == "__main__":
    main()

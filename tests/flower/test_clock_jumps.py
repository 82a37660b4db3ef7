"""The coordinator's wall clock is set forward and back by an hour while a worker works."""

import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import flwr.supercore.date
import pytest

from tests.flower.counting import CountingTrainer, assert_counted_once
from tests.flower.helpers import TOKEN, Worker, until
from tests.flower.test_campaign import running
from tinylora.federation.events import UpdateAccepted
from tinylora.flower.enrolment import join
from tinylora.flower.identity import new_identity

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of alembic and pathspec, about flwr's use

REAL: Callable[[], datetime] = flwr.supercore.date.now


class WallClock:
    """The coordinator's, in all that it consists of; workers and our own deadlines have others."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.ahead = timedelta(0)
        for name, module in list(sys.modules.items()):
            if name.startswith("flwr.") and getattr(module, "now", None) is REAL:
                patch.setattr(module, "now", self.now)

    def now(self) -> datetime:
        """What it shows."""
        return REAL() + self.ahead


def test_a_wall_clock_that_jumps_loses_and_doubles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = WallClock(monkeypatch)
    with running(tmp_path, wall=clock.now, leaf_steps=30) as run:
        run.served.link.phase = "running"
        identity = new_identity()

        def rejoin() -> float:
            return join(run.served.address, TOKEN, identity).clock_offset_s

        worker: Worker = run.served.start_worker(
            lambda name: CountingTrainer(identity).run, identity=identity, rejoin=rejoin
        )
        for hours in (1, -1, 0):
            n_before = len(run.of(UpdateAccepted))
            until(lambda n=n_before: len(run.of(UpdateAccepted)) > n, what="an update")
            clock.ahead = timedelta(hours=hours)
        assert_counted_once(run.finish(), run.ledger)
        assert not worker.endings

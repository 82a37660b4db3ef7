"""One unit from beginning to end, whatever happens in between: a pause, a crash of the trainer, a wish to leave."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tinylora.errors import ProtocolError, TinyLoraError
from tinylora.flower.messages import GivenBack
from tinylora.flower.outbox import UNIT
from tinylora.protocol.documents import Update, WorkUnit
from tinylora_worker.agent.board import Board
from tinylora_worker.agent.desk import Orders, UnitFacts, UnitOrder
from tinylora_worker.agent.journal import Tell
from tinylora_worker.agent.keeper import BACKOFF_S, MOST_DEATHS, Interrupted, Keeper
from tinylora_worker.agent.progress import Progress
from tinylora_worker.trainer.failures import error_of
from tinylora_worker.trainer.made import is_made, read_made
from tinylora_worker.trainer.process import TrainerDied
from tinylora_worker.wire.worker_pb2 import RunEvent


class TrainerFailed(TinyLoraError):
    """The trainer ended too often over one unit."""


@dataclass
class UnderWay:
    """The unit on the bench."""

    unit: WorkUnit
    folder: Path
    deadline_s: float
    """When its lease ends, seconds since 1970, as far as this machine knows."""
    progress: Progress = field(default_factory=Progress)

    @property
    def facts(self) -> UnitFacts:
        """What decisions need of it."""
        return UnitFacts(self.deadline_s, self.progress.left_s)


class Workbench:
    """Does units, one at a time, in the thread of whoever calls `do`.

    Args:
        keeper: Gives the trainer.
        board: Gives the orders.
        refresh: Called when a unit begins or ends: orders depend on it.
        sign: Signs an update as this worker.
        say: Takes one line for people.
        wall: Seconds since 1970.
        backoff_s: Seconds to wait after the trainer's first, second, … death over a unit.
    """

    def __init__(
        self,
        keeper: Keeper,
        board: Board,
        *,
        refresh: Callable[[], None],
        sign: Callable[[Update], Update],
        say: Tell,
        wall: Callable[[], float] = time.time,
        backoff_s: tuple[float, ...] = BACKOFF_S,
    ) -> None:
        self._keeper, self._board, self._refresh = keeper, board, refresh
        self._sign, self._say, self._wall, self._backoff_s = sign, say, wall, backoff_s
        self.under_way: UnderWay | None = None

    def do(self, unit: WorkUnit, folder: Path) -> tuple[Update, Path]:
        """Do a unit; returns the signed update and the file of its tensors.

        Raises:
            GivenBack: Orders are to give it back.
            TinyLoraError: It cannot be done here; the sentence says why.
        """
        self.under_way = UnderWay(unit, folder, self._arrived_s(folder) + unit.deadline_s)
        self._refresh()
        try:
            return self._until_done(self.under_way)
        finally:
            self.under_way = None
            self._refresh()

    def _arrived_s(self, folder: Path) -> float:
        """When the unit came: its file tells, also after a restart."""
        try:
            return (folder / UNIT).stat().st_mtime
        except OSError:
            return self._wall()

    def _until_done(self, work: UnderWay) -> tuple[Update, Path]:
        if is_made(work.folder, work.unit):  # an earlier process was killed before it could sign
            return self._take(work)
        n_deaths = 0
        while True:
            self._wait_for_go(work)
            try:
                return self._train(work)
            except Interrupted:
                pass
            except TrainerDied as error:
                n_deaths += 1
                self._say(f"{work.unit.unit_id}: the trainer ended ({error}); it is started again")
                if n_deaths >= MOST_DEATHS:
                    raise TrainerFailed(f"the trainer ended {n_deaths} times over this unit: {error}") from None
                self._rest(n_deaths)
            work.progress.interrupted()

    def _wait_for_go(self, work: UnderWay) -> None:
        orders = self._board.wait(lambda orders: orders.unit is not UnitOrder.HOLD)
        if orders.unit is UnitOrder.GIVE_BACK:
            raise GivenBack(_why(orders))

    def _rest(self, n_deaths: int) -> None:
        pause_s = self._backoff_s[min(n_deaths, len(self._backoff_s)) - 1]
        self._board.wait(lambda orders: orders.unit is not UnitOrder.GO_ON, timeout_s=pause_s)

    def _train(self, work: UnderWay) -> tuple[Update, Path]:
        for event in self._keeper.run(work.folder):
            match event.WhichOneof("event"):
                case "progress":
                    self._note(work, event)
                case "step_down":
                    self._say(f"{work.unit.unit_id}: {event.step_down.reason}")
                case "failure":
                    raise error_of(event.failure)
                case "done":
                    return self._take(work)
        raise TrainerDied("it said neither that it had done the unit nor why not")

    def _note(self, work: UnderWay, event: RunEvent) -> None:
        told = event.progress
        work.progress.note(
            step=told.step,
            n_steps=told.n_steps,
            loss=told.loss,
            tokens_per_s=told.tokens_per_s,
            checkpoint_age_s=told.checkpoint_age_s,
            now_s=self._wall(),
        )
        self._board.touch()

    def _take(self, work: UnderWay) -> tuple[Update, Path]:
        """What the trainer has left in the unit's folder, as this worker's word."""
        update, result = read_made(work.folder)
        unit = work.unit
        if (update.unit_id, update.nonce) != (unit.unit_id, unit.nonce):
            raise ProtocolError(f"unit {unit.unit_id}: the trainer made an update for {update.unit_id}")
        return self._sign(update), result


def _why(orders: Orders) -> str:
    return f"{orders.reason or orders.state}{f': {orders.detail}' if orders.detail else ''}"


def describe(unit: WorkUnit, update: Update) -> str:
    """One unit in one line."""
    if unit.kind != "train":
        return f"{unit.unit_id} {unit.kind}: {update.seconds:.1f} s"
    loss = f"loss {update.losses[0]:.3f} -> {update.losses[-1]:.3f}, " if update.losses else ""
    rate = update.tokens / update.seconds if update.seconds else 0.0
    return f"{unit.unit_id} node {unit.node or 'root'}: {update.n_steps} steps, {loss}{rate:.0f} tokens/s"

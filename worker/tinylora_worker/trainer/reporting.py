"""What a trainer tells of a unit while it works on it."""

from collections.abc import Callable

from tinylora.protocol.documents import WorkUnit
from tinylora.training import Fit
from tinylora_worker.trainer.checkpoint import Checkpoint
from tinylora_worker.wire import worker_pb2 as wire
from tinylora_worker.wire.worker_pb2 import Progress, RunEvent, StepDown

PROGRESS_EVERY_S = 0.2


class Pace:
    """Lets so many through that nobody is flooded: five a second."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._told_s: float | None = None

    def is_due(self) -> bool:
        """Whether it is time again; the answer yes counts as done."""
        now = self._clock()
        if self._told_s is not None and now - self._told_s < PROGRESS_EVERY_S:
            return False
        self._told_s = now
        return True


class Reporter:
    """Tells of a unit's steps, not too often, and of its last one; and of every step down."""

    def __init__(
        self, unit: WorkUnit, checkpoint: Checkpoint, tell: Callable[[RunEvent], None], clock: Callable[[], float]
    ) -> None:
        self._unit, self._checkpoint, self._tell, self._pace = unit, checkpoint, tell, Pace(clock)

    def on_step(self, node: str, step: int, loss: float, tokens_per_s: float) -> None:
        """The node's `step`-th step, counted from 0, is finished."""
        n_done = step - self._unit.first_step + 1
        if not self._pace.is_due() and n_done < self._unit.n_steps:
            return
        progress = Progress(
            node=node,
            step=n_done,
            n_steps=self._unit.n_steps,
            loss=loss,
            tokens_per_s=tokens_per_s,
            checkpoint_age_s=self._checkpoint.age_s,
        )
        self._tell(RunEvent(progress=progress))

    def on_step_down(self, fit: Fit, reason: str) -> None:
        """Memory ran out; from now on less is computed at once."""
        self._tell(RunEvent(step_down=StepDown(reason=reason, fit=to_wire(fit))))


def to_wire(fit: Fit) -> wire.Fit:
    """What a step is cut into, for the agent."""
    return wire.Fit(
        micro_windows=fit.micro_windows,
        gradient_checkpointing=fit.gradient_checkpointing,
        quantise=fit.quantise,
        max_rank=fit.max_rank,
        max_leaves=fit.max_leaves,
    )

"""What a trainer can do: load, find out what fits, do units. One thread at a time.

Only `write_down` may be called from others.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tinylora.config import RunSettings
from tinylora.errors import SettingError
from tinylora.training import Fit, UnitRunner
from tinylora.training.out_of_memory import give_memory_back
from tinylora_worker.trainer import loading
from tinylora_worker.trainer.auditing import exposures
from tinylora_worker.trainer.checkpoint import EVERY_S, Checkpoint
from tinylora_worker.trainer.loading import Resident
from tinylora_worker.trainer.made import is_made, read_made, unit_folder, write_made
from tinylora_worker.trainer.reporting import Reporter
from tinylora_worker.trainer.sizes import from_wire, sizes
from tinylora_worker.trainer.unit_files import read_checkpoint, read_payload, read_unit
from tinylora_worker.wire.worker_pb2 import (
    CanaryEvent,
    CanaryRequest,
    Done,
    LoadEvent,
    LoadRequest,
    RunEvent,
    SizeReply,
    SizeRequest,
)


@dataclass(frozen=True, eq=False)
class _Ready:
    """What is loaded, and what works with it."""

    resident: Resident
    runner: UnitRunner


class Session:
    """One base, one shard, one unit at a time.

    Args:
        home: The worker's.
        checkpoint_every_s: Most work that a crash may cost, in seconds.
        clock: Seconds.
    """

    def __init__(
        self, home: Path, *, checkpoint_every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._home, self._every_s, self._clock = home, checkpoint_every_s, clock
        self._present: _Ready | None = None
        self._checkpoint: Checkpoint | None = None
        self._reporter: Reporter | None = None

    def write_down(self) -> bool:
        """The last finished step of the unit under way is on disk; returns whether the unit has a checkpoint."""
        checkpoint = self._checkpoint
        return checkpoint is not None and checkpoint.write()

    # --- load --------------------------------------------------------------------------------------------------------

    def load(self, request: LoadRequest, tell: Callable[[LoadEvent], None]) -> LoadEvent:
        """Load what is asked for; what was loaded before is gone. Raises as `loading.load` does."""
        started = self._clock()
        self._present = None
        give_memory_back()
        resident = loading.load(request, self._home, tell)
        fit = Fit(quantise=request.quantise, max_rank=request.max_rank, max_leaves=resident.chosen.max_leaves)
        self._present = self._with(resident, fit)
        return LoadEvent(loaded=resident.loaded(self._clock() - started))

    def _with(self, resident: Resident, fit: Fit) -> _Ready:
        """Units are done with steps cut like this."""
        runner = UnitRunner(
            resident.base,
            resident.shard,
            worker=resident.request.worker,
            on_step=self._on_step,
            on_step_down=self._on_step_down,
            max_rank=resident.request.max_rank,
            fit=fit,
        )
        return _Ready(resident, runner)

    def _ready(self) -> _Ready:
        if self._present is None:
            raise SettingError("the trainer was asked for work before it had loaded a base and a text")
        return self._present

    def size(self, request: SizeRequest) -> SizeReply:
        """What a step is cut into on this machine; units are done with that from now on.

        Raises:
            SettingError: Nothing is loaded.
            OutOfMemory: Nothing fits.
        """
        resident = self._ready().resident
        fit = sizes(resident, RunSettings.model_validate_json(request.settings_json), self._home, again=request.again)
        self._present = self._with(resident, from_wire(fit))
        return SizeReply(fit=fit)

    # --- run ---------------------------------------------------------------------------------------------------------

    def run(self, folder: Path, tell: Callable[[RunEvent], None]) -> RunEvent:
        """Do the unit in this folder, from its checkpoint where there is one; what comes of it is on disk at the end.

        Raises:
            ProtocolError: The folder is not a unit's, or the unit contradicts itself.
            BaseModelError: The unit is for another base.
            DataError: The text is too small for it.
            StorageError: What came of it cannot be written.
        """
        runner = self._ready().runner
        folder = unit_folder(self._home, folder)
        unit = read_unit(folder)
        if is_made(folder, unit):
            return RunEvent(done=Done(payload_sha256=read_made(folder)[0].payload_sha256))
        payload = read_payload(folder, unit)
        resume = read_checkpoint(folder)
        self._checkpoint = checkpoint = Checkpoint(folder, lambda: runner.latest, clock=self._clock)
        self._reporter = Reporter(unit, checkpoint, tell, self._clock)
        try:
            with checkpoint.every(self._every_s):
                update, tensors = runner.run(unit, payload, resume)
            write_made(folder, update, tensors)
        except Exception:
            checkpoint.write()  # whoever tries again need not start over
            raise
        finally:
            self._checkpoint = self._reporter = None
        return RunEvent(done=Done(payload_sha256=update.payload_sha256))

    def _on_step(self, node: str, step: int, loss: float, tokens_per_s: float) -> None:
        if self._reporter is not None:
            self._reporter.on_step(node, step, loss, tokens_per_s)

    def _on_step_down(self, fit: Fit, reason: str) -> None:
        if self._reporter is not None:
            self._reporter.on_step_down(fit, reason)

    # --- canaries ----------------------------------------------------------------------------------------------------

    def canary(self, request: CanaryRequest, tell: Callable[[CanaryEvent], None]) -> CanaryEvent:
        """Measure how much of planted secrets training would give away. Raises as `auditing.exposures` does."""
        present = self._ready()
        return CanaryEvent(report=exposures(present.resident, present.runner.fit, request, tell, self._clock))

"""What is resident in a trainer: base, text, and the runner that does units with them. Used by one thread at a time.

Only `write_down` may be called from others.
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tinylora.base_model import LoadedBase, load_base
from tinylora.errors import BaseModelError, ProtocolError, SettingError
from tinylora.flower.outbox import CHECKPOINT, PAYLOAD, UNIT
from tinylora.protocol.documents import WorkUnit, sha256
from tinylora.shards import Shard, load_shard
from tinylora.training import Fit, Snapshot, UnitRunner
from tinylora_worker.trainer import downloads
from tinylora_worker.trainer.checkpoint import EVERY_S, Checkpoint
from tinylora_worker.trainer.made import is_made, read_made, unit_folder, write_made
from tinylora_worker.wire import worker_pb2 as wire
from tinylora_worker.wire.worker_pb2 import (
    Done,
    Loaded,
    LoadEvent,
    LoadProgress,
    LoadRequest,
    Progress,
    RunEvent,
    SizeReply,
    SizeRequest,
    StepDown,
)

log = logging.getLogger(__name__)
PROGRESS_EVERY_S = 0.2
TOKENS = "tokens"
"""Folder in a home for the tokens of its data."""


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
        self._runner: UnitRunner | None = None
        self._checkpoint: Checkpoint | None = None
        self._reporter: Reporter | None = None

    def write_down(self) -> bool:
        """The last finished step of the unit under way is on disk; returns whether the unit has a checkpoint."""
        checkpoint = self._checkpoint
        return checkpoint is not None and checkpoint.write()

    # --- load --------------------------------------------------------------------------------------------------------

    def load(self, request: LoadRequest, tell: Callable[[LoadEvent], None]) -> None:
        """Load the base and read the text; what was loaded before is gone.

        Raises:
            BaseModelError: The base cannot be loaded, or is not the one that the run needs.
            DataError: There is no usable text.
            SettingError: There is no such device.
        """
        started = self._clock()
        self._runner = None
        tell(LoadEvent(progress=LoadProgress(stage="base")))
        with downloads.watched(downloads.cache_of(request.base), partial(_tell_downloaded, tell)):
            base = load_base(request.base, quantise=request.quantise or None, feature_dim=request.feature_dim or 256)
        check_fingerprint(base, request.base_fingerprint)
        tell(LoadEvent(progress=LoadProgress(stage="data")))
        shard = load_shard(
            [Path(path) for path in request.data],
            base,
            columns=dict(request.columns),
            allow=list(request.allow),
            cache=self._home / TOKENS,
        )
        self._runner = UnitRunner(
            base,
            shard,
            worker=request.worker,
            on_step=self._on_step,
            on_step_down=self._on_step_down,
            threads=request.cpu_threads or None,
            max_rank=request.max_rank,
        )
        tell(LoadEvent(loaded=self._loaded(base, shard, self._clock() - started)))

    def _loaded(self, base: LoadedBase, shard: Shard, seconds: float) -> Loaded:
        return Loaded(
            base_facts_json=base.facts.model_dump_json(),
            device="CPU",
            device_kind="cpu",
            n_train_documents=len(shard.train),
            n_heldout_documents=len(shard.heldout),
            n_tokens=shard.n_tokens,
            seconds=seconds,
        )

    def size(self, request: SizeRequest) -> SizeReply:
        """What a step is cut into on this machine.

        Raises:
            SettingError: Nothing is loaded.
        """
        return SizeReply(fit=to_wire(self._ready().fit))

    # --- run ---------------------------------------------------------------------------------------------------------

    def run(self, folder: Path, tell: Callable[[RunEvent], None]) -> None:
        """Do the unit in this folder, from its checkpoint where there is one; what comes of it is on disk at the end.

        Raises:
            ProtocolError: The folder is not a unit's, or the unit contradicts itself.
            BaseModelError: The unit is for another base.
            DataError: The text is too small for it.
            StorageError: What came of it cannot be written.
        """
        runner = self._ready()
        folder = unit_folder(self._home, folder)
        unit = read_unit(folder)
        if is_made(folder, unit):
            tell(RunEvent(done=Done(payload_sha256=read_made(folder)[0].payload_sha256)))
            return
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
        tell(RunEvent(done=Done(payload_sha256=update.payload_sha256)))

    def _ready(self) -> UnitRunner:
        if self._runner is None:
            raise SettingError("the trainer was asked for work before it had loaded a base and a text")
        return self._runner

    def _on_step(self, node: str, step: int, loss: float, tokens_per_s: float) -> None:
        if self._reporter is not None:
            self._reporter.on_step(node, step, loss, tokens_per_s)

    def _on_step_down(self, fit: Fit, reason: str) -> None:
        if self._reporter is not None:
            self._reporter.on_step_down(fit, reason)


class Reporter:
    """Tells of a unit's steps, five times a second at most, and of its last one; and of every step down."""

    def __init__(
        self, unit: WorkUnit, checkpoint: Checkpoint, tell: Callable[[RunEvent], None], clock: Callable[[], float]
    ) -> None:
        self._unit, self._checkpoint, self._tell, self._clock = unit, checkpoint, tell, clock
        self._told_s: float | None = None

    def on_step(self, node: str, step: int, loss: float, tokens_per_s: float) -> None:
        """The node's `step`-th step, counted from 0, is finished."""
        now, n_done = self._clock(), step - self._unit.first_step + 1
        if self._told_s is not None and now - self._told_s < PROGRESS_EVERY_S and n_done < self._unit.n_steps:
            return
        self._told_s = now
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


def _tell_downloaded(tell: Callable[[LoadEvent], None], n_bytes: int) -> None:
    tell(LoadEvent(progress=LoadProgress(stage="base", downloaded_bytes=n_bytes)))


def check_fingerprint(base: LoadedBase, expected: str) -> None:
    """Check that this is the run's base.

    Raises:
        BaseModelError: It is another one.
    """
    if expected and base.facts.fingerprint != expected:
        raise BaseModelError(
            f"base model: this run needs one with fingerprint {expected[:16]}, {base.facts.base_id} has "
            f"{base.facts.fingerprint[:16]}; give the run's own base with --base"
        )


# --- files of a unit --------------------------------------------------------------------------------------------------


def read_unit(folder: Path) -> WorkUnit:
    """The unit in this folder.

    Raises:
        ProtocolError: There is none, or it is not readable.
    """
    try:
        return WorkUnit.from_json((folder / UNIT).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ProtocolError(f"{folder / UNIT}: not readable: {error}") from None


def read_payload(folder: Path, unit: WorkUnit) -> bytes:
    """The unit's tensors.

    Raises:
        ProtocolError: They are not there, or not those that the unit came with.
    """
    try:
        payload = (folder / PAYLOAD).read_bytes()
    except OSError as error:
        raise ProtocolError(f"{folder / PAYLOAD}: not readable: {error.strerror or error}") from None
    if sha256(payload) != unit.payload_sha256:
        raise ProtocolError(f"{folder / PAYLOAD}: altered on disk; the unit has to come again")
    return payload


def read_checkpoint(folder: Path) -> Snapshot | None:
    """Where an earlier run of the unit came to; None where there is none, or none that can be read."""
    try:
        return Snapshot.from_bytes((folder / CHECKPOINT).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ProtocolError) as error:
        log.warning("%s: %s; the unit starts over", folder / CHECKPOINT, error)
        return None

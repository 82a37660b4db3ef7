"""What a trainer is told before its first unit: device, base, text, and what the run asks for."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from tinylora.config import BaseFacts
from tinylora.flower.enrolment import Welcome
from tinylora_worker.agent.journal import Tell
from tinylora_worker.agent.keeper import Interrupted, Prepared, TrainerLike
from tinylora_worker.agent.options import Options
from tinylora_worker.limits import Limits
from tinylora_worker.trainer.process import TrainerProcess
from tinylora_worker.wire.worker_pb2 import LoadRequest

MakeTrainer: TypeAlias = Callable[[Path, Limits, Tell], TrainerLike]


def make_trainer(home: Path, limits: Limits, say: Tell) -> TrainerProcess:
    """The real trainer of this home, not yet started; it sees the owner's device alone."""
    return TrainerProcess(home, say, environment=dict(os.environ) | limits.trainer_environment())


class Loader:
    """Brings a trainer up. It starts at once, and loads as soon as it is known what the run needs.

    Args:
        make: Makes a trainer.
        options: What the volunteer said.
        limits: What holds now.
        worker: Name on the wire: the order of batches depends on it.
        memory_bytes: Of the device, for limits that are a share of it; 0: not known.
        say: Takes one line for people.
    """

    def __init__(
        self,
        make: MakeTrainer,
        options: Options,
        limits: Callable[[], Limits],
        *,
        worker: str,
        memory_bytes: Callable[[], int],
        say: Tell,
    ) -> None:
        self._make, self._options, self._limits = make, options, limits
        self._worker, self._memory_bytes, self._say = worker, memory_bytes, say
        self._news, self._is_closed = threading.Condition(), False
        self._welcome: Welcome | None = None

    def welcome(self, welcome: Welcome) -> None:
        """The run is known now."""
        with self._news:
            self._welcome = welcome
            self._news.notify_all()

    def close(self) -> None:
        """Nobody waits for the run any more."""
        with self._news:
            self._is_closed = True
            self._news.notify_all()

    def prepare(self, began: Callable[[TrainerLike], None]) -> Prepared:
        """Start a trainer, have it load base and text, and find out what fits.

        Raises:
            Interrupted: There will be no run.
            TrainerDied: It ended, by itself or by our hand.
            TinyLoraError: It cannot be done here, now or later.
        """
        limits = self._limits()
        trainer = self._make(self._options.home, limits, self._say)
        began(trainer)
        trainer.start()
        welcome = self._wait_for_welcome()
        loaded = trainer.load(load_request(self._options, limits, welcome, self._worker, self._memory_bytes()))
        fit = trainer.size(welcome.answer.settings.model_dump_json())
        return Prepared(trainer, loaded, fit)

    def _wait_for_welcome(self) -> Welcome:
        with self._news:
            self._news.wait_for(lambda: self._welcome is not None or self._is_closed)
            if self._welcome is None:
                raise Interrupted
            return self._welcome


def load_request(options: Options, limits: Limits, welcome: Welcome, worker: str, memory_bytes: int) -> LoadRequest:
    """What to load, and how: options said on the command line are stricter than limits, never laxer.

    Args:
        options: What the volunteer said.
        limits: What the owner allows.
        welcome: What the run is.
        worker: Name on the wire.
        memory_bytes: Of the device; 0: not known.
    """
    allowed = [limits.vram_bytes(memory_bytes) or 0, options.vram_limit_bytes]
    threads = [limits.cpu_threads or 0, options.threads]
    return LoadRequest(
        base=options.base,
        data=options.data,
        columns=dict(options.columns),
        feature_dim=welcome.answer.base.feature_dim,
        # A trainer whose environment was made of these limits sees the device that was said as its only one.
        device=limits.device if limits.with_device(options.device) == limits else options.device,
        dtype=options.dtype,
        quantise=options.quantise,
        vram_limit_bytes=_strictest(allowed),
        vram_share=0.0 if memory_bytes else limits.vram_share or 0.0,
        cpu_threads=_strictest(threads),
        max_rank=options.max_rank,
        worker=worker,
        allow=options.allow,
        base_fingerprint=welcome.answer.base.fingerprint,
    )


def facts_of(prepared: Prepared) -> BaseFacts:
    """The base that was loaded."""
    return BaseFacts.model_validate_json(prepared.loaded.base_facts_json)


def _strictest(limits: list[int]) -> int:
    """The smallest that is one; 0 where none is."""
    return min((limit for limit in limits if limit), default=0)

"""The trainer's life: loaded beside the joining, stopped when its device is wanted, started again after a crash.

Nothing here touches the identity, the lease or the outbox: whatever a trainer dies of, these stay.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tinylora.errors import TinyLoraError
from tinylora_worker.agent.journal import Tell
from tinylora_worker.trainer.process import TrainerDied
from tinylora_worker.wire.worker_pb2 import Fit, Loaded, LoadRequest, RunEvent

MOST_DEATHS = 3
"""In a row while it loads, and over one unit: after so many, trying again is of no use."""
BACKOFF_S = (1.0, 5.0, 20.0)


class Interrupted(Exception):
    """We stopped the trainer ourselves; the unit goes on later."""


class TrainerLike(Protocol):
    """What the keeper needs of a trainer; `trainer.process.TrainerProcess`, and whatever tests put in its place."""

    @property
    def pid(self) -> int:
        """Of its process; 0 before there is one."""
        ...

    def start(self) -> None:
        """Bring it up."""
        ...

    def load(self, request: LoadRequest) -> Loaded:
        """Have it load base and text."""
        ...

    def size(self, settings_json: str) -> Fit:
        """Have it find what its device can hold."""
        ...

    def run(self, folder: Path) -> Iterator[RunEvent]:
        """Have it do the unit in this folder."""
        ...

    def stop(self) -> bool:
        """End it with a checkpoint; its device's memory is free afterwards."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


@dataclass(frozen=True)
class Prepared:
    """A trainer that is ready for units."""

    trainer: TrainerLike
    loaded: Loaded
    fit: Fit


class Keeper:
    """Keeps a trainer ready while it is allowed to have the device.

    Args:
        prepare: Starts a trainer, has it load and size; calls back with the trainer as soon as there is one, so that
            it can be stopped in the middle of loading. Raises `TrainerDied`, or the error that trying again repeats.
        check: Called with what was loaded, before the first unit; raises where it does not fit the run.
        changed: Called when a trainer is ready, gone or broken.
        say: Takes one line for people.
        backoff_s: Seconds to wait after the first, second, … death.
    """

    def __init__(
        self,
        prepare: Callable[[Callable[[TrainerLike], None]], Prepared],
        *,
        check: Callable[[Prepared], None],
        changed: Callable[[], None],
        say: Tell,
        backoff_s: tuple[float, ...] = BACKOFF_S,
    ) -> None:
        self._prepare, self._check, self._changed, self._say = prepare, check, changed, say
        self._backoff_s = backoff_s
        self._news = threading.Condition(threading.RLock())
        self._is_allowed, self._is_closed = False, False
        self._trainer: TrainerLike | None = None
        self._prepared: Prepared | None = None
        self._last: Prepared | None = None
        self._error: TinyLoraError | None = None
        self._thread = threading.Thread(target=self._keep, name="keeper", daemon=True)

    @property
    def prepared(self) -> Prepared | None:
        """The trainer that is ready for units now."""
        return self._prepared

    @property
    def last(self) -> Prepared | None:
        """The trainer that was ready last: its device and sizes are known while it is down too."""
        return self._last

    @property
    def error(self) -> TinyLoraError | None:
        """Why there will be none any more."""
        return self._error

    @property
    def pid(self) -> int | None:
        """Of the trainer that runs now, loaded or not."""
        trainer = self._trainer
        return trainer.pid or None if trainer is not None else None

    def open(self, prepared: Prepared | None = None) -> None:
        """Begin, with a trainer that somebody has prepared already, if there is one."""
        if prepared is not None:
            self._trainer, self._prepared, self._last = prepared.trainer, prepared, prepared
        self._thread.start()

    def allow(self, is_allowed: bool) -> None:
        """Let a trainer have the device, or not: then it is gone, and the memory free, when the call returns."""
        with self._news:
            self._is_allowed = is_allowed
            trainer = None if is_allowed else self._take_away()
            self._news.notify_all()
        if trainer is not None:
            trainer.stop()
            self._changed()

    def close(self, *, at_once: bool = False) -> None:
        """No trainer any more, now and later; with a checkpoint of the unit under way unless it has to be at once."""
        with self._news:
            self._is_closed = True
            trainer = self._take_away()
            self._news.notify_all()
        if trainer is not None:
            trainer.kill() if at_once else trainer.stop()

    def run(self, folder: Path) -> Iterator[RunEvent]:
        """Do the unit in this folder with the trainer that is ready, or as soon as one is.

        Raises:
            Interrupted: The trainer was taken away by `allow` or `close`.
            TrainerDied: It died of itself; the next one is on its way.
            TinyLoraError: There will be none any more.
        """
        prepared = self._wait_until_ready()
        try:
            yield from prepared.trainer.run(folder)
        except TrainerDied:
            if not self._lose(prepared.trainer):
                raise Interrupted from None
            raise

    def _take_away(self) -> TrainerLike | None:
        trainer, self._trainer, self._prepared = self._trainer, None, None
        return trainer

    def _wait_until_ready(self) -> Prepared:
        with self._news:
            self._news.wait_for(lambda: self._prepared or self._error or self._is_closed or not self._is_allowed)
            if self._prepared is not None:
                return self._prepared
            if self._error is not None:
                raise self._error
            raise Interrupted

    def _lose(self, trainer: TrainerLike) -> bool:
        """Forget a trainer that is gone; returns whether it was still ours."""
        with self._news:
            is_ours = self._trainer is trainer
            if is_ours:
                self._take_away()
                self._news.notify_all()
        if is_ours:
            with suppress(TrainerDied):
                trainer.kill()
            self._changed()
        return is_ours

    def _keep(self) -> None:
        n_deaths = 0
        while self._wait_for_need():
            try:
                self._bring_up()
                n_deaths = 0
            except Interrupted:
                pass
            except TrainerDied as error:
                n_deaths += 1
                self._say(f"the trainer ended while it loaded: {error}")
                if n_deaths >= MOST_DEATHS:
                    self._give_up(error)
                self._rest(self._backoff_s[min(n_deaths, len(self._backoff_s)) - 1])
            except TinyLoraError as error:
                self._give_up(error)

    def _wait_for_need(self) -> bool:
        """Wait until a trainer is wanted and missing; false at the end."""
        with self._news:
            self._news.wait_for(lambda: self._is_closed or (self._is_allowed and not (self._trainer or self._error)))
            return not self._is_closed

    def _bring_up(self) -> None:
        mine: list[TrainerLike] = []

        def began(trainer: TrainerLike) -> None:
            mine.append(trainer)
            with self._news:
                if self._is_allowed and not self._is_closed:
                    self._trainer = trainer
                    return
            trainer.kill()
            raise Interrupted

        try:
            prepared = self._prepare(began)
            self._check(prepared)
        except BaseException:
            was_ours = not mine or self._lose(mine[0])
            if not was_ours:
                raise Interrupted from None
            raise
        with self._news:
            if self._trainer is prepared.trainer:
                self._prepared = self._last = prepared
                self._news.notify_all()
        self._changed()

    def _rest(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        with self._news:
            self._news.wait_for(lambda: self._is_closed, max(end - time.monotonic(), 0.0))

    def _give_up(self, error: TinyLoraError) -> None:
        with self._news:
            self._error = error
            self._news.notify_all()
        self._changed()

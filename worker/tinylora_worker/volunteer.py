"""A volunteer's way in: checks, estimate, consent, work. And back in: work, without a question.

What needs no torch is looked at first, in this process. The trainer is on its way meanwhile: where the base is on this
machine, it makes a real step before anybody is asked; a download waits for consent.
"""

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

import tinylora
from tinylora.config import RunSettings
from tinylora.errors import BaseModelError, DataError, SettingError, TinyLoraError
from tinylora.flower.enrolment import Welcome
from tinylora_worker.agent.keeper import Prepared
from tinylora_worker.agent.loading import load_request, make_trainer
from tinylora_worker.agent.options import Options
from tinylora_worker.auditing import run_audit
from tinylora_worker.limits import Limits, change
from tinylora_worker.preflight.check import Check, exit_code_of_checks, skipped
from tinylora_worker.preflight.codes import CheckName
from tinylora_worker.preflight.consent import QUESTION, SELF_AUDIT_QUESTION, consent_lines
from tinylora_worker.preflight.doctor import Asked, Examined, examine
from tinylora_worker.preflight.estimate import estimate
from tinylora_worker.preflight.facts import Fitting
from tinylora_worker.preflight.facts import Text as ReadText
from tinylora_worker.preflight.judging import judge_fitting, judge_refusal, judge_text
from tinylora_worker.preflight.telling import heading_lines
from tinylora_worker.screen import JsonLines, Lines, Picture, Show, Silence, Wishes
from tinylora_worker.talk import Talk
from tinylora_worker.trainer.process import TrainerDied, TrainerProcess
from tinylora_worker.wire.worker_pb2 import Fit, Loaded


@dataclass(frozen=True)
class Manner:
    """How a command behaves, besides what it is about."""

    is_sure: bool = False
    """Nobody is asked."""
    is_dry: bool = False
    """Ends before it joins."""
    has_audit: bool = False
    skip: frozenset[CheckName] = frozenset()
    is_json: bool = False
    is_quiet: bool = False


@dataclass
class Way:
    """One way in, step by step.

    Args:
        options: What the volunteer said; base and text may still be missing.
        manner: How it is to be gone.
        talk: Where he is spoken to.
        limits: What he allows.
        announced: Those of them that he said just now, and that his home keeps once he has agreed.
    """

    options: Options
    manner: Manner
    talk: Talk
    limits: Limits
    announced: Mapping[str, object] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)

    def go(self) -> int:
        """Go it to its end; returns the exit code.

        Raises:
            TinyLoraError: As `Agent.work`.
        """
        with self._stack:
            return self._go()

    def _go(self) -> int:
        talk, manner = self.talk, self.manner
        talk.say(f"TinyLoRA worker {tinylora.__version__}", "", " Preflight")
        starting = self._stack.enter_context(Starting(make_trainer(self.options.home, self.limits, talk.say)))
        examined = examine(self._asked(), told=talk.tell)
        if code := exit_code_of_checks(examined.checks):
            return code
        self.options = replace(self.options, base=examined.base.base)
        welcome = None if examined.door is None else examined.door.welcome
        prepared: Prepared | None = None
        if welcome is not None and examined.base.folder is not None:
            prepared = self._prepare(starting, welcome, examined)
        self._tell_estimate(welcome, examined, prepared)
        if manner.is_dry:
            talk.say(" Everything passes; nothing was joined (--dry-run).")
            return 0
        if not self._consents():
            talk.say(" Nothing was joined.")
            return 0
        if manner.has_audit:
            if welcome is None:
                raise SettingError("--self-audit: the operator has yet to approve this worker; try again later")
            prepared = prepared or self._prepare(starting, welcome, examined)
            if not self._audit(prepared, welcome.answer.settings):
                talk.say(" Nothing was joined, and nothing sent.")
                return 0
        for key, value in self.announced.items():
            change(self.options.home, key, value)
        if prepared is not None:
            starting.keep()
        starting.close()
        return work(self.options, manner, talk, prepared)

    # --- before anybody is asked --------------------------------------------------------------------------------------

    def _asked(self) -> Asked:
        options = self.options
        return Asked(
            options.home,
            options.url,
            options.token,
            base=options.base,
            data=options.data,
            device=options.device or self.limits.gpu,
            skip=self.manner.skip,
            is_joining=True,
        )

    def _prepare(self, starting: "Starting", welcome: Welcome, examined: Examined) -> Prepared:
        """A real step, and the text read, told as checks.

        Raises:
            NotFit: One of them failed.
            TrainerDied: The trainer did not live to see the end of it.
        """
        options, answer = self.options, welcome.answer
        request = load_request(options, self.limits, welcome, answer.worker, examined.device_bytes)
        trainer = starting.started()
        with self.talk.busy("loads the base and reads the text"):
            try:
                loaded = trainer.load(request)
            except DataError as error:
                raise self._not_fit(
                    judge_text(ReadText(trouble=str(error), is_found=error.rule == "findings"))
                ) from None
            except BaseModelError as error:
                raise self._not_fit(judge_refusal("base", str(error))) from None
        self._told(judge_text(read_text(loaded)))
        with self.talk.busy("makes a real step"):
            try:
                fit = trainer.size(answer.settings.model_dump_json())
            except TrainerDied:
                raise
            except TinyLoraError as error:
                raise self._not_fit(judge_fitting(Fitting(trouble=str(error)))) from None
        self._told(judge_fitting(fitting_of(fit, answer.settings, options)))
        return Prepared(trainer, loaded, fit)

    def _not_fit(self, check: Check) -> "NotFit":
        """A check that failed, told; skipping it is of no use, for there is no trainer without it."""
        self.talk.tell(check)
        return NotFit(check.exit_code)

    def _told(self, check: Check) -> None:
        self.talk.tell(skipped(check.name, "you said --skip-check") if check.name in self.manner.skip else check)

    def _tell_estimate(self, welcome: Welcome | None, examined: Examined, prepared: Prepared | None) -> None:
        self.talk.say("")
        if welcome is not None:
            fit = Fit() if prepared is None else prepared.fit
            cost = estimate(
                welcome.answer.settings,
                welcome.answer.base,
                download_bytes=examined.base.download_bytes,
                tokens_per_s=fit.tokens_per_s,
                watts=fit.watts,
                max_leaves=fit.max_leaves,
            )
            self.talk.say(*heading_lines(cost.lines()))
        self.talk.say(*heading_lines(self._consent_lines()), "")

    def _consent_lines(self) -> list[tuple[str, str]]:
        return consent_lines(
            self.options.name, self.limits.note, self.limits.data_licence, shares_log=self.limits.share_log
        )

    # --- asking -------------------------------------------------------------------------------------------------------

    def _consents(self) -> bool:
        """Whether he agrees.

        Raises:
            SettingError: There is nobody to ask.
        """
        answer = True if self.manner.is_sure else self.talk.ask(QUESTION, default=True)
        if answer is None:
            raise SettingError("would ask whether to start, and nobody answers; say --yes if it is right")
        return answer

    def _audit(self, prepared: Prepared, settings: RunSettings) -> bool:
        """Make the audit; returns whether to go on."""
        run_audit(prepared.trainer, settings, self.talk)
        return self.manner.is_sure or bool(self.talk.ask(SELF_AUDIT_QUESTION, default=False))


class NotFit(TinyLoraError):
    """A check failed, and was told in full; its exit code is the command's."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("a check failed; nothing was joined")
        self.exit_code = exit_code


class Starting:
    """A trainer that starts beside the checks: its imports take longer than all of them. Ended at the end, or kept."""

    def __init__(self, trainer: TrainerProcess) -> None:
        self._trainer, self._is_kept = trainer, False
        self._error: TinyLoraError | None = None
        self._thread = threading.Thread(target=self._start, name="starting", daemon=True)

    def _start(self) -> None:
        try:
            self._trainer.start()
        except TinyLoraError as error:
            self._error = error

    def started(self) -> TrainerProcess:
        """The trainer, which listens.

        Raises:
            TinyLoraError: It did not come up.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._trainer

    def keep(self) -> None:
        """Somebody else looks after it now."""
        self._is_kept = True

    def close(self) -> None:
        """It is gone, unless it is kept; again is harmless."""
        self._thread.join()
        if not self._is_kept:
            self._trainer.close()

    def __enter__(self) -> Self:
        """Start it, in a thread."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self.close()


def read_text(loaded: Loaded) -> ReadText:
    """What the trainer said of the text."""
    return ReadText(
        loaded.n_train_documents, loaded.n_heldout_documents, loaded.n_tokens, loaded.n_rejected, loaded.layout
    )


def fitting_of(fit: Fit, settings: RunSettings, options: Options) -> Fitting:
    """What the real step showed, and what it does not allow."""
    restrictions = []
    if fit.max_rank and fit.max_rank < settings.rank and fit.max_rank != options.max_rank:
        restrictions.append(f"rank {fit.max_rank} of {settings.rank} at most")
    if fit.max_leaves == 1 and settings.depth:
        restrictions.append("one leaf at a time, no subtree")
    if fit.quantise and fit.quantise != options.quantise:
        restrictions.append(f"the base in {fit.quantise}")
    if fit.gradient_checkpointing:
        restrictions.append("activations are computed twice (gradient checkpointing)")
    windows = fit.micro_windows or settings.batch_windows  # 0: all of a step at once
    return Fitting(fit.peak_bytes, fit.free_bytes, windows, settings.window_tokens, tuple(restrictions))


def work(options: Options, manner: Manner, talk: Talk, prepared: Prepared | None = None) -> int:
    """Work until the run is over or its owner wants to leave; returns the exit code.

    Raises:
        TinyLoraError: As `Agent.work`.
    """
    from tinylora_worker.agent.agent import Agent  # flwr comes with it, which the checks need not wait for

    agent = Agent(options, show=lambda line: _say(talk, line), on_status=lambda status: show.update(status))
    show = _show_for(agent, manner, talk)
    with show:
        agent.work(prepared)
    return 0


def _say(talk: Talk, line: str) -> None:
    if not talk.is_quiet:
        talk.console.print(line, markup=False)  # above the picture, where there is one


def _show_for(wishes: Wishes, manner: Manner, talk: Talk) -> Show:
    if manner.is_json:
        return JsonLines()
    if talk.console.is_terminal and not talk.is_quiet:
        return Picture(talk.console, wishes, keyboard=talk.keyboard, n_log=0)
    return Silence() if talk.is_quiet else Lines(lambda line: _say(talk, line))

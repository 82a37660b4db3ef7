"""Tells the coordinator what this worker does: at once when that changes, every few seconds while it works.

It runs beside everything else and holds nothing up. What is not heard is said again later, in fewer and fewer tries; a
coordinator that takes no reports is asked again after ten minutes.
"""

import getpass
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeAlias

from tinylora.flower.asking import backoff
from tinylora.flower.reporting import LAST_TIMEOUT_S, TIMEOUT_S, Answer
from tinylora.protocol.report import MAX_LINES, WorkerReport
from tinylora.protocol.standstill import Reason, WorkerState
from tinylora_worker.agent.board import Board
from tinylora_worker.agent.desk import Orders
from tinylora_worker.agent.journal import Journal
from tinylora_worker.agent.options import Options
from tinylora_worker.agent.outward import Discretion

WORKING_S, RESTING_S = 10.0, 60.0
"""Between two reports while nothing changes: at work, and otherwise."""
LEAST_S = 1.0
"""Between two reports, whatever changes."""
Words: TypeAlias = tuple[WorkerState, Reason | None]


class Line(Protocol):
    """The way to the coordinator; `flower.reporting.ReportLine`, and whatever tests put in its place."""

    def send(self, report: WorkerReport, *, timeout_s: float = TIMEOUT_S) -> Answer:
        """Say it."""
        ...

    def close(self) -> None:
        """Say no more."""
        ...


class SharedLog:
    """Lines of the journal on their way out, each told once; what is said while sharing is off is never told."""

    def __init__(self, journal: Journal, discretion: Discretion, is_shared: Callable[[], bool]) -> None:
        self._journal, self._discretion, self._is_shared = journal, discretion, is_shared
        self._n_told, _ = journal.since(0)
        self._n_pending = self._n_told

    def pending(self) -> tuple[str, ...]:
        """Lines that nobody was told yet, as others may read them."""
        self._n_pending, lines = self._journal.since(self._n_told)
        if not self._is_shared():
            self.told()
            return ()
        return tuple(filter(None, map(self._discretion.line, lines[-MAX_LINES:])))

    def told(self) -> None:
        """Those of the last `pending` were told, or never will be."""
        self._n_told = self._n_pending


class Reporter:
    """Reports while its context is open, and says goodbye at the end.

    Args:
        line: To the coordinator.
        board: Tells when something changes.
        make: Makes a report with these lines of the log; None where nothing may be sent now.
        log: Lines that others may read.
        note: Takes a line for the file alone: why a report was not heard.
        clock: Seconds, never going back.
        jitter: Between 0 and 1: a fleet that began together does not report together.
        working_s: Between two reports at work.
        resting_s: Between two reports otherwise.
        least_s: Between two reports, whatever changes.
    """

    def __init__(
        self,
        line: Line,
        board: Board,
        make: Callable[[tuple[str, ...]], WorkerReport | None],
        log: SharedLog,
        *,
        note: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
        working_s: float = WORKING_S,
        resting_s: float = RESTING_S,
        least_s: float = LEAST_S,
    ) -> None:
        self._line, self._board, self._make, self._log, self._note = line, board, make, log, note
        self._clock, self._jitter = clock, jitter
        self._working_s, self._resting_s, self._least_s = working_s, resting_s, least_s
        self._stop = threading.Event()
        self._heard: WorkerState | None = None
        """What the coordinator heard last; None while it heard nothing, or does not answer."""
        self._noted = ""
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)

    def __enter__(self) -> "Reporter":
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End; whoever listened until now is told that this worker leaves."""
        self._stop.set()
        self._board.touch()
        self._thread.join(LAST_TIMEOUT_S)
        if not self._thread.is_alive():
            if self._heard not in (None, WorkerState.LEAVING, WorkerState.FINISHED):
                self._say_goodbye()
            self._line.close()

    def _run(self) -> None:
        waits = backoff(self._jitter)
        while not self._stop.is_set():
            words = _words(self._board.orders)
            answer = self._report()
            if answer.is_heard:
                waits = backoff(self._jitter)
                self._stop.wait(self._least_s)
                self._wait_for_change(words)
            else:
                self._stop.wait(max(answer.rest_s or self._after(waits), self._least_s))

    def _wait_for_change(self, words: Words) -> None:
        period_s = self._working_s if words[0] is WorkerState.WORKING else self._resting_s
        left_s = period_s * (0.8 + 0.4 * self._jitter()) - self._least_s
        self._board.wait(lambda orders: self._stop.is_set() or _words(orders) != words, timeout_s=max(left_s, 0.0))

    def _after(self, waits: Iterator[float]) -> float:
        """Seconds until the next try; those below a second are left out, a report is not urgent."""
        return next(wait_s for wait_s in waits if wait_s >= self._least_s)

    def _report(self, *, timeout_s: float = TIMEOUT_S) -> Answer:
        report = self._make(self._log.pending())
        if report is None:
            self._heard = None
            return Answer(False, rest_s=self._resting_s)
        return self._send(report, timeout_s=timeout_s)

    def _send(self, report: WorkerReport, *, timeout_s: float) -> Answer:
        answer = self._line.send(report, timeout_s=timeout_s)
        self._heard = report.state if answer.is_heard else None
        if not answer.is_lost:
            self._log.told()  # refused lines are not said again: they would be refused again
        if answer.why and answer.why != self._noted:
            self._note(f"a report was not heard: {answer.why}")
        self._noted = answer.why
        return answer

    def _say_goodbye(self) -> None:
        report = self._make(self._log.pending())
        if report is not None:
            goodbye = {"state": WorkerState.LEAVING, "reason": "", "detail": "", "resumes_in_s": None}
            self._send(report.model_copy(update=goodbye), timeout_s=LAST_TIMEOUT_S)


def private_words(options: Options) -> set[str]:
    """Names of this machine, of its user, and of the volunteer's files: never to be told."""
    host = socket.gethostname()
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a user without a name, as in some containers
        user = ""
    paths = [str(Path.home()), str(options.home), options.base, *options.data]
    return {host, host.partition(".")[0], user, *paths, *(Path(path).name for path in options.data)}


def _words(orders: Orders) -> Words:
    return orders.state, orders.reason

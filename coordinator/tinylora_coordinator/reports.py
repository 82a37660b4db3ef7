"""Reports: what workers tell of themselves between updates, taken in for the pages. They decide nothing in the run.

A worker is known by its signature and reports about nobody else. A report that does not fit the document is refused by
its field, one too many is refused until later, and what passes is plain text already (`tinylora.protocol.report`).
"""

import threading
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import TypeAlias

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from tinylora.errors import ProtocolError
from tinylora.flower.enrolment import REPORT_PATH
from tinylora.flower.identity import worker_of
from tinylora.flower.link import PublicRoutes
from tinylora.flower.texts import printable
from tinylora.protocol.report import WorkerReport

Admit: TypeAlias = Callable[[Collection[tuple[bytes, bytes]]], Awaitable[bytes | None]]
"""Headers to the public key (PEM) of the worker who signed them, or None for a stranger."""
Hear: TypeAlias = Callable[[str, WorkerReport, float], None]
"""Takes worker, report, and when it came on the run's clock."""

BURST, PER_S = 10.0, 1.0
"""Reports of one worker: so many at once, and so many a second for ever. An honest one sends at most one a second."""
RETRY_AFTER_S = 5
_MOST_REMEMBERED = 4096


@dataclass
class _Allowance:
    left: float
    at_s: float


class Allowances:
    """How often each worker may still report. Pure but for what it remembers: times are given.

    Args:
        burst: Reports at once.
        per_s: Reports a second, in the long run.
    """

    def __init__(self, burst: float = BURST, per_s: float = PER_S) -> None:
        self._burst, self._per_s = burst, per_s
        self._by_worker: dict[str, _Allowance] = {}

    def take(self, worker: str, now_s: float) -> bool:
        """Whether one more may come now; it counts if so."""
        allowance = self._by_worker.get(worker)
        if allowance is None:
            self._forget_the_rested(now_s)
            allowance = self._by_worker[worker] = _Allowance(self._burst, now_s)
        allowance.left, allowance.at_s = self._left(allowance, now_s), now_s
        if allowance.left < 1.0:
            return False
        allowance.left -= 1.0
        return True

    def _left(self, allowance: _Allowance, now_s: float) -> float:
        return min(allowance.left + max(now_s - allowance.at_s, 0.0) * self._per_s, self._burst)

    def _forget_the_rested(self, now_s: float) -> None:
        """Who has his whole burst again is as good as new."""
        if len(self._by_worker) >= _MOST_REMEMBERED:
            left = {worker: self._left(found, now_s) for worker, found in self._by_worker.items()}
            self._by_worker = {worker: self._by_worker[worker] for worker in left if left[worker] < self._burst}


class ReportDesk:
    """Takes reports in, one at a time.

    Args:
        hear: Who wants to know.
        clock: The run's, in seconds.
        allowances: How often each may report.
        monotonic: Seconds, never going back.
    """

    def __init__(
        self,
        hear: Hear,
        *,
        clock: Callable[[], float],
        allowances: Allowances | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hear, self._clock, self._monotonic = hear, clock, monotonic
        self._allowances, self._lock = allowances or Allowances(), threading.Lock()

    def may_report(self, worker: str) -> bool:
        """Whether this worker's next report is taken now."""
        with self._lock:
            return self._allowances.take(worker, self._monotonic())

    def take(self, worker: str, body: bytes) -> None:
        """Take in what a worker said of itself.

        Raises:
            ProtocolError: It is no report.
        """
        try:
            report = WorkerReport.from_json(body.decode())
        except UnicodeDecodeError:
            raise ProtocolError("WorkerReport: expected JSON in UTF-8", rule="utf8") from None
        with self._lock:
            self._hear(worker, report, self._clock())


def report_routes(desk: ReportDesk, admit: Admit) -> PublicRoutes:
    """The reports' route for the front door; it takes them from workers alone, each about itself."""

    async def tinylora_report(scope: Scope, receive: Receive, send: Send) -> None:
        await (await _answer(desk, admit, scope, receive))(scope, receive, send)

    return {("POST", REPORT_PATH): tinylora_report}


async def _answer(desk: ReportDesk, admit: Admit, scope: Scope, receive: Receive) -> Response:
    public_pem = await admit(scope["headers"])
    if public_pem is None:
        return _refuse(401, "signature", "no worker of this run signed this request, or not now")
    worker = worker_of(public_pem)
    if not desk.may_report(worker):
        return _refuse(429, "rate", "too many reports of one worker; slower", {"retry-after": str(RETRY_AFTER_S)})
    body = await Request(scope, receive).body()
    try:
        await run_in_threadpool(desk.take, worker, body)
    except ProtocolError as error:
        return _refuse(400, "malformed", printable(str(error), at_most=500))
    return Response(status_code=204)


def _refuse(status: int, error: str, reason: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": error, "reason": reason}, status, headers)

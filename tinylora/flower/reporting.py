"""Reports, worker's side: the way of a worker's word on itself to the coordinator. Nothing depends on its arriving."""

from dataclasses import dataclass

import httpx

from tinylora.errors import NetworkError, RefusedError
from tinylora.flower.enrolment import REPORT_PATH
from tinylora.flower.identity import Identity
from tinylora.flower.meter import Meter, count, unmetered
from tinylora.flower.reach import Address, Trust, verify_by
from tinylora.flower.receipts import signed_headers
from tinylora.flower.texts import printable
from tinylora.protocol.report import WorkerReport

TIMEOUT_S = 5.0
LAST_TIMEOUT_S = 2.0
"""For the last word of a worker that leaves."""
REFUSED_REST_S, NO_ROUTE_REST_S, MOST_REST_S = 60.0, 600.0, 120.0
_MOST_ANSWER_BYTES = 4096


@dataclass(frozen=True)
class Answer:
    """What became of a report."""

    is_heard: bool
    is_lost: bool = False
    """Nobody answered, or not now: the same may be said again."""
    rest_s: float = 0.0
    """Seconds in which there is no use in another one; 0 where nobody said."""
    why: str = ""
    """Why it was not heard."""


class ReportLine:
    """A connection to the coordinator, kept open between reports: they are much smaller than a handshake.

    Args:
        address: The coordinator's.
        trust: By what it is recognised.
        identity: The worker's key; each report is signed with it.
        clock_offset_s: How far the coordinator's clock is ahead.
        meter: Told of each byte.
    """

    def __init__(
        self,
        address: Address,
        trust: Trust,
        identity: Identity,
        *,
        clock_offset_s: float = 0.0,
        meter: Meter = unmetered,
    ) -> None:
        self._address, self._trust, self._identity = address, trust, identity
        self._clock_offset_s, self._meter = clock_offset_s, meter
        self._client: httpx.Client | None = None

    def send(self, report: WorkerReport, *, timeout_s: float = TIMEOUT_S) -> Answer:
        """Say it; whatever happens is told in the answer, and nothing is raised."""
        try:
            status, retry_after, text = self._post(report.to_json(), timeout_s)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, NetworkError, RefusedError) as error:
            self.close()
            return Answer(False, is_lost=True, why=str(error) or type(error).__name__)
        if status == httpx.codes.NO_CONTENT:
            return Answer(True)
        return _judge(status, retry_after, printable(text, at_most=300))

    def _post(self, content: str, timeout_s: float) -> tuple[int, str, str]:
        """Status, `Retry-After` and the beginning of what was said."""
        if self._client is None:
            self._client = httpx.Client(
                verify=verify_by(self._address, self._trust), trust_env=not self._address.is_plain
            )
            count(self._client, self._meter)
        headers = signed_headers(self._identity, self._clock_offset_s) | {"content-type": "application/json"}
        url = self._address.url(REPORT_PATH)
        with self._client.stream("POST", url, content=content, headers=headers, timeout=timeout_s) as response:
            found = bytearray()
            for part in response.iter_raw():
                found += part
                if len(found) > _MOST_ANSWER_BYTES:  # what is left unread closes the connection
                    break
            head = bytes(found[:_MOST_ANSWER_BYTES]).decode(errors="replace")
            return response.status_code, response.headers.get("retry-after", ""), head

    def close(self) -> None:
        """Close the connection; the next report opens another one."""
        client, self._client = self._client, None
        if client is not None:
            client.close()


def _judge(status: int, retry_after: str, text: str) -> Answer:
    why = f"HTTP {status}: {text}"
    if status in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE):
        rest_s = min(float(retry_after), MOST_REST_S) if retry_after.isdigit() else 0.0
        return Answer(False, is_lost=True, rest_s=rest_s, why=why)
    if status in (httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED):
        return Answer(False, rest_s=NO_ROUTE_REST_S, why="this coordinator takes no reports")
    return Answer(False, rest_s=REFUSED_REST_S, why=why)

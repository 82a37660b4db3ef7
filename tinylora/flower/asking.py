"""Requests to Flower's Fleet API: signed, and repeated until somebody answers.

The coordinator may be started again at any moment, or a part of it; then nobody answers for a while, and that is no
reason to give up. A coordinator that does not know us any more is asked to let us in again.
"""

import random
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import httpx

from tinylora.errors import BaseModelError, NetworkError, ProtocolError, RefusedError, TinyLoraError
from tinylora.flower.compat.fleet import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    now,
)
from tinylora.flower.compat.wire import ApiErrorCode, FlowerError
from tinylora.flower.identity import Identity

_RENEWALS = 3
_TRY_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_LONGEST_WAIT_S = 60.0


class UnitIsOver(Exception):
    """The Flower run that this message belongs to has ended; the coordinator has started another one."""


class Finished(Exception):
    """The run is over, and the coordinator has gone."""


class NotActivated(Exception):
    """The coordinator still counts an earlier process of this identity as online."""


class Stopped(Exception):
    """We were told to stop while we waited for the coordinator."""


class SignedRequests:
    """Interceptor: signs each request with the worker's key, by the coordinator's clock."""

    def __init__(self, identity: Identity, clock_offset_s: float) -> None:
        self._identity, self.offset = identity, timedelta(seconds=clock_offset_s)
        self._public = b64encode(identity.public_pem).decode("ascii")

    def intercept(self, context: Any, call_next: Callable[[Any], httpx.Response]) -> httpx.Response:
        """Add the three headers that the link's node authentication reads."""
        timestamp = (now() + self.offset).isoformat()
        signature = b64encode(self._identity.sign(timestamp.encode("ascii"))).decode("ascii")
        headers = context.request.headers
        headers[FLEET_HTTP_PUBLIC_KEY_HEADER] = self._public
        headers[TIMESTAMP_HEADER] = timestamp
        headers[FLEET_HTTP_SIGNATURE_HEADER] = signature
        return call_next(context)


class Asking:
    """Asks until there is an answer.

    Args:
        url: The coordinator, for sentences.
        patience_s: How long it may be unreachable.
        stop: Ends the waiting.
        is_over: Set once the run is known to be over: then nobody is waited for.
        renew: Joins once more, and returns the Flower node that we are from then on; None where that is of no use.
        told: Hears whether the coordinator is within reach.
    """

    def __init__(
        self,
        url: str,
        *,
        patience_s: float,
        stop: threading.Event,
        is_over: threading.Event,
        renew: Callable[[], int | None] | None,
        told: Callable[[bool], None] = lambda is_reachable: None,
    ) -> None:
        self._url, self._patience_s, self._stop, self._is_over = url, patience_s, stop, is_over
        self._renew, self._told = renew, told
        self._refusal = ""

    def __call__(self, rpc: Callable[[Any], Any], request: Any) -> Any:
        """The answer to a request.

        Raises:
            NetworkError: None came for `patience_s`, or one that makes no sense.
            RefusedError: The link does not know us, and the coordinator does not let us in again.
            ProtocolError: A part is too large for it.
        """
        started, n_renewals = time.monotonic(), 0
        for delay_s in backoff():
            try:
                answer = rpc(request)
                self._told(True)
                return answer
            except httpx.TransportError as error:
                reason = str(error) or type(error).__name__
                self._told(False)
            except httpx.HTTPStatusError as error:
                reason = self._judge(error.response)
                if error.response.status_code == httpx.codes.UNAUTHORIZED:
                    n_renewals = self._be_known(n_renewals, request)
            if self._is_over.is_set():
                raise Finished
            if self._stop.wait(delay_s):
                raise Stopped
            if time.monotonic() - started > self._patience_s:
                raise NetworkError(f"{self._url}: no coordinator answers ({reason}); join again later")
        raise AssertionError("unreachable: the backoff never ends")

    def _be_known(self, n_renewals: int, request: Any) -> int:
        """Join once more, a few times at most; returns how many times it was.

        The request goes out again as of the node that we are now: a coordinator that was restored, or lost Flower's
        database, knows us by another number than before.
        """
        if self._renew is None or n_renewals >= _RENEWALS:
            raise RefusedError(
                self._refusal
                or f"{self._url}: the coordinator does not accept this worker's signature; "
                "set this machine's clock, and join again"
            )
        self._refusal = ""
        try:
            node_id = self._renew()
        except (RefusedError, BaseModelError) as error:
            self._refusal = str(error)
        except (httpx.HTTPError, ValueError, TinyLoraError):
            pass
        else:
            if node_id is not None and hasattr(request, "node"):
                request.node.node_id = node_id
        return n_renewals + 1

    def _judge(self, response: httpx.Response) -> str:
        """What an HTTP error means; returns the reason if asking again may help."""
        status = response.status_code
        if status in _TRY_AGAIN or status == httpx.codes.UNAUTHORIZED:
            return f"HTTP {status}"
        code = flower_code(response)
        if code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
            raise NotActivated
        if code == ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED:
            raise UnitIsOver
        if status == httpx.codes.FORBIDDEN:
            raise RefusedError(f"{self._url}: the coordinator does not let this worker take part any more")
        if status == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
            raise ProtocolError(f"{self._url}: the coordinator refuses a part of this size")
        raise NetworkError(f"{self._url}: unexpected answer HTTP {status}; check the address")


def flower_code(response: httpx.Response) -> int | None:
    """Flower's own code of an error, if it is one."""
    error = FlowerError.from_json(response.text)
    return None if error is None else error.code


def backoff(jitter: Callable[[], float] = random.random) -> Iterator[float]:
    """Seconds to wait before each further try: 0.2, growing by a third to a minute, each between half and all of it.

    So nobody waits longer than a third of the time that the coordinator was away already; the jitter keeps a fleet from
    coming back all at once.
    """
    delay_s = 0.2
    while True:
        yield delay_s * (0.5 + 0.5 * jitter())
        delay_s = min(delay_s * 4 / 3, _LONGEST_WAIT_S)

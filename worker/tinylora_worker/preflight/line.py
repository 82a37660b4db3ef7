"""What the line to the coordinator does: round trip and rates, by small requests to itself; nobody else is asked.

Its pages are small, so a rate is rough: what came through in the time that is left without the requests' round trips.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx

from tinylora.errors import NetworkError
from tinylora.flower.enrolment import RECEIPTS_PATH
from tinylora.flower.reach import CA_PATH, Address, Verify
from tinylora_worker.preflight.facts import Line

HEALTH_PATH = "/health"
N_ROUND_TRIPS = 5
N_PAGES = 32
N_LANES = 4
UP_BYTES = 60_000
"""Below what strangers may send at once; the receipts desk reads it, finds no worker's signature, and forgets it."""
_OVERHEAD_BYTES = 300
"""Of an answer's headers, about."""


def measure(
    address: Address, verify: Verify, *, timeout_s: float = 2.5, clock: Callable[[], float] = time.perf_counter
) -> Line:
    """Ask the coordinator some forty small questions, and take the time.

    Raises:
        NetworkError: It stopped answering.
    """
    limits = httpx.Limits(max_connections=N_LANES, max_keepalive_connections=N_LANES)
    try:
        with httpx.Client(
            verify=verify,
            timeout=timeout_s,
            trust_env=not address.is_plain,
            base_url=address.url(),
            limits=limits,
        ) as client:
            client.get(HEALTH_PATH)  # the handshake is not part of a round trip
            round_trip_s = min(_timed(lambda: client.get(HEALTH_PATH), clock) for _ in range(N_ROUND_TRIPS))
            up_s = _timed(lambda: client.post(RECEIPTS_PATH, content=b"\0" * UP_BYTES), clock)
            down = _down_rate(client, clock, round_trip_s)
            return Line(round_trip_s, down, bits_per_s(UP_BYTES, up_s, round_trip_s))
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise NetworkError(f"{address.url()}: stopped answering ({reason})", rule="unreachable") from None


def bits_per_s(n_bytes: int, took_s: float, waiting_s: float) -> float:
    """Rate of so many bytes, without the round trips in it; those never count for more than nine tenths."""
    return n_bytes * 8 / max(took_s - waiting_s, 0.1 * took_s, 1e-6)


def _down_rate(client: httpx.Client, clock: Callable[[], float], round_trip_s: float) -> float:
    """Bits per second that came when many small pages were asked for at once."""

    def fetch(_number: int) -> int:
        return len(client.get(CA_PATH).content) + _OVERHEAD_BYTES

    with ThreadPoolExecutor(N_LANES) as pool:
        list(pool.map(fetch, range(N_LANES)))  # opens the lanes
        begun = clock()
        n_bytes = sum(pool.map(fetch, range(N_PAGES)))
    return bits_per_s(n_bytes, clock() - begun, round_trip_s * N_PAGES / N_LANES)


def _timed(call: Callable[[], object], clock: Callable[[], float]) -> float:
    begun = clock()
    call()
    return clock() - begun

"""How long a run will take, from how its progress went of late. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

LATE_SHARE = 0.3
"""Of the time spent so far: what counts as late."""
LATE_MIN_S = 60.0
N_STRETCHES = 3
"""Into which that time is cut: the fastest and the slowest of them give the range."""


class Forecast(NamedTuple):
    """Seconds to the end, and between which numbers that may lie."""

    eta_s: float
    low_s: float
    high_s: float


def forecast(pace: Sequence[tuple[float, float]], now_s: float) -> Forecast | None:
    """When a run will be done if it goes on as it did of late; None where nothing tells.

    Args:
        pace: (time, share done) at some moments in order; the first is the beginning.
        now_s: The time; nothing was done since the last moment.
    """
    if len(pace) < 2 or pace[-1][1] <= 0 or now_s <= pace[0][0]:
        return None
    left = 1.0 - pace[-1][1]
    if left <= 0:
        return Forecast(0.0, 0.0, 0.0)
    start_s = max(pace[0][0], now_s - max(LATE_MIN_S, LATE_SHARE * (now_s - pace[0][0])))
    rate = _rate(pace, start_s, now_s)
    if rate <= 0:
        return None
    length_s = (now_s - start_s) / N_STRETCHES
    stretches = [_rate(pace, start_s + i * length_s, start_s + (i + 1) * length_s) for i in range(N_STRETCHES)]
    whole = _rate(pace, pace[0][0], now_s)
    rates = [one for one in (rate, whole, *stretches) if one > 0]
    return Forecast(left / rate, left / max(rates), left / min(rates))


def _rate(pace: Sequence[tuple[float, float]], start_s: float, end_s: float) -> float:
    return (_at(pace, end_s) - _at(pace, start_s)) / (end_s - start_s)


def _at(pace: Sequence[tuple[float, float]], time_s: float) -> float:
    """Share done at a time, on straight lines between the moments."""
    before = pace[0]
    for moment in pace:
        if moment[0] > time_s:
            return before[1] + (moment[1] - before[1]) * (time_s - before[0]) / (moment[0] - before[0])
        before = moment
    return before[1]

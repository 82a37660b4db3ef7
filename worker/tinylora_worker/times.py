"""Spans of time and clock times as people type them. Pure; the clock and the time zone are arguments."""

import re
from datetime import datetime, time, timedelta

from tinylora.errors import SettingError

_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_PART = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)\s*(min|[smhdw])", re.ASCII)
_CLOCK = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)", re.ASCII)
MAX_S = 366 * 86_400.0


def parse_span(text: str) -> float:
    """Seconds in `90s`, `30m`, `2h`, `1h30m`, `7d` or `2w`.

    Raises:
        SettingError: It is none of these, not positive, or more than a year.
    """
    rest = _PART.sub("", text).strip()
    seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    if rest or not 0 < seconds <= MAX_S:
        raise SettingError(f"{text!r}: expected a span of time of a year at most, such as 30m, 2h, 1h30m or 7d")
    return seconds


def parse_clock(text: str) -> tuple[int, int]:
    """Hour and minute in `18:00` or `7:30`.

    Raises:
        SettingError: It is no time of day.
    """
    found = _CLOCK.fullmatch(text.strip())
    if found is None:
        raise SettingError(f"{text!r}: expected a time of day between 0:00 and 23:59, such as 18:00")
    return int(found[1]), int(found[2])


def next_at(hour: int, minute: int, now: datetime) -> datetime:
    """The first moment after `now` when a wall clock in its time zone shows this time.

    Of a time that comes twice, when the clock is set back, the first that is still ahead is meant; one that is left
    out, when it is set forward, comes as much later.

    Args:
        hour: 0 to 23.
        minute: 0 to 59.
        now: With a time zone.

    Source:
        PEP 495: of a time in a gap, fold 0 is read by the offset before it.
    """
    moments = (
        datetime.combine(now.date() + timedelta(days=days), time(hour, minute, fold=fold), now.tzinfo).timestamp()
        for days in range(3)
        for fold in (0, 1)
    )
    ahead = next(moment for moment in moments if moment > now.timestamp())
    return datetime.fromtimestamp(ahead, now.tzinfo)

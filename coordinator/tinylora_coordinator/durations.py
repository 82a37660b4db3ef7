"""Spans of time as people write them, and points in time as they read them. Pure."""

import re
from datetime import UTC, datetime

from tinylora.errors import SettingError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


def parse_duration(text: str) -> float:
    """Seconds in `90s`, `30m`, `12h`, `7d` or `2w`.

    Raises:
        SettingError: It is none of these, or not positive.
    """
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([smhdw])", text.strip())
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if seconds <= 0:
        raise SettingError(f"{text!r}: expected a span of time, such as 30m, 12h, 7d or 2w")
    return seconds


def as_date(seconds: float) -> str:
    """Seconds since 1970 as UTC to the minute."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"

"""When a worker may work: windows of the week, by the clock on the wall.

    "Mon-Fri 22:00-07:00"   opens at 22:00 on these days, and closes at 07:00 on the day after
    "Sat-Sun"               whole days
    "20:00-24:00"           every day
    "Mon Wed 09:00-12:00"   days that do not follow each other

The wall's clock alone decides. So an hour that comes twice in autumn counts twice, a window that lies in the hour left
out in spring stays shut that day, and 22:00-07:00 is eight or ten hours long in these nights. Rejected: windows of a
fixed length, which would end at another hour than the one that was said.
"""

import functools
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo

import tzlocal

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_LONG_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
MINUTES_OF_A_DAY = 24 * 60
_TIMES = re.compile(r"(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})")
_AHEAD = timedelta(days=15)
"""A week, and another one: the window of this week may lie in the hour that spring leaves out."""
_STRIDE = timedelta(hours=6)
"""Between two looks at the zone's offset; no zone has changed it twice within so short a time."""

EXPECTED = 'days, hours or both, such as "Mon-Fri 22:00-07:00", "Sat-Sun" or "20:00-24:00"'


@dataclass(frozen=True)
class Window:
    """Some days of the week, from one minute to another; an end at or before the start is on the day after."""

    days: frozenset[int]
    """Days on which it opens; Monday is 0."""
    start: int = 0
    """Minute of the day."""
    end: int = MINUTES_OF_A_DAY
    """First minute that is not in it."""

    def holds(self, weekday: int, minute: int) -> bool:
        """Whether the wall's clock shows a minute of it."""
        if self.start < self.end:
            return weekday in self.days and self.start <= minute < self.end
        return (weekday in self.days and minute >= self.start) or ((weekday - 1) % 7 in self.days and minute < self.end)


@dataclass(frozen=True)
class Schedule:
    """All windows; without any, it is always open."""

    windows: tuple[Window, ...] = ()

    @classmethod
    def parse(cls, entries: Sequence[str]) -> "Schedule":
        """Read windows as people write them.

        Raises:
            ValueError: An entry is none; the message names it and what is expected.
        """
        return cls(tuple(_window(entry) for entry in entries))

    def is_open(self, now: datetime) -> bool:
        """Whether a worker may work; `now` carries its owner's time zone."""
        wall = _wall(now)
        minute = wall.hour * 60 + wall.minute
        return not self.windows or any(window.holds(wall.weekday(), minute) for window in self.windows)

    def next_change(self, now: datetime) -> datetime | None:
        """When it opens or closes next, in the zone of `now`; None if it does neither."""
        zone = now.tzinfo
        if zone is None:
            raise ValueError("a time without its zone")
        is_open = self.is_open(now)
        instants = {*self._boundaries(now, zone), *_jumps(now, zone)}
        later = (instant.astimezone(zone) for instant in sorted(instants) if instant > now)
        return next((instant for instant in later if self.is_open(instant) != is_open), None)

    def _boundaries(self, now: datetime, zone: tzinfo) -> Iterator[datetime]:
        """Instants at which the wall's clock may show a start or an end, or a midnight."""
        minutes = {minute % MINUTES_OF_A_DAY for window in self.windows for minute in (window.start, window.end)} | {0}
        first = now.date() - timedelta(days=1)
        for n_days in range(_AHEAD.days + 2):
            for minute in minutes if self.windows else ():
                for fold in (0, 1):
                    yield _instant(first + timedelta(days=n_days), minute, fold, zone)


def local_zone() -> tzinfo:
    """The time zone of this machine as it is set now; UTC where it cannot be told."""
    try:
        return tzlocal.reload_localzone()
    except Exception:  # tzlocal reads what it finds in files of many systems, and its errors are as many
        return UTC


def local_now() -> datetime:
    """The time in this machine's zone; a zone that was changed is noticed within a minute."""
    return local_time(time.time())


def local_time(since_1970_s: float) -> datetime:
    """The same moment as this machine's zone shows it.

    `datetime.astimezone()` would do for this moment, but not for those to come: it knows the offset of now alone, and
    schedules ask what the clock will show after it was put forward or back.
    """
    return datetime.fromtimestamp(since_1970_s, _zone_of_minute(int(time.monotonic() // 60)))


@functools.lru_cache(maxsize=1)
def _zone_of_minute(_minute: int) -> tzinfo:
    return local_zone()


def _wall(now: datetime) -> datetime:
    if now.tzinfo is None:
        raise ValueError("a time without its zone")
    return now


def _instant(day: date, minute: int, fold: int, zone: tzinfo) -> datetime:
    wall = datetime(day.year, day.month, day.day, minute // 60, minute % 60, fold=fold, tzinfo=zone)
    return wall.astimezone(UTC)


def _jumps(now: datetime, zone: tzinfo) -> Iterator[datetime]:
    """Instants at which the wall's clock is put forward or back, to the second."""
    before = now.astimezone(UTC).replace(microsecond=0)
    end = before + _AHEAD
    while before < end:
        after = before + _STRIDE
        if _offset(before, zone) != _offset(after, zone):
            yield _jump(before, after, zone)
        before = after


def _jump(before: datetime, after: datetime, zone: tzinfo) -> datetime:
    """First second with the offset of `after`; halving."""
    old = _offset(before, zone)
    while (seconds := (after - before) // timedelta(seconds=1)) > 1:
        middle = before + timedelta(seconds=seconds // 2)
        before, after = (middle, after) if _offset(middle, zone) == old else (before, middle)
    return after


def _offset(instant: datetime, zone: tzinfo) -> timedelta | None:
    return instant.astimezone(zone).utcoffset()


def _window(entry: str) -> Window:
    words = entry.split()
    times = _TIMES.fullmatch(words[-1]) if words else None
    days = frozenset(day for word in (words[:-1] if times else words) for day in _days(word, entry))
    if times is None and not days:
        raise ValueError(f'"{entry}": expected {EXPECTED}')
    days = days or frozenset(range(7))
    if times is None:
        return Window(days)
    start, end = _minute(times[1], times[2], entry), _minute(times[3], times[4], entry)
    if start in (end, MINUTES_OF_A_DAY):
        raise ValueError(f'"{entry}": no time lies between start and end; whole days are written without hours')
    return Window(days, start, end)


def _minute(hour: str, minute: str, entry: str) -> int:
    found = int(hour) * 60 + int(minute)
    if int(minute) > 59 or found > MINUTES_OF_A_DAY:
        raise ValueError(f'"{entry}": {hour}:{minute} is not on a clock; expected 00:00 to 24:00')
    return found


def _days(word: str, entry: str) -> list[int]:
    """Days of one word, "Mon" or "Fri-Mon", around the end of the week where that is meant."""
    first, dash, last = word.partition("-")
    start = _day(first, entry)
    n_days = (_day(last, entry) - start) % 7 + 1 if dash else 1
    return [(start + step) % 7 for step in range(n_days)]


def _day(word: str, entry: str) -> int:
    for names in (DAYS, _LONG_DAYS):
        if word.lower() in names:
            return names.index(word.lower())
    raise ValueError(f'"{entry}": "{word}" is neither a day (Mon to Sun) nor hours; expected {EXPECTED}')

"""The schedule against a slow reference that looks at the wall's clock minute by minute."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinylora_worker.schedule import DAYS, MINUTES_OF_A_DAY, Schedule, Window, local_now, local_time, local_zone

BERLIN = ZoneInfo("Europe/Berlin")
MINUTE = timedelta(minutes=1)
NIGHTS_AND_WEEKENDS = Schedule.parse(["Mon-Fri 22:00-07:00", "Sat-Sun"])

JUMPS = {
    "Europe/Berlin": ("2026-03-29T01:00", "2026-10-25T01:00"),
    "America/New_York": ("2026-03-08T07:00", "2026-11-01T06:00"),
    "Australia/Lord_Howe": ("2026-04-04T15:00", "2026-10-03T15:30"),  # by half an hour
    "Africa/Cairo": ("2026-04-23T22:00", "2026-10-29T21:00"),  # a day that begins at one; one that ends twice
    "America/Havana": ("2026-03-08T05:00", "2026-11-01T05:00"),
    "Asia/Kathmandu": ("2026-06-01T00:00",),  # none, and an offset of 5:45
}
"""Instants at which a zone's clock is put forward or back, or any where it never is."""


def written_down(schedule: Schedule) -> list[bool]:
    """Slow and obvious: every minute of the week, and whether it is open."""
    week = [not schedule.windows] * 7 * MINUTES_OF_A_DAY
    for window in schedule.windows:
        end = window.end if window.end > window.start else window.end + MINUTES_OF_A_DAY
        for day in window.days:
            for minute in range(window.start, end):
                week[(day * MINUTES_OF_A_DAY + minute) % len(week)] = True
    return week


def shown(week: list[bool], now: datetime) -> bool:
    return week[now.weekday() * MINUTES_OF_A_DAY + now.hour * 60 + now.minute]


def reference_change(week: list[bool], now: datetime, limit: timedelta) -> datetime | None:
    """First whole minute after now that differs."""
    at = now.astimezone(UTC).replace(second=0, microsecond=0)
    was = shown(week, now)
    for _ in range(limit // MINUTE):
        at += MINUTE
        if shown(week, at.astimezone(now.tzinfo)) != was:
            return at
    return None


def windows() -> st.SearchStrategy[Window]:
    minutes = st.integers(0, 47).map(lambda half_hours: 30 * half_hours) | st.integers(0, MINUTES_OF_A_DAY - 1)
    days = st.frozensets(st.integers(0, 6), min_size=1)
    timed = st.builds(Window, days, minutes, st.just(MINUTES_OF_A_DAY) | minutes)
    return (timed | st.builds(Window, days)).filter(lambda window: window.start != window.end)


@given(
    schedule=st.lists(windows(), max_size=3).map(lambda found: Schedule(tuple(found))),
    jump=st.sampled_from([(zone, instant) for zone, instants in JUMPS.items() for instant in instants]),
    before_min=st.integers(-26 * 60, 26 * 60),
    seconds=st.integers(0, 59),
)
def test_it_says_what_the_clock_on_the_wall_says(
    schedule: Schedule, jump: tuple[str, str], before_min: int, seconds: int
) -> None:
    zone, instant = jump
    at = datetime.fromisoformat(instant).replace(tzinfo=UTC) - before_min * MINUTE + timedelta(seconds=seconds)
    now = at.astimezone(ZoneInfo(zone))
    week = written_down(schedule)
    assert schedule.is_open(now) == shown(week, now)
    change, limit = schedule.next_change(now), timedelta(days=2)
    expected = reference_change(week, now, limit)
    if expected is None:
        assert change is None or change - now.astimezone(UTC) > limit - MINUTE
    else:
        # Not in the zone itself: times of an hour that comes twice equal no time of another zone (PEP 495).
        assert change is not None and change.astimezone(UTC) == expected and change.tzinfo is now.tzinfo


@pytest.mark.parametrize("zone", JUMPS)
def test_the_instants_above_are_jumps(zone: str) -> None:
    for instant in JUMPS[zone] if zone != "Asia/Kathmandu" else ():
        at = datetime.fromisoformat(instant).replace(tzinfo=UTC)
        before, after = ((at + step).astimezone(ZoneInfo(zone)).utcoffset() for step in (-MINUTE, timedelta()))
        assert before != after


@pytest.mark.parametrize(
    ("now", "is_open", "change"),
    [
        ("2026-11-20T21:59", False, "2026-11-20T22:00"),  # a Friday
        ("2026-11-20T22:00", True, "2026-11-23T00:00"),  # the night and the weekend, and none from Sunday on
        ("2026-11-23T00:00", False, "2026-11-23T22:00"),
        ("2026-11-24T06:59", True, "2026-11-24T07:00"),
        ("2026-11-24T07:00", False, "2026-11-24T22:00"),
    ],
)
def test_a_week_by_hand(now: str, is_open: bool, change: str) -> None:
    at = datetime.fromisoformat(now).replace(tzinfo=BERLIN)
    assert NIGHTS_AND_WEEKENDS.is_open(at) == is_open
    assert NIGHTS_AND_WEEKENDS.next_change(at) == datetime.fromisoformat(change).replace(tzinfo=BERLIN)


def test_a_night_is_as_long_as_its_clock_says() -> None:
    nights = Schedule.parse(["22:00-07:00"])
    for day, hours in ((28, 8), (29, 9)):  # the clock goes forward in the first of them
        opens = datetime(2026, 3, day, 22, tzinfo=BERLIN)
        closes = nights.next_change(opens)
        assert closes is not None and closes.astimezone(UTC) - opens.astimezone(UTC) == timedelta(hours=hours)


def test_a_window_in_the_hour_that_is_left_out_opens_a_week_later() -> None:
    early = Schedule.parse(["Sun 02:15-02:45"])
    assert early.next_change(datetime(2026, 3, 28, tzinfo=BERLIN)) == datetime(2026, 4, 5, 2, 15, tzinfo=BERLIN)


@pytest.mark.parametrize("entries", [[], ["Mon-Sun"], ["00:00-12:00", "12:00-24:00"]])
def test_always_open_never_changes(entries: list[str]) -> None:
    schedule, now = Schedule.parse(entries), datetime(2026, 3, 28, 9, tzinfo=BERLIN)
    assert schedule.is_open(now) and schedule.next_change(now) is None


@pytest.mark.parametrize(
    ("entry", "window"),
    [
        ("Mon-Fri 22:00-07:00", Window(frozenset(range(5)), 22 * 60, 7 * 60)),
        ("fri-MON", Window(frozenset({4, 5, 6, 0}))),
        ("Monday Wed 9:00-12:30", Window(frozenset({0, 2}), 9 * 60, 12 * 60 + 30)),
        ("20:00-24:00", Window(frozenset(range(7)), 20 * 60, MINUTES_OF_A_DAY)),
        (" Sun-Sun ", Window(frozenset({6}))),
    ],
)
def test_what_people_write(entry: str, window: Window) -> None:
    assert Schedule.parse([entry]).windows == (window,)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("", "expected days, hours or both"),
        ("Mo-Fr", '"Mo" is neither a day'),
        ("Mon- 10:00-11:00", '"" is neither a day'),
        ("25:00-26:00", "25:00 is not on a clock"),
        ("24:30-25:00", "24:30 is not on a clock"),
        ("10:75-11:00", "10:75 is not on a clock"),
        ("10:00-10:00", "no time lies between"),
        ("24:00-07:00", "no time lies between"),
        ("Mon, Wed 10:00-11:00", '"Mon," is neither a day'),
        ("10:00-11:00 Mon", '"10:00" is neither a day'),
    ],
)
def test_what_is_no_window(entry: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Schedule.parse([entry])
    assert f'"{entry}"' in str(caught.value)


def test_the_zone_of_this_machine_is_one() -> None:
    now = datetime.now(local_zone())
    assert now.utcoffset() is not None
    assert len(DAYS) == 7


def test_local_time_knows_the_offsets_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinylora_worker.schedule._zone_of_minute", lambda _minute: BERLIN)
    before = datetime(2026, 3, 28, 23, tzinfo=BERLIN)  # the clock goes forward in this night
    change = Schedule.parse(["22:00-07:00"]).next_change(local_time(before.timestamp()))
    assert change is not None and change.astimezone(UTC) - before.astimezone(UTC) == timedelta(hours=7)
    assert abs(local_now().timestamp() - datetime.now(UTC).timestamp()) < 5


def test_a_time_without_zone_is_refused() -> None:
    for ask in (NIGHTS_AND_WEEKENDS.is_open, NIGHTS_AND_WEEKENDS.next_change):
        with pytest.raises(ValueError, match="without its zone"):
            ask(datetime(2026, 1, 1))

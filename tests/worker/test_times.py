"""Spans and clock times as people type them; the days on which the clock is set."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from tinylora_worker.times import next_at, parse_clock, parse_span

from tinylora.errors import SettingError

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("30min", 1800), ("2h", 7200), ("1h30m", 5400), ("1.5h", 5400), ("7d", 604_800)],
)
def test_a_span(text: str, seconds: float) -> None:
    assert parse_span(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "-2h", "2 hours", "0m", "2h!", "1e3s", "900d", "٢h"])
def test_no_span(text: str) -> None:
    with pytest.raises(SettingError, match="expected a span of time"):
        parse_span(text)


@pytest.mark.parametrize("text", ["", "24:00", "18", "18:60", "6pm", "18:00:00", "-1:00"])
def test_no_time_of_day(text: str) -> None:
    with pytest.raises(SettingError, match="expected a time of day"):
        parse_clock(text)


@pytest.mark.parametrize(
    ("now", "wanted", "expected"),
    [
        ("2026-11-21 17:00", "18:00", "2026-11-21 17:00"),  # in UTC
        ("2026-11-21 18:00", "18:00", "2026-11-22 17:00"),  # now is not ahead
        ("2026-11-21 18:01", "7:30", "2026-11-22 06:30"),
        ("2026-03-28 20:00", "08:00", "2026-03-29 06:00"),  # the night is an hour short
        ("2026-10-24 20:00", "08:00", "2026-10-25 07:00"),  # and an hour long
        ("2026-03-29 01:00", "02:30", "2026-03-29 01:30"),  # left out: as much later
        ("2026-10-25 01:00", "02:30", "2026-10-25 00:30"),  # comes twice: the first
    ],
)
def test_the_next_moment_at_which_the_clock_shows_it(now: str, wanted: str, expected: str) -> None:
    here = datetime.fromisoformat(now).replace(tzinfo=BERLIN)
    assert f"{next_at(*parse_clock(wanted), here).astimezone(UTC):%Y-%m-%d %H:%M}" == expected


def test_of_a_time_that_comes_twice_the_second_is_meant_when_the_first_is_over() -> None:
    here = datetime(2026, 10, 25, 0, 45, tzinfo=UTC).astimezone(BERLIN)  # 2:45, the first time
    assert next_at(2, 30, here).astimezone(UTC) == datetime(2026, 10, 25, 1, 30, tzinfo=UTC)


def test_it_is_always_ahead_and_at_most_a_day_and_an_hour_away() -> None:
    for month in (3, 10):
        for hour in range(24 * 28, 24 * 31):
            now = datetime(2026, month, 1, tzinfo=UTC).timestamp() + hour * 3600
            here = datetime.fromtimestamp(now, BERLIN)
            for wanted in (0, 2, 3, 23):
                assert 0 < next_at(wanted, 30, here).timestamp() - now <= 25 * 3600

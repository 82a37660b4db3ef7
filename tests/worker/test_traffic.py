"""Every byte counts once, in its month, whatever clock, disk and power do."""

import threading
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinylora_worker.traffic import (
    FILE,
    KEPT_MONTHS,
    MUCH_BYTES,
    WRITE_EVERY_S,
    WRITE_LITTLE_EVERY_S,
    Month,
    TrafficMeter,
    read_months,
)

from tinylora import failpoints
from tinylora.errors import StorageError

BERLIN = ZoneInfo("Europe/Berlin")


class Time:
    """Both clocks of a machine."""

    def __init__(self) -> None:
        self.at = datetime(2026, 11, 30, 23, 59, tzinfo=BERLIN)
        self.now_s = 0.0


def meter(home: Path, time: Time) -> TrafficMeter:
    return TrafficMeter(home, now=lambda: time.at, clock=lambda: time.now_s)


def test_both_ways_count_and_are_there_again_after_a_restart(tmp_path: Path) -> None:
    time = Time()
    counted = meter(tmp_path, time)
    counted.add(3, 4)
    counted(10, 0)
    counted.close()
    again = meter(tmp_path, time)
    assert again.month == Month(sent=13, received=4) and again.month_bytes == 17
    assert (counted.sent_bytes, counted.received_bytes) == (13, 4) and again.sent_bytes == 0


def test_a_new_month_begins_at_zero_by_the_local_clock_and_the_old_one_stays(tmp_path: Path) -> None:
    time = Time()
    counted = meter(tmp_path, time)
    counted.add(5, 0)
    time.at = datetime(2026, 12, 1, tzinfo=BERLIN)  # in UTC it is still November
    assert counted.month_bytes == 0
    counted.add(0, 7)
    counted.close()
    assert read_months(tmp_path) == {"2026-11": Month(sent=5), "2026-12": Month(received=7)}


def test_a_clock_that_is_set_back_counts_in_the_month_that_it_shows(tmp_path: Path) -> None:
    time = Time()
    counted = meter(tmp_path, time)
    counted.add(5, 0)
    time.at = datetime(2026, 12, 1, tzinfo=BERLIN)
    counted.add(1, 0)
    time.at = datetime(2026, 11, 2, tzinfo=BERLIN)
    counted.add(2, 0)
    assert counted.month_bytes == 7
    time.at = datetime(2026, 12, 1, tzinfo=BERLIN)
    assert counted.month_bytes == 1 and counted.sent_bytes == 8


def test_the_disk_is_written_seldom(tmp_path: Path) -> None:
    time = Time()
    counted = meter(tmp_path, time)
    counted.write()  # nothing to write
    n_writes: list[str] = []
    with failpoints.watched(lambda name: n_writes.append(name) if name == "worker.traffic.rename.before" else None):
        for _ in range(100):
            counted.add(1, 1)
            time.now_s += WRITE_LITTLE_EVERY_S / 100
        assert n_writes == []
        counted.add(1, 1)
        assert len(n_writes) == 1
        for _ in range(100):
            counted.add(MUCH_BYTES, 0)
            time.now_s += WRITE_EVERY_S / 10
        assert 9 <= len(n_writes) <= 11
        counted.close()
        counted.close()
        assert len(n_writes) <= 12
    assert read_months(tmp_path)["2026-11"].sent == 101 + 100 * MUCH_BYTES


def test_a_full_disk_stops_no_count_and_is_tried_again(tmp_path: Path) -> None:
    counted = meter(tmp_path / "home", Time())  # a folder that is not there cannot be written either
    counted.add(5, 5)
    counted.write()
    assert "counted in memory" in counted.problem and counted.month_bytes == 10
    (tmp_path / "home").mkdir()
    counted.write()
    assert counted.problem == "" and read_months(tmp_path / "home")["2026-11"].total == 10


@pytest.mark.parametrize("content", [b"", b"[]", b'{"months": {"2026-11": {"sent": -1}}}', b'{"months": {"x": {}}}'])
def test_a_count_that_cannot_be_read_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(StorageError, match=r"traffic\.json: not readable; move it away"):
        meter(tmp_path, Time())


def test_years_of_a_wrong_clock_do_not_push_this_month_out(tmp_path: Path) -> None:
    time = Time()
    counted = meter(tmp_path, time)
    for year in range(2100, 2100 + KEPT_MONTHS + 5):
        time.at = datetime(year, 1, 1, tzinfo=BERLIN)
        counted.add(1, 0)
    time.at = datetime(2026, 11, 1, tzinfo=BERLIN)
    counted.add(9, 0)
    counted.close()
    found = read_months(tmp_path)
    assert found["2026-11"].sent == 9 and len(found) == KEPT_MONTHS + 1


def test_many_threads_lose_nothing(tmp_path: Path) -> None:
    time = Time()
    counted = meter(tmp_path, time)

    def speak() -> None:
        for _ in range(500):
            counted.add(1, 2)

    threads = [threading.Thread(target=speak) for _ in range(4)]
    for thread in threads:
        thread.start()
    counted.write()
    for thread in threads:
        thread.join()
    counted.close()
    assert read_months(tmp_path)["2026-11"] == Month(sent=2000, received=4000)


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 10**9), st.integers(0, 10**9), st.sampled_from([11, 12]), st.booleans()), max_size=20
    )
)
def test_a_crash_never_doubles_and_loses_only_what_was_not_written(
    steps: list[tuple[int, int, int, bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    home, time = tmp_path_factory.mktemp("home"), Time()
    counted, written = meter(home, time), {11: 0, 12: 0}
    unwritten = dict(written)
    for sent, received, month, is_crash in steps:
        time.at = datetime(2026, month, 1, tzinfo=BERLIN)
        counted.add(sent, received)
        unwritten[month] += sent + received
        if is_crash:
            counted, unwritten = meter(home, time), {11: 0, 12: 0}
        else:
            counted.write()
            written = {number: written[number] + unwritten[number] for number in written}
            unwritten = {11: 0, 12: 0}
    found = read_months(home)
    assert {number: found.get(f"2026-{number}", Month()).total for number in written} == written

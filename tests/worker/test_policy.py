"""A day of a worker, simulated: every limit stops it once, says why, and until when."""

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinylora_worker.gpu import Gpu, GpuProcess
from tinylora_worker.limits import Limits
from tinylora_worker.machine import Machine
from tinylora_worker.policy import Held, Needs, Verdict, Wishes, decide, next_month

from tinylora.protocol.standstill import Reason

BERLIN = ZoneInfo("Europe/Berlin")
GB = 10**9
RESTING = Gpu("GPU-1", 0, "a GPU", 12 * GB, memory_free_bytes=11 * GB, utilisation_percent=0.0, temperature_c=50)
CALM = Machine(
    0.0, has_gpu=True, gpu=RESTING, is_on_battery=False, exclusive_apps=(), temperature_c=50, disk_free_bytes=50 * GB
)
LIMITS = Limits(
    schedule=("Mon-Fri 06:00-24:00", "Sat-Sun"),
    exclusive_apps=("game.exe",),
    max_temp_c=80,
    disk="20GB",
    data_cap="50GB/month",
)
NOON = datetime(2026, 11, 30, 12, tzinfo=BERLIN)  # a Monday, the last of its month
GAME = GpuProcess(7, "render", 4 * GB, 90.0)


class Day:
    """Decides again and again; what was held goes from each decision to the next."""

    def __init__(self, limits: Limits = LIMITS, at: datetime = NOON) -> None:
        self.limits, self.at = limits, at
        self.wishes = Wishes()
        self.machine = CALM
        self.needs = Needs()
        self.held = Held()

    def after(self, seconds: float = 0.0, **changes: object) -> Verdict:
        """So much later, and with the machine changed before that."""
        self.machine = replace(self.machine, **changes)  # pyright: ignore[reportArgumentType]
        for step in _steps(seconds):
            self.at += timedelta(seconds=step)
            self.machine = replace(self.machine, at_s=self.machine.at_s + step)
            self._decide()
        return self._decide()

    def gpu(self, seconds: float = 0.0, **changes: object) -> Verdict:
        gpu = replace(self.machine.gpu or RESTING, **changes)  # pyright: ignore[reportArgumentType]
        return self.after(seconds, gpu=gpu, temperature_c=gpu.temperature_c)

    def _decide(self) -> Verdict:
        verdict = decide(
            self.limits, self.wishes, self.machine, self.at.astimezone(BERLIN), held=self.held, needs=self.needs
        )
        self.held = verdict.held
        return verdict


def _steps(seconds: float) -> Iterator[float]:
    """Seconds, one by one, as an agent would look."""
    while seconds > 0:
        yield min(1.0, seconds)
        seconds -= 1.0


def stands(verdict: Verdict) -> tuple[str | None, str, str | None]:
    """Reason, detail and the local hour of its end."""
    until = verdict.until.strftime("%d %H:%M") if verdict.until else None
    assert verdict.may_work == (verdict.reason is None)
    return (verdict.reason.value if verdict.reason else None), verdict.detail, until


WORKS = (None, "", None)


def test_a_day_in_which_every_limit_stops_it_once() -> None:
    day = Day(at=datetime(2026, 11, 30, 5, 59, 58, tzinfo=BERLIN))
    # before six: not yet; and it goes on by itself
    assert stands(day.after()) == ("schedule", "Mon-Fri 06:00-24:00; Sat-Sun", "30 06:00")
    assert stands(day.after(2)) == WORKS
    # the plug is pulled: at once; put back: after ten quiet seconds
    assert stands(day.after(is_on_battery=True, battery_percent=81.0)) == ("battery", "81 %", None)
    assert stands(day.after(9, is_on_battery=False)) == ("battery", "over, if it stays so", "30 06:00")
    assert day.after().until == day.at + timedelta(seconds=2)
    assert stands(day.after(2)) == WORKS
    # a game
    assert stands(day.after(exclusive_apps=("game.exe",))) == ("exclusive_app", "game.exe", None)
    assert day.after(5, exclusive_apps=()).reason is Reason.EXCLUSIVE_APP
    assert stands(day.after(6)) == WORKS
    # somebody renders on the GPU: a flicker is nothing, three seconds are
    assert stands(day.gpu(3, others=(GAME,))) == WORKS
    assert stands(day.gpu(1)) == ("gpu_busy", "render", None)
    assert day.gpu(59, others=()).reason is Reason.GPU_BUSY
    assert stands(day.gpu(2)) == WORKS
    # heat: from 80 on, until 75
    assert stands(day.gpu(temperature_c=79.9)) == WORKS
    assert stands(day.gpu(temperature_c=80.0)) == ("too_hot", "80 °C; goes on at 75 °C", None)
    assert day.gpu(600, temperature_c=75.5).reason is Reason.TOO_HOT
    assert stands(day.gpu(temperature_c=75.0)) == WORKS
    assert stands(day.gpu(temperature_c=79.9)) == WORKS
    # memory: another program holds it while our trainer is away
    day.needs = Needs(vram_bytes=6 * GB)
    assert stands(day.gpu(memory_free_bytes=5 * GB)) == ("vram", "5.0 GB free, 6.0 GB needed", None)
    assert stands(day.gpu(11, memory_free_bytes=7 * GB)) == WORKS
    assert stands(day.gpu(memory_free_bytes=1 * GB, is_ours_on=True)) == WORKS  # ours is what fills it
    # disk: our own files, then everybody's
    told = "21.0 GB used of 20.0 GB allowed; see `tinylora-worker clean`"
    assert stands(day.after(disk_used_bytes=21 * GB)) == ("disk", told, None)
    assert stands(day.after(disk_used_bytes=19 * GB)) == WORKS
    assert day.after(disk_free_bytes=GB).reason is Reason.DISK
    assert day.after(disk_free_bytes=(1 << 30) + 1).reason is Reason.DISK
    assert stands(day.after(disk_free_bytes=2 * GB)) == WORKS
    # its owner, for two hours
    day.wishes = Wishes(is_paused=True, paused_until=day.at + timedelta(hours=2))
    assert day.after().reason is Reason.USER_PAUSED and day.after().until == day.wishes.paused_until
    day.at += timedelta(hours=2)
    assert stands(day.after()) == WORKS
    # the month's traffic, until the first
    verdict = day.after(month_bytes=50 * GB)
    assert stands(verdict) == ("data_cap", "50.0 GB of 50.0 GB this month", "01 00:00")
    assert not verdict.may_talk
    day.at = datetime(2026, 12, 1, tzinfo=BERLIN)
    assert stands(day.after(month_bytes=0)) == ("schedule", "Mon-Fri 06:00-24:00; Sat-Sun", "01 06:00")
    # and he asks it to finish
    day.at = datetime(2026, 12, 1, 7, tzinfo=BERLIN)
    assert day.after().may_take
    day.wishes = Wishes(is_finishing=True)
    assert day.after().may_work and not day.after().may_take


def test_everything_at_once_is_told_in_its_order() -> None:
    limits = LIMITS.model_copy(update={"schedule": ("00:00-01:00",)})
    day = Day(limits)
    day.wishes, day.needs = Wishes(is_paused=True), Needs(vram_bytes=12 * GB)
    gpu = replace(RESTING, others=(GAME,), temperature_c=95)
    verdict = day.after(
        4,
        is_on_battery=True,
        exclusive_apps=("game.exe",),
        gpu=gpu,
        temperature_c=95,
        disk_free_bytes=0,
        month_bytes=51 * GB,
    )
    pauses = [reason for reason in Reason if reason.is_pause]
    assert {verdict.reason, *verdict.also} == set(pauses)
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "join.md").read_text(encoding="utf-8")
    table = page.split("| reason | ends |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` ", table, flags=re.MULTILINE) == [verdict.reason, *verdict.also]
    assert [verdict.reason, *verdict.also] == [
        Reason.USER_PAUSED,
        Reason.SCHEDULE,
        Reason.BATTERY,
        Reason.EXCLUSIVE_APP,
        Reason.GPU_BUSY,
        Reason.TOO_HOT,
        Reason.VRAM,
        Reason.DISK,
        Reason.DATA_CAP,
    ]
    assert verdict.until is None and not verdict.may_talk and not verdict.may_take


@pytest.mark.parametrize(
    ("lifted", "reason"),
    [
        ({"on_battery": True}, Reason.BATTERY),
        ({"exclusive_apps": ()}, Reason.EXCLUSIVE_APP),
        ({"when_gpu_busy": "share"}, Reason.GPU_BUSY),
        ({"max_temp_c": None}, Reason.TOO_HOT),
        ({"disk": "30GB"}, Reason.DISK),
        ({"data_cap": ""}, Reason.DATA_CAP),
        ({"schedule": ()}, Reason.SCHEDULE),
    ],
)
def test_what_the_owner_lifts_ends_at_once(lifted: dict[str, object], reason: Reason) -> None:
    day = Day(at=datetime(2026, 11, 30, 3, tzinfo=BERLIN))
    gpu = replace(RESTING, others=(GAME,), temperature_c=95)
    changes = {"is_on_battery": True, "exclusive_apps": ("game.exe",), "gpu": gpu, "temperature_c": 95}
    before = day.after(4, **changes, disk_used_bytes=25 * GB, month_bytes=50 * GB)
    assert reason in (before.reason, *before.also)
    day.limits = LIMITS.model_copy(update=lifted)
    after = day.after()
    assert reason not in (after.reason, *after.also)
    assert {before.reason, *before.also} - {after.reason, *after.also} == {reason}


def test_without_any_limit_and_any_sensor_it_works() -> None:
    assert stands(decide(Limits(), Wishes(), Machine(0.0), NOON)) == WORKS


def test_a_sensor_that_falls_silent_changes_nothing() -> None:
    day = Day()
    day.gpu(4, others=(GAME,), temperature_c=90)
    silent = day.after(1000, gpu=None, temperature_c=None)
    assert [silent.reason, *silent.also] == [Reason.GPU_BUSY, Reason.TOO_HOT]
    assert stands(day.after(61, gpu=RESTING, temperature_c=50)) == WORKS
    assert stands(day.after(1000, gpu=None, temperature_c=None)) == WORKS


def test_load_of_others_while_our_trainer_is_away() -> None:
    day = Day()
    assert stands(day.gpu(4, utilisation_percent=35.0)) == ("gpu_busy", "35 % load by others", None)
    assert day.gpu(60, utilisation_percent=10.0).reason is Reason.GPU_BUSY  # and a desktop is none
    assert stands(day.gpu(1)) == WORKS


def test_our_own_load_is_nobody_elses() -> None:
    assert stands(Day().gpu(100, utilisation_percent=100.0, is_ours_on=True)) == WORKS


def test_without_load_by_process_memory_tells_who_came_to_work() -> None:
    day = Day()
    notebook = GpuProcess(8, "jupyter", 3 * GB)
    assert stands(day.gpu(10, others=(notebook,))) == WORKS
    assert stands(day.gpu(100, is_ours_on=True, utilisation_percent=100.0)) == WORKS  # it rested before we came
    small, drawn, newcomer = (
        GpuProcess(9, "small", GB),
        GpuProcess(10, "game", 6 * GB, is_graphics=True),
        GpuProcess(11, "other trainer", 6 * GB),
    )
    assert stands(day.gpu(100, others=(notebook, small, drawn))) == WORKS
    assert stands(day.gpu(4, others=(notebook, newcomer))) == ("gpu_busy", "other trainer", None)
    # We went; it holds its memory, and rests: after a minute we come back, and do not go again because of it.
    assert stands(day.gpu(61, is_ours_on=False, utilisation_percent=0.0)) == WORKS
    assert stands(day.gpu(1000, is_ours_on=True, utilisation_percent=100.0)) == WORKS


def test_a_flickering_plug_is_one_pause() -> None:
    day = Day()
    changes = 0
    may_work = True
    for second in range(60):
        verdict = day.after(1, is_on_battery=second % 4 == 0)
        changes += verdict.may_work != may_work
        may_work = verdict.may_work
    assert changes == 1


def test_a_pause_ends_once_in_an_hour_that_comes_twice() -> None:
    until = datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=BERLIN)  # the second 2:30 of that night
    wishes = Wishes(is_paused=True, paused_until=until)
    assert wishes.at(datetime(2026, 10, 25, 2, 45, fold=0, tzinfo=BERLIN)).is_paused
    assert not wishes.at(datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=BERLIN)).is_paused
    assert wishes.at(datetime(2026, 10, 25, 2, 29, fold=1, tzinfo=BERLIN)) == wishes


def test_the_next_month() -> None:
    assert next_month(datetime(2026, 12, 31, 23, tzinfo=BERLIN)) == datetime(2027, 1, 1, tzinfo=BERLIN)
    assert next_month(datetime(2026, 1, 31, tzinfo=BERLIN)) == datetime(2026, 2, 1, tzinfo=BERLIN)


@given(
    looks=st.lists(
        st.tuples(
            st.sampled_from([None, True, False]),
            st.sampled_from([None, 60.0, 76.0, 85.0]),
            st.sampled_from([None, 0.0, 50.0]),
            st.integers(1, 12),
        ),
        max_size=12,
    )
)
def test_it_never_works_against_a_reading_and_always_comes_back(
    looks: list[tuple[bool | None, float | None, float | None, int]],
) -> None:
    day = Day(Limits(max_temp_c=80))
    for is_on_battery, temperature_c, load, seconds in looks:
        gpu = None if load is None else replace(RESTING, utilisation_percent=load)
        verdict = day.after(seconds, is_on_battery=is_on_battery, temperature_c=temperature_c, gpu=gpu)
        if is_on_battery or (temperature_c or 0) >= 80 or ((load or 0) >= 20 and seconds > 4):
            assert not verdict.may_work
        assert verdict.may_work == (verdict.reason is None) and (verdict.reason is None or verdict.reason.is_pause)
    assert day.after(62, is_on_battery=False, temperature_c=60.0, gpu=RESTING).may_work

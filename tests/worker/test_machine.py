"""Sensors that are there, missing or broken."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pynvml
import pytest
from tinylora_worker.limits import Limits
from tinylora_worker.machine import HEAT_EVERY_S, PROGRAMS_EVERY_S, Machine, Sensors, folder_bytes, free_bytes
from tinylora_worker.programs import TRAINER, all_programs, is_descendant, is_younger_trainer, name_of, own, running

from tests.worker.fake_nvml import FakeGpu, FakeNvml

NO_NVML = FakeNvml(init_error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)


class System:
    """Stands where psutil would."""

    def __init__(self, battery: object = None, heat: object = None) -> None:
        self.battery, self.heat = battery, heat
        self.n_asked = 0

    def sensors_battery(self) -> object:
        return self._answer(self.battery)

    def sensors_temperatures(self) -> object:
        return self._answer({} if self.heat is None else self.heat)

    def _answer(self, answer: object) -> object:
        self.n_asked += 1
        if isinstance(answer, Exception):
            raise answer
        return answer


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def sensors(home: Path, **parts: object) -> Sensors:
    given = {"nvml": NO_NVML, "system": System(), "clock": Clock(), "environment": {}} | parts
    return Sensors(home, **given)  # pyright: ignore[reportArgumentType]


def plug(is_in: bool | None) -> SimpleNamespace:
    return SimpleNamespace(percent=40, power_plugged=is_in)


def heat(**chips: list[float]) -> dict[str, list[SimpleNamespace]]:
    return {chip: [SimpleNamespace(current=value) for value in values] for chip, values in chips.items()}


@pytest.mark.parametrize(
    ("battery", "is_on_battery", "percent"),
    [
        (None, False, None),  # a desktop
        (plug(True), False, 40),
        (plug(False), True, 40),
        (plug(None), None, 40),  # it cannot tell
        (FileNotFoundError("/sys"), None, None),
        (AttributeError("no such function"), None, None),
    ],
)
def test_power(tmp_path: Path, battery: object, is_on_battery: bool | None, percent: float | None) -> None:
    found = sensors(tmp_path, system=System(battery)).read(Limits())
    assert (found.is_on_battery, found.battery_percent) == (is_on_battery, percent)


@pytest.mark.parametrize(
    ("readings", "celsius"),
    [
        (heat(nvme=[99.0], coretemp=[50.0, 61.0], acpitz=[27.8]), 61.0),
        (heat(acpitz=[27.8]), 27.8),
        (heat(k10temp=[0.0, 255.0], acpitz=[30.0]), 30.0),  # a sensor that tells nonsense
        (heat(nvme=[40.0]), None),
        (OSError("gone"), None),
        (AttributeError("macOS"), None),
    ],
)
def test_heat_of_a_machine_without_gpu(tmp_path: Path, readings: object, celsius: float | None) -> None:
    found = sensors(tmp_path, system=System(heat=readings)).read(Limits())
    assert found.temperature_c == celsius and not found.has_gpu and found.problems == ()
    limited = sensors(tmp_path, system=System(heat=readings)).read(Limits(max_temp_c=80))
    assert bool(limited.problems) == (celsius is None)


def test_with_a_gpu_its_heat_counts_and_on_a_processor_that_of_the_processor(tmp_path: Path) -> None:
    nvml, system = FakeNvml(FakeGpu(temperature=77)), System(heat=heat(coretemp=[50.0]))
    found = sensors(tmp_path, nvml=nvml, system=system)
    assert found.read(Limits()).temperature_c == 77 and found.read(Limits()).has_gpu
    for limits, kind in ((Limits(gpu="cpu"), ""), (Limits(), "cpu")):
        machine = found.read(limits, device_kind=kind)
        assert machine.temperature_c == 50 and not machine.has_gpu and machine.gpu is None


def test_a_lost_gpu_is_a_problem_and_no_processor(tmp_path: Path) -> None:
    gpu = FakeGpu()
    found = sensors(tmp_path, nvml=FakeNvml(gpu), system=System(heat=heat(coretemp=[50.0])))
    found.read(Limits())
    gpu.errors["all"] = pynvml.NVML_ERROR_GPU_IS_LOST
    machine = found.read(Limits())
    assert machine.has_gpu and machine.gpu is None and machine.temperature_c is None
    assert "GPU is lost" in machine.problems[0]


def test_on_battery_a_sleeping_gpu_is_not_woken(tmp_path: Path) -> None:
    nvml = FakeNvml(FakeGpu())
    found = sensors(tmp_path, nvml=nvml, system=System(plug(False)))
    assert found.read(Limits()).gpu is None and nvml.n_inits == 0
    assert found.read(Limits(on_battery=True)).gpu is not None
    assert found.read(Limits(), trainer_pid=os.getpid()).gpu is not None  # it is awake


def test_what_is_slow_to_ask_is_asked_every_few_seconds(tmp_path: Path) -> None:
    clock, system, looks = Clock(), System(), []

    def programs() -> Iterator[tuple[int, str]]:
        looks.append(clock.now_s)
        yield 5, "Game.exe"

    found = sensors(tmp_path, clock=clock, system=system, programs=programs)
    limits = Limits(exclusive_apps=("game",))
    assert found.read(Limits()).exclusive_apps == () and looks == []  # nobody asked for programs
    for _ in range(3):
        assert found.read(limits).exclusive_apps == ("game",)
    assert looks == [0.0] and system.n_asked == 2
    assert found.read(Limits(exclusive_apps=("other",))).exclusive_apps == ()  # another list is looked for at once
    clock.now_s = max(PROGRAMS_EVERY_S, HEAT_EVERY_S)
    assert found.read(limits).exclusive_apps == ("game",) and system.n_asked == 4


def test_programs_that_cannot_be_listed_are_unknown(tmp_path: Path) -> None:
    def programs() -> Iterator[tuple[int, str]]:
        raise psutil.AccessDenied()

    assert sensors(tmp_path, programs=programs).read(Limits(exclusive_apps=("game",))).exclusive_apps is None


@pytest.mark.parametrize("wanted", ["game", "GAME.EXE", "C:\\Games\\game.exe", "/opt/game"])
def test_names_of_programs(wanted: str) -> None:
    assert running([wanted, "absent"], [(1, "init"), (5, "Game.exe")], frozenset()) == (wanted,)
    assert running([wanted], [(5, "game")], frozenset({5})) == ()


def test_this_machine_as_it_is(tmp_path: Path) -> None:
    found = Sensors(tmp_path)
    machine = found.read(Limits(exclusive_apps=("python", "python3", "pytest"), disk="1GB"), month_bytes=5)
    found.close()
    assert isinstance(machine, Machine) and machine.month_bytes == 5 and machine.disk_used_bytes == 0
    assert machine.disk_free_bytes and machine.at_s > 0
    assert (os.getpid(), name_of(os.getpid())) in list(all_programs())


@contextmanager
def child(name: str = "") -> Iterator[int]:
    """A process that has begun, and ends with the context."""
    program = "import sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline()
        yield process.pid
        process.communicate()


def began(pid: int) -> float:
    return psutil.Process(pid).create_time()


def test_a_trainer_that_began_after_ours_is_younger() -> None:
    with child(TRAINER) as first, child("other") as other, child(TRAINER) as last:
        assert is_younger_trainer(last, own(first)) == (began(last) > began(first))
        assert is_younger_trainer(last, own(None)) and not is_younger_trainer(first, own(last))
        assert not is_younger_trainer(other, own(None))
    assert not is_younger_trainer(last, own(None))


def test_a_childs_child_is_a_descendant() -> None:
    with child() as pid:
        assert is_descendant(pid, own(None)) and is_descendant(pid, own(pid))
        assert not is_descendant(os.getppid(), own(pid))
    assert name_of(pid) is None and not is_descendant(pid, own(None))


def test_bytes_of_a_folder_and_room_where_it_would_be(tmp_path: Path) -> None:
    (tmp_path / "ä b").mkdir()
    (tmp_path / "ä b" / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "ä b" / "file")
    assert folder_bytes(tmp_path) == 5 and folder_bytes(tmp_path / "none") == 0
    assert free_bytes(tmp_path / "not" / "yet") == pytest.approx(free_bytes(tmp_path), rel=0.1)

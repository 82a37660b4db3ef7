"""What the machine says of itself: power, programs, disk, heat, and the device that trains.

`Sensors.read` makes one `Machine`. Whatever has no sensor here is None, and a sensor that fails is None, too: nothing
of it ends a worker. What is slow to ask is asked every few seconds only.
"""

import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import psutil

from tinylora_worker.gpu import Gpu, GpuSensor
from tinylora_worker.limits import Limits
from tinylora_worker.programs import all_programs, own, running

POWER_EVERY_S = 2.0
PROGRAMS_EVERY_S = 3.0
HEAT_EVERY_S = 5.0
DISK_FREE_EVERY_S = 5.0
DISK_USED_EVERY_S = 60.0
CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal", "acpitz")
"""Of the kernel's names for what measures a CPU: the surest first."""

T = TypeVar("T")


@dataclass(frozen=True)
class Machine:
    """One look at everything; None wherever there is no sensor."""

    at_s: float
    """When, on a clock that never goes back."""
    has_gpu: bool = False
    """Whether the device that trains is a GPU whose driver answers, or did: then silence is a fault."""
    gpu: Gpu | None = None
    is_on_battery: bool | None = None
    battery_percent: float | None = None
    exclusive_apps: tuple[str, ...] | None = None
    """Those of the limits' programs that run."""
    temperature_c: float | None = None
    """Of the device that trains: the GPU, or else the CPU."""
    disk_used_bytes: int | None = None
    """By this worker's own files."""
    disk_free_bytes: int | None = None
    """Where they lie."""
    month_bytes: int = 0
    """Traffic of this calendar month, both ways."""
    problems: tuple[str, ...] = ()
    """What a sensor that should tell something says instead, one sentence each."""


class Sensors:
    """Reads the machine; one for a process, for any of its threads.

    Args:
        home: Whose files count, and whose disk.
        nvml: The module `pynvml`, or one like it; imported if not given.
        system: The module `psutil`, or one like it.
        programs: All programs that run.
        clock: Seconds, never going back.
        wall: Seconds since 1970.
        environment: Of this process.
    """

    def __init__(
        self,
        home: Path,
        *,
        nvml: Any = None,
        system: Any = psutil,
        programs: Callable[[], Iterable[tuple[int, str]]] = all_programs,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._lock = threading.Lock()
        self._home = home
        self._system = system
        self._programs = programs
        self._clock = clock
        self._gpu = GpuSensor(nvml or _nvml(), clock=clock, wall=wall, environment=environment)
        self._power = _Kept[tuple[bool | None, float | None]](POWER_EVERY_S, clock)
        self._apps = _Kept[tuple[str, ...] | None](PROGRAMS_EVERY_S, clock)
        self._apps_of: tuple[str, ...] = ()
        self._heat = _Kept[float | None](HEAT_EVERY_S, clock)
        self._free = _Kept[int | None](DISK_FREE_EVERY_S, clock)
        self._used = _Kept[int](DISK_USED_EVERY_S, clock)

    def read(
        self, limits: Limits, *, trainer_pid: int | None = None, device_kind: str = "", month_bytes: int = 0
    ) -> Machine:
        """One look at everything.

        Args:
            limits: Say which device and which programs to look for.
            trainer_pid: Of our child while it runs.
            device_kind: What the trainer found it trains on, "cuda", "mps" or "cpu"; empty before it told.
            month_bytes: Traffic of this month, as the meter has it.
        """
        with self._lock:
            return self._read(limits, trainer_pid, device_kind, month_bytes)

    def close(self) -> None:
        """Let go of the driver's library."""
        with self._lock:
            self._gpu.close()

    def _read(self, limits: Limits, trainer_pid: int | None, device_kind: str, month_bytes: int) -> Machine:
        ours = own(trainer_pid)
        is_on_battery, percent = self._power.get(self._ask_power)
        kind = limits.device or device_kind
        is_gpu = kind not in ("cpu", "mps")
        # On battery without leave, the GPU is left asleep: a look through its driver would wake it.
        may_ask = is_gpu and (limits.on_battery or not is_on_battery or trainer_pid is not None)
        gpu = self._gpu.read(limits.cuda_device, ours, is_ours_on=trainer_pid is not None) if may_ask else None
        has_gpu = is_gpu and self._gpu.has_seen(limits.cuda_device)
        temperature_c = self._temperature(gpu, has_gpu, kind)
        problems = [self._gpu.problem] if is_gpu and self._gpu.problem else []
        if limits.max_temp_c is not None and temperature_c is None and (may_ask or not is_gpu):
            problems.append("max_temp_c cannot hold: no sensor tells the temperature of the device that trains")
        return Machine(
            at_s=self._clock(),
            has_gpu=has_gpu,
            gpu=gpu,
            is_on_battery=is_on_battery,
            battery_percent=percent,
            exclusive_apps=self._exclusive_apps(limits.exclusive_apps, ours),
            temperature_c=temperature_c,
            disk_used_bytes=self._used.get(lambda: folder_bytes(self._home)) if limits.disk else None,
            disk_free_bytes=self._free.get(lambda: free_bytes(self._home)),
            month_bytes=month_bytes,
            problems=tuple(problems),
        )

    def _ask_power(self) -> tuple[bool | None, float | None]:
        try:
            battery = self._system.sensors_battery()
        except Exception:  # each system has errors of its own here, and a few systems no such function
            return None, None
        if battery is None:
            return False, None
        plugged = battery.power_plugged
        return (None if plugged is None else not plugged), float(battery.percent)

    def _exclusive_apps(self, wanted: tuple[str, ...], ours: frozenset[int]) -> tuple[str, ...] | None:
        if wanted != self._apps_of:
            self._apps_of = wanted
            self._apps.forget()
        return self._apps.get(lambda: self._look_for(wanted, ours)) if wanted else ()

    def _look_for(self, wanted: tuple[str, ...], ours: frozenset[int]) -> tuple[str, ...] | None:
        try:
            return running(wanted, self._programs(), ours)
        except Exception:  # as above
            return None

    def _temperature(self, gpu: Gpu | None, has_gpu: bool, kind: str) -> float | None:
        if has_gpu:
            return gpu.temperature_c if gpu is not None else None
        return self._heat.get(self._ask_heat) if kind != "mps" else None

    def _ask_heat(self) -> float | None:
        try:
            found = self._system.sensors_temperatures()
        except Exception:  # as above; macOS and Windows have no such function
            return None
        for name in CPU_SENSORS:
            readings = [reading.current for reading in found.get(name, ()) if 0 < reading.current < 150]
            if readings:
                return float(max(readings))
        return None


class _Kept(Generic[T]):
    """An answer that is good for some seconds."""

    def __init__(self, every_s: float, clock: Callable[[], float]) -> None:
        self._every_s, self._clock = every_s, clock
        self._answer: tuple[float, T] | None = None

    def get(self, ask: Callable[[], T]) -> T:
        now_s = self._clock()
        if self._answer is None or now_s - self._answer[0] >= self._every_s:
            self._answer = now_s, ask()
        return self._answer[1]

    def forget(self) -> None:
        self._answer = None


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; links count as nothing, and what vanishes meanwhile does neither."""
    total = 0
    for root, _folders, files in os.walk(folder):
        for name in files:
            try:
                found = os.lstat(os.path.join(root, name))
            except OSError:
                continue
            total += 0 if stat.S_ISLNK(found.st_mode) else found.st_size
    return total


def free_bytes(folder: Path) -> int | None:
    """Space that this user may still fill where a folder is or would be; None if nobody tells."""
    place = next((place for place in (folder, *folder.absolute().parents) if place.is_dir()), None)
    try:
        return shutil.disk_usage(place).free if place is not None else None
    except OSError:
        return None


def _nvml() -> Any:
    import pynvml

    return pynvml

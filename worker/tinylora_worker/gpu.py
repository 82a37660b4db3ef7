"""The GPU that would train, by its driver's own library (NVML): load, heat, memory, and who else is on it.

Nothing here uses the device: NVML needs no context on it. Where it tells nothing, None is said, and a driver that
fails is asked again a minute later.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tinylora_worker.programs import is_descendant, is_younger_trainer, name_of

RETRY_S = 60.0
WINDOW_S = 5.0
"""Over which the load of a process is averaged."""


@dataclass(frozen=True)
class GpuProcess:
    """A program that is neither ours nor our child's, on the device that would train."""

    pid: int
    name: str = ""
    """Empty where the system does not tell."""
    memory_bytes: int | None = None
    utilisation_percent: float | None = None
    """Of the device's cores, over the last seconds; None where the driver does not tell it by process."""
    is_graphics: bool = False
    """It draws, and does not compute: a desktop, a game."""


@dataclass(frozen=True)
class Gpu:
    """The device that would train, as its driver sees it; None wherever it tells nothing."""

    uuid: str
    index: int
    name: str
    memory_total_bytes: int
    memory_free_bytes: int | None = None
    ours_bytes: int | None = None
    """Of its memory, held by us and our child."""
    is_ours_on: bool = False
    """Whether our trainer runs on it: then its load is not that of others alone."""
    utilisation_percent: float | None = None
    temperature_c: float | None = None
    watts: float | None = None
    others: tuple[GpuProcess, ...] = ()


class GpuSensor:
    """Reads one device; keeps the library open between two looks.

    Args:
        nvml: The module `pynvml`, or one like it.
        clock: Seconds, never going back.
        wall: Seconds since 1970: the driver dates its samples so.
        environment: Of this process: CUDA_VISIBLE_DEVICES is heeded where the owner chose no device.
        name_of_pid: Name of a running program; None if there is none of that number.
        is_ours: Whether a process is one of these or a descendant.
        stands_back: Whether a process makes room for us by itself: it is no reason to stop.
    """

    def __init__(
        self,
        nvml: Any,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
        environment: Mapping[str, str],
        name_of_pid: Callable[[int], str | None] = name_of,
        is_ours: Callable[[int, frozenset[int]], bool] = is_descendant,
        stands_back: Callable[[int, frozenset[int]], bool] = is_younger_trainer,
    ) -> None:
        self._nvml = nvml
        self._clock, self._wall = clock, wall
        self._environment = environment
        self._name_of_pid, self._is_ours, self._stands_back = name_of_pid, is_ours, stands_back
        self._is_open = False
        self._retry_at_s = float("-inf")
        self._seen: set[str] = set()
        self.problem = ""
        """What the driver says in place of an answer; empty where it answers, and where there is no such driver."""

    def read(self, wanted: str, ours: frozenset[int], *, is_ours_on: bool) -> Gpu | None:
        """One look at the device; None while it tells nothing.

        Args:
            wanted: Number of a device in the order of the bus, or a UUID or its beginning; empty means the one with the
                most memory, as the trainer chooses.
            ours: Processes that are ours; their descendants are, too.
            is_ours_on: Whether our trainer runs on it.
        """
        if not self._is_open and self._clock() < self._retry_at_s:
            return None
        try:
            self._open()
            handle, index = self._find(wanted)
            gpu = self._look(handle, index, ours, is_ours_on)
        except Exception as error:  # NVMLError, and whatever a library of other people's raises: it must not end us
            self._fail(error, wanted)
            return None
        self._seen.add(wanted)
        self.problem = ""
        return gpu

    def has_seen(self, wanted: str) -> bool:
        """Whether this device ever answered: then silence is a fault, and not the lack of a GPU."""
        return wanted in self._seen

    def close(self) -> None:
        """Let go of the library."""
        if self._is_open:
            self._is_open = False
            with suppress(Exception):
                self._nvml.nvmlShutdown()

    def _open(self) -> None:
        if not self._is_open:
            self._nvml.nvmlInit()
            self._is_open = True

    def _fail(self, error: Exception, wanted: str) -> None:
        self._retry_at_s = self._clock() + RETRY_S
        self.close()
        nvml = self._nvml
        absent = (nvml.NVML_ERROR_LIBRARY_NOT_FOUND, nvml.NVML_ERROR_DRIVER_NOT_LOADED)
        is_absent = isinstance(error, _Missing) or getattr(error, "value", None) in absent
        # A machine without such a GPU has no fault, unless its owner named one.
        is_fault = not is_absent or wanted in self._seen or bool(wanted)
        self.problem = f"the NVIDIA driver tells nothing of GPU {wanted or '(any)'}: {error}" if is_fault else ""

    def _find(self, wanted: str) -> tuple[Any, int]:
        """Handle and number of a device."""
        if wanted:
            return self._named(wanted)
        devices = [self._named(name) for name in self._visible()]
        if not devices:
            raise _Missing("no device is visible")
        return max(devices, key=lambda device: (self._nvml.nvmlDeviceGetMemoryInfo(device[0]).total, -device[1]))

    def _named(self, name: str) -> tuple[Any, int]:
        n_devices = self._nvml.nvmlDeviceGetCount()
        if name.isdecimal():
            if int(name) >= n_devices:
                raise _Missing(f"device {name} is not one of its {n_devices}")
            return self._nvml.nvmlDeviceGetHandleByIndex(int(name)), int(name)
        for index in range(n_devices):
            handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
            if self._uuid(handle).lower().startswith(name.lower()):
                return handle, index
        if name.upper().startswith("MIG-"):
            return self._nvml.nvmlDeviceGetHandleByUUID(name), -1
        raise _Missing(f"none of its {n_devices} devices is {name}")

    def _visible(self) -> Iterator[str]:
        """The devices that CUDA shows to our child, which inherits our environment."""
        visible = self._environment.get("CUDA_VISIBLE_DEVICES")
        if visible is None:
            yield from map(str, range(self._nvml.nvmlDeviceGetCount()))
            return
        for name in map(str.strip, visible.split(",")):
            if not name or name.startswith("-"):
                return  # as CUDA reads it: what comes after is hidden, too
            yield name

    def _uuid(self, handle: Any) -> str:
        return _text(self._nvml.nvmlDeviceGetUUID(handle))

    def _look(self, handle: Any, index: int, ours: frozenset[int], is_ours_on: bool) -> Gpu:
        nvml = self._nvml
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)  # whoever answers nothing else is lost
        load = self._told(nvml.nvmlDeviceGetUtilizationRates, handle)
        milliwatts = self._told(nvml.nvmlDeviceGetPowerUsage, handle)
        mine, others = self._processes(handle, ours, is_ours_on)
        return Gpu(
            uuid=self._uuid(handle),
            index=index,
            name=_text(nvml.nvmlDeviceGetName(handle)),
            memory_total_bytes=int(memory.total),
            memory_free_bytes=int(memory.free),
            ours_bytes=_sum(mine),
            is_ours_on=is_ours_on,
            utilisation_percent=float(load.gpu) if load is not None else None,
            temperature_c=self._told(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            watts=milliwatts / 1000 if milliwatts is not None else None,
            others=tuple(others),
        )

    def _processes(
        self, handle: Any, ours: frozenset[int], is_ours_on: bool
    ) -> tuple[list[int | None], list[GpuProcess]]:
        """Memory of our processes, and those of others."""
        computing = {p.pid: p for p in self._told(self._nvml.nvmlDeviceGetComputeRunningProcesses, handle) or ()}
        drawing = {p.pid: p for p in self._told(self._nvml.nvmlDeviceGetGraphicsRunningProcesses, handle) or ()}
        loads = self._loads(handle)
        mine: list[int | None] = []
        others: list[GpuProcess] = []
        for pid, process in sorted((drawing | computing).items()):
            if self._is_ours(pid, ours):
                mine.append(process.usedGpuMemory)
                continue
            name = self._name_of_pid(pid)
            if name is None and is_ours_on:
                continue  # of another number space, as seen from a container: it may as well be our own trainer
            if is_ours_on and self._stands_back(pid, ours):
                continue
            load = loads.get(pid, 0.0) if loads is not None else None
            others.append(GpuProcess(pid, name or "", process.usedGpuMemory, load, pid not in computing))
        return mine, others

    def _loads(self, handle: Any) -> dict[int, float] | None:
        """Load by process over the last seconds, percent; None where the driver does not tell it."""
        nvml = self._nvml
        since_us = int((self._wall() - WINDOW_S) * 1e6)
        try:
            samples = nvml.nvmlDeviceGetProcessUtilization(handle, since_us)
        except nvml.NVMLError as error:
            self._pass_on_if_lost(error)
            # No samples are no load; pynvml raises its "success" where the driver has none to give.
            return {} if error.value in (nvml.NVML_SUCCESS, nvml.NVML_ERROR_NOT_FOUND) else None
        loads: dict[int, list[float]] = {}
        for sample in samples:
            if sample.timeStamp > since_us:
                loads.setdefault(sample.pid, []).append(min(100.0, float(sample.smUtil)))
        return {pid: sum(found) / len(found) for pid, found in loads.items()}

    def _told(self, ask: Callable[..., Any], *arguments: Any) -> Any:
        """The answer, or None where this device does not have one."""
        try:
            return ask(*arguments)
        except self._nvml.NVMLError as error:
            self._pass_on_if_lost(error)
            return None

    def _pass_on_if_lost(self, error: Any) -> None:
        lost = ("GPU_IS_LOST", "RESET_REQUIRED", "UNINITIALIZED", "DRIVER_NOT_LOADED", "LIB_RM_VERSION_MISMATCH")
        if error.value in {getattr(self._nvml, f"NVML_ERROR_{name}") for name in lost}:
            raise error


def _sum(amounts: list[int | None]) -> int | None:
    """Of amounts that are all known, and at least one."""
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if known and len(known) == len(amounts) else None


class _Missing(Exception):
    """There is no such device."""


def cuda_devices(nvml: Any) -> Iterator[tuple[int, str, str]]:
    """Number, UUID and name of each device of this machine; none where there is no driver."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return
    try:
        for index in range(nvml.nvmlDeviceGetCount()):
            with suppress(nvml.NVMLError):
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                yield index, _text(nvml.nvmlDeviceGetUUID(handle)), _text(nvml.nvmlDeviceGetName(handle))
    finally:
        with suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _text(found: str | bytes) -> str:
    """Older versions of the library speak bytes."""
    return found.decode() if isinstance(found, bytes) else found

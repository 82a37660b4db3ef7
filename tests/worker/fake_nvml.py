"""A driver's library whose devices do as they are told: busy, hot, full, lost."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pynvml


@dataclass
class FakeGpu:
    """One device; a number in `errors` is what the function of that name fails with."""

    uuid: str = "GPU-00000000-aaaa"
    name: str = "NVIDIA GeForce RTX 3060"
    total: int = 12 * 2**30
    free: int = 11 * 2**30
    load: int = 0
    temperature: int = 45
    milliwatts: int = 30_000
    computing: dict[int, int | None] = field(default_factory=dict)
    drawing: dict[int, int | None] = field(default_factory=dict)
    loads: list[tuple[int, int, float]] = field(default_factory=list)
    """(process, load in percent, when in seconds since 1970)."""
    errors: dict[str, int] = field(default_factory=dict)


class FakeNvml:
    """Stands where `pynvml` would; what is not faked is the real module's."""

    def __init__(self, *gpus: FakeGpu, init_error: int | None = None) -> None:
        self.gpus = gpus
        self.init_error = init_error
        self.n_inits = 0
        self.n_shutdowns = 0

    def __getattr__(self, name: str) -> object:
        if name.startswith(("NVML_", "NVMLError")):
            return getattr(pynvml, name)
        raise AttributeError(name)

    def nvmlInit(self) -> None:
        if self.init_error is not None:
            raise pynvml.NVMLError(self.init_error)
        self.n_inits += 1

    def nvmlShutdown(self) -> None:
        self.n_shutdowns += 1

    @property
    def is_open(self) -> bool:
        return self.n_inits > self.n_shutdowns

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        return self._answer(self.gpus[index], "handle", self.gpus[index])

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> FakeGpu:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def nvmlDeviceGetUUID(self, gpu: FakeGpu) -> str:
        return gpu.uuid

    def nvmlDeviceGetName(self, gpu: FakeGpu) -> bytes:
        return gpu.name.encode()

    def nvmlDeviceGetMemoryInfo(self, gpu: FakeGpu) -> SimpleNamespace:
        return self._answer(gpu, "memory", SimpleNamespace(total=gpu.total, free=gpu.free, used=gpu.total - gpu.free))

    def nvmlDeviceGetUtilizationRates(self, gpu: FakeGpu) -> SimpleNamespace:
        return self._answer(gpu, "load", SimpleNamespace(gpu=gpu.load, memory=0))

    def nvmlDeviceGetTemperature(self, gpu: FakeGpu, sensor: int) -> int:
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return self._answer(gpu, "temperature", gpu.temperature)

    def nvmlDeviceGetPowerUsage(self, gpu: FakeGpu) -> int:
        return self._answer(gpu, "power", gpu.milliwatts)

    def nvmlDeviceGetComputeRunningProcesses(self, gpu: FakeGpu) -> list[SimpleNamespace]:
        return self._answer(gpu, "computing", _processes(gpu.computing))

    def nvmlDeviceGetGraphicsRunningProcesses(self, gpu: FakeGpu) -> list[SimpleNamespace]:
        return self._answer(gpu, "drawing", _processes(gpu.drawing))

    def nvmlDeviceGetProcessUtilization(self, gpu: FakeGpu, since_us: int) -> list[SimpleNamespace]:
        found = [
            SimpleNamespace(pid=pid, smUtil=load, timeStamp=int(at_s * 1e6))
            for pid, load, at_s in self._answer(gpu, "loads", gpu.loads)
            if at_s * 1e6 > since_us
        ]
        if not found:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return found

    def _answer(self, gpu: FakeGpu, question: str, answer):
        assert self.is_open, "asked while it is closed"
        if (error := gpu.errors.get(question, gpu.errors.get("all"))) is not None:
            raise pynvml.NVMLError(error)
        return answer


def _processes(memory: dict[int, int | None]) -> list[SimpleNamespace]:
    return [SimpleNamespace(pid=pid, usedGpuMemory=amount) for pid, amount in memory.items()]

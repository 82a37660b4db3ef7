"""How much memory training takes on a device: what is free before, and the peak of what ran since.

Three devices, three ways of knowing. CUDA counts for itself. Metal keeps what it has taken, so that what is taken
afterwards is the peak. Of main memory the process's resident size is sampled, and the system's own record of its peak
is used where it rose.
"""

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import psutil
import torch

from tinylora.training.devices import CONTEXT_BYTES
from tinylora.training.out_of_memory import give_memory_back

SAMPLE_S = 0.005
SPARED_SHARE = 0.1
"""Of the main memory that is available, a share that is left to the machine's owner."""


@dataclass(frozen=True)
class Taken:
    """Bytes of one attempt."""

    peak: int
    before: int
    """Of it, taken already when the attempt began: by the base above all."""
    allowed: int
    """That this process may take: the limit, or what was free and what it had."""

    @property
    def is_within(self) -> bool:
        """Whether the peak was allowed."""
        return self.peak <= self.allowed

    @property
    def free(self) -> int:
        """Left at the peak."""
        return max(0, self.allowed - self.peak)


@runtime_checkable
class Meter(Protocol):
    """Measures one attempt after the other."""

    must_begin_small: bool
    """Whether an attempt that is too large harms: main memory has no allocator that says no."""

    def begin(self) -> None:
        """An attempt begins."""

    def end(self) -> Taken:
        """It has ended, well or not."""
        ...


class CudaMeter:
    """A CUDA device, as torch's allocator counts it, and CUDA's own part by a round number."""

    must_begin_small = False

    def __init__(self, device: torch.device, limit_bytes: int = 0) -> None:
        self._device, self._limit = device, limit_bytes
        self._before = self._allowed = 0

    def begin(self) -> None:
        """Give back what is cached, and look at what is free."""
        give_memory_back()
        torch.cuda.reset_peak_memory_stats(self._device)
        free, _ = torch.cuda.mem_get_info(self._device)
        self._before = torch.cuda.memory_reserved(self._device) + CONTEXT_BYTES
        self._allowed = min(self._before + free, self._limit or sys.maxsize)

    def end(self) -> Taken:
        """The highest that was reserved."""
        peak = torch.cuda.max_memory_reserved(self._device) + CONTEXT_BYTES
        return Taken(peak, self._before, self._allowed)


class MpsMeter:
    """Metal, whose memory is the machine's: what the driver has taken for this process."""

    must_begin_small = False

    def __init__(self, limit_bytes: int = 0) -> None:
        self._limit = limit_bytes
        self._before = self._allowed = 0

    def begin(self) -> None:
        """Give back what is cached."""
        give_memory_back()
        self._before = torch.mps.driver_allocated_memory()
        self._allowed = min(torch.mps.recommended_max_memory(), self._limit or sys.maxsize)

    def end(self) -> Taken:
        """Its cache has grown to the peak."""
        torch.mps.synchronize()
        return Taken(torch.mps.driver_allocated_memory(), self._before, self._allowed)


class MainMemoryMeter:
    """This process's resident memory, sampled while the attempt runs.

    Args:
        limit_bytes: 0 is none.
        resident: Bytes of this process now.
        available: Bytes that the machine could give.
        record: The highest that this process ever had, as the system knows it; 0 where it does not.
    """

    must_begin_small = True

    def __init__(
        self,
        limit_bytes: int = 0,
        *,
        resident: Callable[[], int] = lambda: psutil.Process().memory_info().rss,
        available: Callable[[], int] = lambda: psutil.virtual_memory().available,
        record: Callable[[], int] | None = None,
    ) -> None:
        self._limit, self._resident, self._available = limit_bytes, resident, available
        self._record = record or peak_resident_bytes
        self._before = self._allowed = self._peak = self._record_before = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Start to sample."""
        give_memory_back()
        self._before = self._peak = self._resident()
        self._record_before = self._record()
        to_have = self._before + int((1 - SPARED_SHARE) * self._available())
        self._allowed = min(to_have, self._limit or sys.maxsize)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, args=(self._ended,), daemon=True)
        self._thread.start()

    def _sample(self, ended: threading.Event) -> None:
        while not ended.wait(SAMPLE_S):
            self._peak = max(self._peak, self._resident())

    def end(self) -> Taken:
        """Stop to sample."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        record = self._record()
        peak = max(self._peak, self._resident(), record if record > self._record_before else 0)
        return Taken(peak, self._before, self._allowed)


def peak_resident_bytes() -> int:
    """The most main memory that this process ever had; 0 where the system does not tell."""
    if sys.platform == "win32":
        return getattr(psutil.Process().memory_info(), "peak_wset", 0)
    import resource  # there is none on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def meter_of(device: torch.device, limit_bytes: int = 0) -> Meter:
    """The meter of a device."""
    if device.type == "cuda":
        return CudaMeter(device, limit_bytes)
    return MpsMeter(limit_bytes) if device.type == "mps" else MainMemoryMeter(limit_bytes)

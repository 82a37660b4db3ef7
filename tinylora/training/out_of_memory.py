"""Out of memory: how it shows, and stepping down until the same work fits.

CUDA, MPS, cuBLAS and the CPU's allocator say it in different words. Whatever ran out, the work is undone, memory that
nothing holds is given back, and the work is done again in smaller parts: half the windows at once, down to one, then
with gradient checkpointing. What does not fit then does not fit this machine.
"""

import errno
import gc
import logging
from collections.abc import Callable
from typing import TypeAlias, TypeVar

import torch

from tinylora.errors import OutOfMemory
from tinylora.training.fit import Fit

log = logging.getLogger(__name__)

T = TypeVar("T")

OnStepDown: TypeAlias = Callable[[Fit, str], None]
"""Hears what is trained with from now on, and why, in one sentence."""

_SIGNS = (
    "out of memory",  # CUDA, HIP, MPS, and the driver behind bitsandbytes
    "outofmemory",
    "out_of_memory",
    "memoryallocation",
    "alloc_failed",  # CUBLAS_STATUS_ALLOC_FAILED and its kin
    "not enough memory",  # the CPU's allocator
    "can't allocate memory",
    "cannot allocate memory",
    "insufficient_resources",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, the device's or the machine's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError | OutOfMemory):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)


def give_memory_back() -> None:
    """Give what nothing holds any more back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


class Fitting:
    """What this machine trains with now; it gets smaller when memory runs out, and never larger again.

    Args:
        fit: At first.
        on_step_down: Hears about every step down.
    """

    def __init__(self, fit: Fit, on_step_down: OnStepDown | None = None) -> None:
        self.fit = fit
        self._on_step_down = on_step_down

    def attempt(self, n_windows: int, work: Callable[[Fit], T], undo: Callable[[], None] | None = None) -> T:
        """Do some work, in ever smaller parts until memory holds it.

        Args:
            n_windows: That the work is on.
            work: Is told how much at once; begun anew after every failure.
            undo: Puts everything back as it was before the work; called after a failure.

        Raises:
            OutOfMemory: A single window with gradient checkpointing does not fit.
        """
        while True:
            try:
                return work(self.fit)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
            # Here, after the error and its traceback are gone, which hold the tensors of the failed pass.
            self._step_down(n_windows, reason)
            give_memory_back()
            if undo is not None:
                undo()

    def _step_down(self, n_windows: int, reason: str) -> None:
        smaller = self.fit.step_down(n_windows)
        if smaller is None:
            raise OutOfMemory(
                f"not even one window fits into memory, with gradient checkpointing ({reason}); close what else uses "
                "the device, raise the memory limit, or load the base quantised (nf4)"
            )
        sentence = f"out of memory with {self.fit} ({reason}); going on with {smaller}"
        log.warning("%s", sentence)
        self.fit = smaller
        if self._on_step_down is not None:
            self._on_step_down(smaller, sentence)

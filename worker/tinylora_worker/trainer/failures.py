"""Errors on their way from the trainer to the agent: a kind, a sentence, and a code where there is one."""

import logging
from collections.abc import Callable

from tinylora import errors
from tinylora.errors import OutOfMemory, TinyLoraError
from tinylora_worker.wire.worker_pb2 import Failure

DEVICE_LOST, UNEXPECTED = "DeviceLost", "Unexpected"
_MAX_SENTENCE = 1000
log = logging.getLogger(__name__)


class Unexpected(TinyLoraError):
    """The trainer met with an error that nobody foresaw; its log has the rest."""


def failure_of(error: BaseException, *, is_out_of_memory: Callable[[BaseException], bool]) -> Failure:
    """What to tell of an error; the traceback of one that was not foreseen goes into the log, and nowhere else.

    Args:
        error: What was raised.
        is_out_of_memory: Tells whether it means that memory did not suffice.
    """
    if isinstance(error, TinyLoraError):
        return Failure(kind=type(error).__name__, message=str(error)[:_MAX_SENTENCE], code=error.rule)
    log.error("unforeseen", exc_info=error)
    first_line = str(error).strip().partition("\n")[0][:_MAX_SENTENCE]
    if is_out_of_memory(error):
        return Failure(kind=OutOfMemory.__name__, message=f"the device's memory does not suffice: {first_line}")
    kind = DEVICE_LOST if is_device_lost(error) else UNEXPECTED
    return Failure(kind=kind, message=f"{type(error).__name__}: {first_line or 'no reason given'}")


def is_device_lost(error: BaseException) -> bool:
    """Whether the device's context is broken: nothing works in this process any more.

    torch raises `AcceleratorError` for what the CUDA runtime reports, a plain `RuntimeError` in some places.
    """
    words = str(error)
    return type(error).__name__ == "AcceleratorError" or (isinstance(error, RuntimeError) and "CUDA error" in words)


def error_of(failure: Failure) -> TinyLoraError:
    """The error that a failure tells of."""
    kind = getattr(errors, failure.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, TinyLoraError)):
        kind = Unexpected
    return kind(failure.message, rule=failure.code)

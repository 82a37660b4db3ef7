"""The canary audit on the text that is loaded: how much of made-up secrets training would give away."""

from collections.abc import Callable

from tinylora.config import RunSettings
from tinylora.training import Fit
from tinylora.training.canary import audit
from tinylora_worker.trainer.loading import Resident
from tinylora_worker.trainer.reporting import Pace
from tinylora_worker.wire.worker_pb2 import CanaryEvent, CanaryReport, CanaryRequest, Progress


def exposures(
    resident: Resident,
    fit: Fit,
    request: CanaryRequest,
    tell: Callable[[CanaryEvent], None],
    clock: Callable[[], float],
) -> CanaryReport:
    """Train on a copy of the text with planted secrets, and measure; text and base are as they were afterwards.

    Args:
        resident: What is loaded.
        fit: What a step is cut into.
        request: How many secrets, how often, for how long.
        tell: Hears about steps.
        clock: Seconds.

    Raises:
        SettingError: Fewer than one secret or repetition.
        DataError: The text is too small for the run's windows.
        OutOfMemory: A step does not fit.
    """
    pace = Pace(clock)

    def on_step(node: str, step: int, loss: float, tokens_per_s: float) -> None:
        n_done = step + 1
        if pace.is_due() or n_done == request.n_steps:
            progress = Progress(node=node, step=n_done, n_steps=request.n_steps, loss=loss, tokens_per_s=tokens_per_s)
            tell(CanaryEvent(progress=progress))

    found = audit(
        resident.base,
        RunSettings.model_validate_json(request.settings_json),
        resident.shard,
        n_canaries=request.n_canaries,
        n_repeats=request.n_repeats,
        n_steps=request.n_steps,
        seed=request.seed,
        fit=fit,
        on_step=on_step,
    )
    return CanaryReport(exposures_bits=found.bits, most_bits=found.most_bits, n_extracted=found.n_extracted)

"""What fits on this machine of a run: looked up, or found by real steps and remembered; and what power that took."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch

import tinylora
from tinylora.config import RunSettings
from tinylora.training import Fit
from tinylora.training.devices import Chosen
from tinylora.training.sizing import find_fit
from tinylora_worker.trainer import measured
from tinylora_worker.trainer.loading import Resident
from tinylora_worker.trainer.measured import Conditions
from tinylora_worker.trainer.reporting import to_wire
from tinylora_worker.wire import worker_pb2 as wire

POWER_EVERY_S = 0.1
_ADAPTERS = ("adapter", "rank", "ranks", "depth", "where", "router_feature", "router_dim")
_SHAPE = ("window_tokens", "batch_windows", *_ADAPTERS)
"""Settings that a step's memory depends on."""


def sizes(resident: Resident, settings: RunSettings, home: Path, *, again: bool) -> wire.Fit:
    """What this machine can train of a run.

    Args:
        resident: What is loaded.
        settings: Of the run.
        home: Where sizes are remembered.
        again: Find it anew even if it is known.

    Raises:
        OutOfMemory: Nothing fits; `rule` says whether a quantised base would help.
    """
    conditions = conditions_of(resident, settings)
    known = None if again else measured.recall(home, conditions)
    if known is not None:
        return known
    request, chosen = resident.request, resident.chosen
    with highest_power(chosen) as watts:
        found = find_fit(
            resident.base,
            settings,
            limit_bytes=conditions.memory_limit_bytes,
            quantise=request.quantise,
            max_rank=request.max_rank,
            max_leaves=chosen.max_leaves,
        )
    fit = to_wire(found.fit)
    fit.peak_bytes, fit.free_bytes = found.peak_bytes, found.free_bytes
    fit.tokens_per_s, fit.watts = found.tokens_per_s, max(watts, default=0.0)
    measured.remember(home, conditions, fit)
    return fit


def conditions_of(resident: Resident, settings: RunSettings) -> Conditions:
    """What a size depends on. The limit is the device's: of main memory its owner limits nothing."""
    request, chosen = resident.request, resident.chosen
    return Conditions(
        device=chosen.name,
        dtype=chosen.dtype,
        quantise=request.quantise,
        memory_limit_bytes=0 if chosen.kind == "cpu" else request.vram_limit_bytes,
        n_threads=torch.get_num_threads(),
        max_rank=request.max_rank,
        max_leaves=chosen.max_leaves,
        base_fingerprint=resident.base.facts.fingerprint,
        settings=json.dumps(settings.model_dump(mode="json", include=set(_SHAPE)), sort_keys=True),
        versions=f"tinylora {tinylora.__version__}, torch {torch.__version__}, transformers {version('transformers')}",
    )


def from_wire(fit: wire.Fit) -> Fit:
    """As the runner takes it."""
    return Fit(
        micro_windows=fit.micro_windows,
        gradient_checkpointing=fit.gradient_checkpointing,
        quantise=fit.quantise,
        max_rank=fit.max_rank,
        max_leaves=fit.max_leaves,
    )


def power_of(chosen: Chosen) -> Callable[[], float] | None:
    """Reads the watts that a device takes; None where nobody tells."""
    return (lambda: torch.cuda.power_draw(chosen.index) / 1000) if chosen.kind == "cuda" else None


@contextmanager
def highest_power(
    chosen: Chosen, read: Callable[[], float] | None = None, *, every_s: float = POWER_EVERY_S
) -> Iterator[list[float]]:
    """Within it the device's watts are read now and then; yields the readings."""
    readings: list[float] = []
    read, over = read or power_of(chosen), threading.Event()

    def look() -> None:
        while read is not None and not over.wait(every_s):
            try:
                readings.append(read())
            except Exception:  # whatever a driver's library raises: what a step needs is found without it
                return

    looker = threading.Thread(target=look, name="power", daemon=True)
    looker.start()
    try:
        yield readings
    finally:
        over.set()
        looker.join()

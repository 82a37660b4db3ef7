"""Sizes that were found once, by real steps, and need not be found again: HOME/measured.json.

What was found counts for the same device, base, settings, limit and versions, and for nothing else. The file is no more
than a memory: where it is missing, damaged or cannot be written, sizes are found anew.
"""

import logging
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from tinylora import durable
from tinylora_worker.wire.worker_pb2 import Fit

FILE = "measured.json"
MOST = 20
"""Findings that are kept, the latest."""
_STEP = "worker.measured"
durable.register_file(_STEP)
log = logging.getLogger(__name__)


class Conditions(BaseModel):
    """What a size was found for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str
    dtype: str
    quantise: str
    memory_limit_bytes: int
    n_threads: int
    max_rank: int
    max_leaves: int
    base_fingerprint: str
    settings: str
    """Of the run, as JSON: those that a step's memory depends on."""
    versions: str
    """Of what computes."""


class _Found(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    conditions: Conditions
    micro_windows: int
    gradient_checkpointing: bool
    quantise: str
    max_rank: int
    max_leaves: int
    peak_bytes: int
    free_bytes: int
    tokens_per_s: float
    watts: float


_all: TypeAdapter[tuple[_Found, ...]] = TypeAdapter(tuple[_Found, ...])
_FIELDS = tuple(name for name in _Found.model_fields if name != "conditions")


def recall(home: Path, conditions: Conditions) -> Fit | None:
    """What was found under these conditions."""
    found = next((found for found in _read(home / FILE) if found.conditions == conditions), None)
    return None if found is None else Fit(**{name: getattr(found, name) for name in _FIELDS})


def remember(home: Path, conditions: Conditions, fit: Fit) -> None:
    """Keep what was found, in place of what was found before under these conditions."""
    new = _Found(conditions=conditions, **{name: getattr(fit, name) for name in _FIELDS})
    others = [found for found in _read(home / FILE) if found.conditions != conditions]
    kept = (new, *others)[:MOST]
    try:
        durable.replace_file(home / FILE, _all.dump_json(kept, indent=1) + b"\n", name=_STEP)
    except OSError as error:
        log.warning("%s: %s; sizes will be found again next time", home / FILE, error.strerror or error)


def _read(file: Path) -> tuple[_Found, ...]:
    try:
        return _all.validate_json(file.read_bytes())
    except FileNotFoundError:
        return ()
    except (OSError, ValidationError):
        log.warning("%s: not readable; sizes are found again", file)
        return ()

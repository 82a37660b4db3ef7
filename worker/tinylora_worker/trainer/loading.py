"""What a trainer holds from its first job on: a device, a base on it, and the worker's text in tokens."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from tinylora.base_model import LoadedBase, load_base
from tinylora.errors import BaseModelError
from tinylora.reading.examples import read_examples
from tinylora.shards import Shard, load_shard
from tinylora.training.devices import Chosen, choose_device, is_finite_in, limit_memory, total_memory
from tinylora.training.out_of_memory import give_memory_back
from tinylora_worker.trainer import downloads
from tinylora_worker.wire.worker_pb2 import Loaded, LoadEvent, LoadProgress, LoadRequest

log = logging.getLogger(__name__)
TOKENS = "tokens"
"""Folder in a home for the tokens of its data."""

Tell = Callable[[LoadEvent], None]


@dataclass(frozen=True, eq=False)
class Resident:
    """What was loaded, and how it was asked for."""

    request: LoadRequest
    chosen: Chosen
    base: LoadedBase
    shard: Shard
    layout: str
    """Of the first text: "text", "messages", "prompt+completion"."""

    def loaded(self, seconds: float) -> Loaded:
        """For the agent.

        Args:
            seconds: That it took.
        """
        return Loaded(
            base_facts_json=self.base.facts.model_dump_json(),
            device=self.chosen.name,
            device_kind=self.chosen.kind,
            dtype=self.chosen.dtype,
            dtype_reason=self.chosen.reason,
            n_train_documents=len(self.shard.train),
            n_heldout_documents=len(self.shard.heldout),
            n_tokens=self.shard.n_tokens,
            layout=self.layout,
            seconds=seconds,
        )


def load(request: LoadRequest, home: Path, tell: Tell) -> Resident:
    """Choose a device, load the base onto it, check that it is the run's, and read the text.

    Args:
        request: What to load.
        home: Where the tokens are kept.
        tell: Hears how far it is.

    Raises:
        BaseModelError: The base cannot be loaded, or is not the one that the run needs.
        DataError: There is no usable text, or something in it was not allowed.
        SettingError: There is no such device, or it cannot do what was asked for.
        StorageError: The tokens cannot be written.
    """
    if request.cpu_threads:
        torch.set_num_threads(request.cpu_threads)
    chosen = choose_device(request.device, request.dtype)
    request.vram_limit_bytes = strictest_limit(request, total_memory(chosen))
    limit_memory(chosen, request.vram_limit_bytes)
    tell(LoadEvent(progress=LoadProgress(stage="base")))
    with downloads.watched(downloads.cache_of(request.base), partial(_tell_downloaded, tell)):
        chosen, base = _load_base(request, chosen)
    log.info("%s, %s", chosen.name, chosen.reason)
    check_fingerprint(base, request.base_fingerprint)
    tell(LoadEvent(progress=LoadProgress(stage="data")))
    paths, columns = [Path(path) for path in request.data], dict(request.columns)
    shard = load_shard(paths, base, columns=columns, allow=list(request.allow), cache=home / TOKENS)
    first = next(read_examples(paths, columns=columns), None)
    return Resident(request, chosen, base, shard, "" if first is None else first.layout)


def strictest_limit(request: LoadRequest, total_bytes: int) -> int:
    """The stricter of the two limits that a request may have; 0: none."""
    return min(
        (limit for limit in (request.vram_limit_bytes, int(request.vram_share * total_bytes)) if limit), default=0
    )


def _load_base(request: LoadRequest, chosen: Chosen) -> tuple[Chosen, LoadedBase]:
    """The base, in fp32 where it leaves the range of fp16 and fp16 was not asked for."""
    base = _base_in(request, chosen)
    if chosen.dtype != "fp16" or request.dtype == "fp16" or is_finite_in(base):
        return chosen, base
    del base
    give_memory_back()
    wider = replace(chosen, dtype="fp32", reason=f"fp32: this base leaves the range of fp16, and {chosen.reason}")
    return wider, _base_in(request, wider)


def _base_in(request: LoadRequest, chosen: Chosen) -> LoadedBase:
    return load_base(
        request.base,
        dtype=chosen.torch_dtype,
        quantise=request.quantise or None,
        device=chosen.device,
        feature_dim=request.feature_dim or 256,
    )


def _tell_downloaded(tell: Tell, n_bytes: int) -> None:
    tell(LoadEvent(progress=LoadProgress(stage="base", downloaded_bytes=n_bytes)))


def check_fingerprint(base: LoadedBase, expected: str) -> None:
    """Check that this is the run's base.

    Raises:
        BaseModelError: It is another one.
    """
    if expected and base.facts.fingerprint != expected:
        raise BaseModelError(
            f"base model: this run needs one with fingerprint {expected[:16]}, {base.facts.base_id} has "
            f"{base.facts.fingerprint[:16]}; give the run's own base with --base"
        )

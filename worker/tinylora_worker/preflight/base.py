"""Where the run's base is on this machine: a folder, or the hub's cache. Nobody is asked for it."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from tinylora.config import BaseFacts
from tinylora.demo.experiment import place_of_base
from tinylora_worker.preflight.facts import BasePlace
from tinylora_worker.preflight.looking import may_write

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
BYTES_PER_WEIGHT = 2
"""Most bases are published in 16 bits."""
EMBEDDING_SHARE = 0.15
"""Of a base's weights, outside of its blocks' linears; rough: 0.05 in large ones, above 0.3 in the smallest."""


def find_base(given: str, facts: BaseFacts | None, *, cache: Path, is_offline: bool = False) -> BasePlace:
    """Where the base is that the trainer shall load.

    Args:
        given: What `--base` said; empty: the run's own.
        facts: The run's base; None where no coordinator was asked.
        cache: Of the hub, see `hub_cache`.
        is_offline: The hub may not be asked.
    """
    name = place_of_base(given) or ("" if facts is None else facts.base_id)
    if not name:
        return BasePlace("", None, trouble="no base was named, and no run to ask for it")
    folder = Path(name).expanduser()
    if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
        return BasePlace(name, None, trouble=f"{folder}: this user may not read it")
    if (folder / "config.json").is_file():
        return BasePlace(str(folder), folder)
    if (cached := _in_cache(name, cache)) is not None:
        is_hub_id = _HUB_ID.fullmatch(name) is not None
        return BasePlace(name if is_hub_id else str(cached), cached)
    if folder.is_dir():
        return BasePlace(name, None, trouble=f"{folder}: no config.json in it: not a base model")
    if _HUB_ID.fullmatch(name) is None:
        return BasePlace(name, None, trouble=f"{name}: neither a folder here, nor in {cache}, nor the id of a hub")
    if is_offline:
        return BasePlace(name, None, trouble=f"{name}: not in {cache}, and HF_HUB_OFFLINE forbids a download")
    if not may_write(cache):
        return BasePlace(name, None, trouble=f"{name}: {cache} cannot be written", is_cache_closed=True)
    return BasePlace(name, None, download_bytes=0 if facts is None else download_bytes(facts))


def download_bytes(facts: BaseFacts) -> int:
    """About how large the base's files are, from the shapes of its linears."""
    in_linears = sum(shape.n_layers * shape.in_features * shape.out_features for shape in facts.projections.values())
    return round(in_linears * (1 + EMBEDDING_SHARE) * BYTES_PER_WEIGHT)


def hub_cache(environment: Mapping[str, str]) -> Path:
    """The hub's cache, as `huggingface_hub` finds it."""
    if place := environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE"):
        return Path(place).expanduser()
    home = environment.get("HF_HOME") or os.path.join(
        environment.get("XDG_CACHE_HOME") or os.path.join("~", ".cache"), "huggingface"
    )
    return Path(home).expanduser() / "hub"


def is_offline(environment: Mapping[str, str]) -> bool:
    """Whether the hub may not be asked, as `huggingface_hub` reads it."""
    return environment.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _in_cache(name: str, cache: Path) -> Path | None:
    """The latest snapshot of a model, or a folder of that name beside them."""
    if ".." in Path(name).parts or Path(name).is_absolute():
        return None
    snapshots = cache / f"models--{name.replace('/', '--')}" / "snapshots"
    for place in [*_by_age(snapshots), cache / name]:
        if (place / "config.json").is_file():
            return place
    return None


def _by_age(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir(), key=lambda place: place.stat().st_mtime, reverse=True)
    except OSError:
        return []

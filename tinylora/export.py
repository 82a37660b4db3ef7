"""A tree leaves our formats: one leaf as an ordinary PEFT adapter, for transformers, PEFT and servers that know those.

A leaf's update is the sum over its path. The adapters on the path stand side by side in one, their ranks added up,
which is exact. So whoever uses the leaf alone gets what our model gives when every token is routed to it (hard). What
soft routing makes of several leaves at once, no single adapter can be.

Names in an adapter's file are those of the base's own modules, which a bundle does not know: `Places` are found in the
base's config (`find`), or were noted when the run was made.
"""

import errno
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from tinylora import tensors
from tinylora.bundle import Bundle
from tinylora.derive import leaf_state
from tinylora.errors import DiskFull, SettingError, StorageError
from tinylora.tensors import Tensors
from tinylora.tree import NodePath, is_under

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "adapter_config.json", "adapter_model.safetensors", "README.md"
_PREFIX = "base_model.model."
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Places(BaseModel):
    """Where a base has its projections."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    modules: dict[str, tuple[str, ...]]
    """By projection: the modules' names, in the order of layers."""
    is_transposed: bool = False
    """Whether their weights are kept as (in, out), as GPT-2's are."""

    @classmethod
    def find(cls, where: str | Path) -> "Places":
        """Of a base in a folder or the hub's local cache; its config is enough.

        Raises:
            BaseModelError: There is no config that transformers knows.
        """
        from tinylora.base_model import find_places  # transformers takes seconds to load

        modules, is_transposed = find_places(where)
        return cls(modules=modules, is_transposed=is_transposed)

    @classmethod
    def read(cls, file: Path) -> "Places":
        """As `to_json` wrote them.

        Raises:
            SettingError: The file is missing, or says something else.
        """
        try:
            return cls.model_validate_json(file.read_bytes())
        except (OSError, ValidationError):
            raise SettingError(f"{file}: does not say where the base has its projections; give the base") from None

    def to_json(self) -> str:
        """One document."""
        return self.model_dump_json(indent=1) + "\n"


@dataclass(frozen=True)
class Card:
    """What the model card tells besides what a bundle knows."""

    n_steps: int | None = None
    """Optimiser steps that the leaf has had."""
    bundle_sha256: str = ""
    """Of the bundle that it was taken from."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    rank: int
    """Highest of its projections."""
    n_bytes: int
    nodes: tuple[NodePath, ...]
    """Whose adapters are in it, the root's first."""


def export_leaf(
    bundle: Bundle, leaf: NodePath, out_dir: Path, *, places: Places, base: str = "", card: Card | None = None
) -> Exported:
    """Write one leaf as a folder that PEFT loads: adapter_config.json, adapter_model.safetensors, README.md.

    Args:
        bundle: As read from a file, or as `release.make_bundle` makes it of a run. Nested and tied adapters are written
            out as plain LoRAs.
        leaf: Its path.
        out_dir: Made if it is not there; files in it are replaced.
        places: Where the base has its projections.
        base: For `base_model_name_or_path`: the hub id or folder that readers load; that of the bundle if not given.
        card: Further facts for the model card.

    Raises:
        SettingError: There is no such leaf, nobody has trained it, or the places are those of another base.
        StorageError: The folder cannot be written.
    """
    if leaf not in bundle.topology.leaves:
        known = ", ".join(path or "root" for path in bundle.topology.leaves[:16])
        raise SettingError(f"leaf {leaf or 'root'}: the tree has no such leaf; it has {known}")
    nodes = tuple(sorted((path for path in bundle.nodes if is_under(leaf, path)), key=len))
    if not nodes:
        raise SettingError(f"leaf {leaf or 'root'}: nobody has trained it, so there is nothing to export")
    _check_places(bundle, places)
    state = _as_stored(leaf_state(bundle, leaf), bundle, nodes)
    named = dict(_peft_tensors(state, places))
    base = base or bundle.base.base_id
    config = _config(bundle, state, places, base)
    texts = {CONFIG_FILE: _json(config), CARD_FILE: _card(bundle, leaf, nodes, config, base, card or Card())}
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        with (out_dir / WEIGHTS_FILE).open("wb") as out:
            out.writelines(tensors.to_pieces(named, {"format": "pt"}))
        for name, text in texts.items():
            (out_dir / name).write_text(text, encoding="utf-8")
    except OSError as error:
        kind = DiskFull if error.errno in _FULL else StorageError
        raise kind(f"{out_dir}: cannot be written: {error.strerror or error}; choose another place") from None
    n_bytes = sum((out_dir / name).stat().st_size for name in (WEIGHTS_FILE, *texts))
    return Exported(out_dir, config["r"] if not config["rank_pattern"] else _highest(config), n_bytes, nodes)


# --- tensors ---------------------------------------------------------------------------------------------------------


def _check_places(bundle: Bundle, places: Places) -> None:
    for projection, shape in sorted(bundle.base.projections.items()):
        found = places.modules.get(projection, ())
        if len(found) != shape.n_layers:
            raise SettingError(
                f"projection {projection}: base {bundle.base.base_id} has {shape.n_layers} layers of it, the base that "
                f"was looked at has {len(found)}; give the base that the run is on"
            )


def _as_stored(state: Tensors, bundle: Bundle, nodes: Sequence[NodePath]) -> Tensors:
    """In the dtype that all adapters on the path have, where they are only laid side by side: no bit is lost."""
    dtypes = {tensor.dtype for node in nodes for tensor in bundle.nodes[node].values()}
    is_exact = bundle.spec.kind != "tied" and len(dtypes) == 1
    return {name: tensor.to(next(iter(dtypes))) for name, tensor in state.items()} if is_exact else state


def _peft_tensors(state: Tensors, places: Places) -> Iterator[tuple[str, torch.Tensor]]:
    """One pair for each module, by the names under which PEFT saves them."""
    for name, stacked in sorted(state.items()):
        projection, _, part = name.rpartition(".")
        for module, tensor in zip(places.modules[projection], stacked, strict=True):
            yield f"{_PREFIX}{module}.{part}.weight", tensor.contiguous()


# --- configuration ---------------------------------------------------------------------------------------------------


def _config(bundle: Bundle, state: Tensors, places: Places, base: str) -> dict[str, Any]:
    """PEFT's own fields. The scale is `alpha / r`, and ours is the same for every rank: so is alpha in proportion."""
    ranks = {name.rpartition(".")[0]: stacked.shape[1] for name, stacked in state.items() if name.endswith("lora_A")}
    (usual, _), *_ = Counter(ranks.values()).most_common(1)
    others = {projection: rank for projection, rank in sorted(ranks.items()) if rank != usual}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": None,
        "inference_mode": True,
        "r": usual,
        "lora_alpha": _number(bundle.scale * usual),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": places.is_transposed,
        "init_lora_weights": True,
        "modules_to_save": None,
        "target_modules": sorted({target for projection in ranks for target in _targets(projection, places)}),
        "rank_pattern": {target: rank for name, rank in others.items() for target in _targets(name, places)},
        "alpha_pattern": {
            target: _number(bundle.scale * rank) for name, rank in others.items() for target in _targets(name, places)
        },
    }


def _targets(projection: str, places: Places) -> tuple[str, ...]:
    """The projection's name, where every module ends with it; else all modules one by one."""
    modules = places.modules[projection]
    return (projection,) if all(module.endswith(f".{projection}") for module in modules) else modules


def _number(value: float) -> int | float:
    return int(value) if float(value).is_integer() else float(value)


def _highest(config: Mapping[str, Any]) -> int:
    return max(config["r"], *config["rank_pattern"].values())


def _json(config: Mapping[str, Any]) -> str:
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


# --- the model card --------------------------------------------------------------------------------------------------


def _card(
    bundle: Bundle, leaf: NodePath, nodes: Sequence[NodePath], config: Mapping[str, Any], base: str, card: Card
) -> str:
    told = leaf or "root"
    facts = {
        "run": bundle.run,
        "leaf": f"{told}, of a tree with {len(bundle.topology.leaves)} leaves",
        "made of the adapters of": ", ".join(node or "root" for node in nodes),
        "rank": f"{_highest(config) if config['rank_pattern'] else config['r']}, scale {bundle.scale:g}",
        "kind in the tree": f"{bundle.spec}, written out as plain LoRA",
        "steps": "" if card.n_steps is None else str(card.n_steps),
        "contributors": f"{len(bundle.contributors)} workers in the whole run",
        "base": f"{bundle.base.base_id}, fingerprint {bundle.base.fingerprint}",
        "taken from bundle": card.bundle_sha256,
    }
    rows = "\n".join(f"| {name} | {_plain(value)} |" for name, value in facts.items() if value)
    return f"""---
base_model: {json.dumps(base)}
library_name: peft
tags:
- lora
- tinylora
---

# Leaf {told} of {_plain(bundle.run)}

One leaf of a binary tree of LoRA adapters, trained by many workers together with TinyLoRA, as an ordinary PEFT adapter.

It is exact for hard routing: for text that the run's router sends to this leaf alone, the base with this adapter gives
what the whole tree gives. Where a router mixes leaves (soft), no single adapter does. The router is not in here; it is
in the run's bundle.

| | |
| --- | --- |
{rows}

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({json.dumps(base)})
model = PeftModel.from_pretrained(base, "path/to/this/folder")
```
"""


def _plain(text: str) -> str:
    """One cell of a table, whatever a run is called."""
    return " ".join(text.replace("|", "/").replace("<", "(").replace(">", ")").split())

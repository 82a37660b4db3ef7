"""The folder that PEFT calls an adapter: its file names, the names of its tensors, its configuration.

    adapter_config.json         peft_type LORA, r, lora_alpha, target_modules, rank_pattern, the base's name
    adapter_model.safetensors   base_model.model.<module>.lora_A.weight (r, in) and .lora_B.weight (out, r)
    README.md                   the model card

The scale of a module is lora_alpha / r. Ours is the same for all ranks, so alpha is in proportion to the rank.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from tinylora import tensors
from tinylora.derive.paths import ranks_of
from tinylora.export.origin import Origin
from tinylora.export.places import Places
from tinylora.tensors import Tensors

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "adapter_config.json", "adapter_model.safetensors", "README.md"
PREFIX = "base_model.model."


def peft_tensors(state: Tensors, places: Places) -> Iterator[tuple[str, torch.Tensor]]:
    """One pair for each module, by the names under which PEFT saves them."""
    for name, stacked in sorted(state.items()):
        projection, _, part = name.rpartition(".")
        for module, tensor in zip(places.modules[projection], stacked, strict=True):
            yield f"{PREFIX}{module}.{part}.weight", tensor.contiguous()


def peft_config(state: Tensors, places: Places, scale: float, origin: Origin) -> dict[str, Any]:
    """PEFT's own fields; ranks that differ from the most frequent one stand in patterns."""
    ranks = ranks_of(state)
    (usual, _), *_ = Counter(ranks.values()).most_common(1)
    others = {name: rank for name, rank in sorted(ranks.items()) if rank != usual}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": origin.base,
        "revision": origin.revision,
        "inference_mode": True,
        "r": usual,
        "lora_alpha": _number(scale * usual),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": places.is_transposed,
        "init_lora_weights": True,
        "modules_to_save": None,
        "target_modules": sorted({target for projection in ranks for target in places.targets(projection)}),
        "rank_pattern": {target: rank for name, rank in others.items() for target in places.targets(name)},
        "alpha_pattern": {
            target: _number(scale * rank) for name, rank in others.items() for target in places.targets(name)
        },
    }


def write_adapter(folder: Path, state: Tensors, places: Places, config: Mapping[str, Any], card: str) -> int:
    """Fill a folder; returns its bytes.

    Raises:
        OSError: The folder cannot be written.
    """
    named = dict(peft_tensors(state, places))
    with (folder / WEIGHTS_FILE).open("wb") as out:
        out.writelines(tensors.to_pieces(named, {"format": "pt"}))
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
    return sum((folder / name).stat().st_size for name in (WEIGHTS_FILE, CONFIG_FILE, CARD_FILE))


def _number(value: float) -> int | float:
    return int(value) if float(value).is_integer() else float(value)

"""What a stranger's adapter_config.json says, and whether we can do the same; nothing in it is trusted.

A configuration is refused where it means more than pairs of A and B beside linears: then an import would be another
function than PEFT's. A field that we do not know is refused as soon as it is set to anything.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tinylora.config import MAX_RANK
from tinylora.errors import ProtocolError, SettingError
from tinylora.export.peft_format import CONFIG_FILE

_MAX_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_REFUSED = {
    "use_dora": "DoRA, which scales the base's own weights",
    "lora_bias": "biases",
    "modules_to_save": "whole modules beside the adapter",
    "trainable_token_indices": "rows of the embeddings",
    "target_parameters": "adapters on experts that are stored as one tensor",
    "alora_invocation_tokens": "an adapter that acts after certain tokens alone (aLoRA)",
    "layer_replication": "layers that the base does not have",
    "use_qalora": "QALoRA, which pools the inputs",
    "arrow_config": "a router of PEFT's own (Arrow)",
}
_WITHOUT_MEANING = {
    *("peft_type", "task_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias"),  # read here
    *("auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "init_lora_weights"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"),  # tensors tell
    *("lora_dropout", "runtime_config", "megatron_core", "megatron_config", "qalora_group_size", "ensure_weight_tying"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),  # how training began
}
_BEGINNINGS = (True, False, "gaussian", "eva", "orthogonal")
"""Of `init_lora_weights`: those that leave the base as it is. PiSSA, OLoRA, CorDA and LoftQ change its weights."""


@dataclass(frozen=True)
class AdapterConfig:
    """What is read of an adapter's configuration."""

    rank: int
    alpha: float
    is_stabilised: bool
    """rsLoRA: the scale is alpha / sqrt(rank) (Kalajdzievski 2023, arXiv:2312.03732)."""
    ranks: Mapping[str, int]
    """By the end of a module's name; the others have `rank`."""
    alphas: Mapping[str, float]
    base: str
    """What its makers called the base."""

    def rank_of(self, module: str) -> int:
        """Rank of the adapter on one module."""
        return _by_ending(self.ranks, module, self.rank)

    def scale_of(self, module: str) -> float:
        """What B A is multiplied by on one module."""
        rank = self.rank_of(module)
        return _by_ending(self.alphas, module, self.alpha) / (math.sqrt(rank) if self.is_stabilised else rank)


def read_config(folder: Path) -> AdapterConfig:
    """Read the configuration of an adapter folder.

    Raises:
        SettingError: It is none of a plain LoRA.
        ProtocolError: It is not readable.
    """
    file = folder / CONFIG_FILE
    fields = _load(file)
    _check_kind(file, fields)
    alpha, is_stabilised = fields.get("lora_alpha", 8), fields.get("use_rslora") or False
    if not _is_number(alpha) or not isinstance(is_stabilised, bool):
        _refuse(file, f"lora_alpha {alpha!r}, use_rslora {is_stabilised!r}: expected a number and true or false")
    return AdapterConfig(
        rank=_rank(file, fields.get("r", 8)),
        alpha=float(alpha),
        is_stabilised=is_stabilised,
        ranks={key: _rank(file, value) for key, value in _pattern(file, fields, "rank_pattern").items()},
        alphas={key: float(value) for key, value in _pattern(file, fields, "alpha_pattern").items()},
        base=str(fields.get("base_model_name_or_path") or ""),
    )


def _load(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise SettingError(f"{file}: no such file; expected a folder that PEFT's save_pretrained wrote")
    try:
        if file.stat().st_size > _MAX_BYTES:
            _refuse(file, f"expected at most {_MAX_BYTES} bytes, got {file.stat().st_size}")
        fields = json.loads(file.read_text(encoding="utf-8"), parse_constant=lambda text: _refuse(file, f"{text}"))
    except (OSError, ValueError, RecursionError) as error:
        raise ProtocolError(f"{file}: not readable as JSON: {type(error).__name__}", rule="json") from None
    if not isinstance(fields, dict):
        _refuse(file, f"expected an object, got {type(fields).__name__}")
    return fields


def _check_kind(file: Path, fields: dict[str, Any]) -> None:
    kind = fields.get("peft_type")
    if kind != "LORA":
        raise SettingError(f"{file}: an adapter of type {str(kind)[:40]}; only LORA can be imported")
    task = fields.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise SettingError(f"{file}: an adapter for {str(task)[:40]}; only CAUSAL_LM can be imported")
    if fields.get("bias", "none") not in (None, "none"):
        raise SettingError(f"{file}: it holds biases (bias = {str(fields['bias'])[:20]}), which a leaf cannot")
    begun = fields.get("init_lora_weights", True)
    if begun not in _BEGINNINGS:
        raise SettingError(
            f"{file}: init_lora_weights = {str(begun)[:40]}: it was trained on a changed base; convert it first "
            "(PEFT: save_pretrained with path_initial_model_for_weight_conversion)"
        )
    for field, value in fields.items():
        if field not in _WITHOUT_MEANING and value not in (None, False, "", [], {}):
            what = _REFUSED.get(field, "something that this version does not know")
            raise SettingError(f"{file}: {field[:60]} is set: it holds {what}, which a leaf cannot")


def _pattern(file: Path, fields: dict[str, Any], field: str) -> dict[str, Any]:
    """By the end of a module's name. PEFT takes any regular expression; a stranger's are not run here."""
    found = fields.get(field) or {}
    if not isinstance(found, dict) or not all(map(_is_number, found.values())):
        _refuse(file, f"{field}: expected numbers by name")
    named = {key.replace("\\.", ".").removeprefix("^"): value for key, value in found.items()}
    for key in named:
        if not _NAME.fullmatch(key):
            raise SettingError(f"{file}: {field}: {key[:60]!r} is an expression; only ends of modules' names are read")
    return named


def _by_ending(values: Mapping[str, Any], module: str, default: Any) -> Any:
    """The first that fits, as PEFT does."""
    return next((value for key, value in values.items() if f".{module}".endswith(f".{key}")), default)


def _rank(file: Path, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        _refuse(file, f"rank {str(value)[:40]}: expected a whole number from 1 to {MAX_RANK}")
    return value


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e6


def _refuse(file: Path, reason: str) -> NoReturn:
    raise ProtocolError(f"{file}: {reason}", rule="adapter_config")

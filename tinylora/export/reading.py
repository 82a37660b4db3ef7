"""A PEFT folder of unknown origin → one plain LoRA, stacked over layers as ours are; nothing in it is trusted."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tinylora import tensors
from tinylora.bundle import AdapterDtype
from tinylora.config import ProjectionShape
from tinylora.errors import ProtocolError, SettingError, ShapeMismatch
from tinylora.export.adapter_config import AdapterConfig, read_config
from tinylora.export.origin import licence_in_readme
from tinylora.export.peft_format import CARD_FILE, PREFIX, WEIGHTS_FILE
from tinylora.export.places import Places
from tinylora.tensors import Manifest, Tensors

_PAIR = re.compile(re.escape(PREFIX) + r"(?P<module>.+)\.lora_(?P<part>[AB])\.weight")
_DTYPES = ("F32", "BF16", "F16", "F64")
_OTHERS = {
    "lora_magnitude_vector": "DoRA's magnitudes",
    "lora_embedding_": "an adapter on the embeddings",
    "lora_bias": "biases",
    ".bias": "biases",
    "modules_to_save": "whole modules",
    ".base_layer": "weights of the base",
}


@dataclass(frozen=True)
class PlainAdapter:
    """What a PEFT folder holds, in our form."""

    state: Tensors
    """`<projection>.lora_A` (layer, rank, in), `.lora_B` (layer, out, rank), in fp32; modules without one are zeros."""
    scale: float
    dtype: AdapterDtype
    """The narrowest that holds its numbers exactly."""
    n_modules: int
    n_without: int
    """Modules of the base that the folder has nothing for."""
    base: str
    """What its makers called the base."""
    licence: str


def read_adapter(
    folder: Path, places: Places, shapes: Mapping[str, ProjectionShape], *, scale: float | None = None
) -> PlainAdapter:
    """Read an adapter for a base that is known by its structure.

    Args:
        folder: As PEFT's `save_pretrained` writes it, with safetensors.
        places: Where the base has its projections.
        shapes: Of these.
        scale: To fold each module's alpha / r into; if not given, that of most modules.

    Raises:
        SettingError: It is no folder of a plain LoRA.
        ShapeMismatch: It is for a base of another shape.
        ProtocolError: It is not readable, or breaks a rule of its format.
    """
    config = read_config(folder)
    file = _weights_file(folder)
    known = places.of_modules()
    with _told_of(file):
        manifest = tensors.read_file_header(file).manifest
    pairs = _pairs(file, manifest, known)
    for module in pairs:  # before a number is read: what is there is no larger than the base allows
        _check_pair(file, module, manifest, shapes[known[module][0]], config)
    with _told_of(file):
        found = tensors.from_bytes(file.read_bytes())
    tensors.check_finite(found, where=str(file))
    scales = {module: config.scale_of(module) for module in pairs}
    common = scale if scale is not None else Counter(scales.values()).most_common(1)[0][0]
    if not common:
        raise SettingError(f"{file}: alpha is 0, so it adds nothing")
    halves = {
        module: (found[_name(module, "A")].float(), found[_name(module, "B")].float() * (own / common))
        for module, own in scales.items()
    }
    dtypes = {manifest[name][0] for name in manifest}
    return PlainAdapter(
        state=_stacked(halves, places, shapes),
        scale=common,
        dtype=_dtype(dtypes, is_folded=any(own != common for own in scales.values())),
        n_modules=len(pairs),
        n_without=len(known) - len(pairs),
        base=config.base,
        licence=licence_in_readme(folder / CARD_FILE),
    )


@contextmanager
def _told_of(file: Path) -> Iterator[None]:
    """A reader's sentence, with the file in front of it."""
    try:
        yield
    except ProtocolError as error:
        raise ProtocolError(f"{file}: {str(error).removeprefix('tensors: ')}", rule=error.rule) from None
    except OSError as error:
        raise SettingError(f"{file}: cannot be read: {error.strerror or error}") from None


def _weights_file(folder: Path) -> Path:
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        pickled = next((name for name in ("adapter_model.bin", "adapter_model.pt") if (folder / name).exists()), None)
        if pickled:
            raise SettingError(f"{folder / pickled}: pickled weights are not opened; save the adapter as safetensors")
        raise SettingError(f"{file}: no such file; expected a folder that PEFT's save_pretrained wrote")
    return file


def _pairs(file: Path, manifest: Manifest, known: Mapping[str, Any]) -> tuple[str, ...]:
    """Modules that have an A and a B, each of them a linear of the base."""
    parts: dict[str, set[str]] = {}
    for name in manifest:
        match = _PAIR.fullmatch(name)
        if match is None:
            what = next((what for mark, what in _OTHERS.items() if mark in name), "no pair of a linear")
            raise SettingError(f"{file}: tensor {name}: {what}; only lora_A and lora_B of linears can be imported")
        if match["module"] not in known:
            some = next(iter(known))
            raise ShapeMismatch(
                f"{file}: tensor {name}: the base has no such linear in its blocks; it has such as {some}"
            )
        parts.setdefault(match["module"], set()).add(match["part"])
    lonely = next((module for module, found in parts.items() if len(found) < 2), None)
    if lonely is not None or not parts:
        raise ProtocolError(f"{file}: {lonely or 'no module'}: expected a lora_A and a lora_B", rule="pair")
    return tuple(parts)


def _check_pair(file: Path, module: str, manifest: Manifest, shape: ProjectionShape, config: AdapterConfig) -> None:
    rank = config.rank_of(module)
    expected = {"A": (rank, shape.in_features), "B": (shape.out_features, rank)}
    for part, size in expected.items():
        dtype, got = manifest[_name(module, part)]
        if got != size or dtype not in _DTYPES:
            raise ShapeMismatch(
                f"{file}: tensor {_name(module, part)}: expected {size} of {', '.join(_DTYPES)}, by the base and by "
                f"adapter_config.json, got {got} of {dtype}"
            )


def _stacked(
    halves: Mapping[str, tuple[Tensor, Tensor]], places: Places, shapes: Mapping[str, ProjectionShape]
) -> Tensors:
    """Every layer of every projection, padded to the highest rank among the projection's layers."""
    state: Tensors = {}
    for projection, modules in sorted(places.modules.items()):
        shape = shapes[projection]
        rank = max((halves[module][0].shape[0] for module in modules if module in halves), default=1)
        nothing = (torch.zeros(rank, shape.in_features), torch.zeros(shape.out_features, rank))
        found = [halves.get(module, nothing) for module in modules]
        state[f"{projection}.lora_A"] = torch.stack([F.pad(a, (0, 0, 0, rank - a.shape[0])) for a, _ in found])
        state[f"{projection}.lora_B"] = torch.stack([F.pad(b, (0, rank - b.shape[1])) for _, b in found])
    return state


def _dtype(dtypes: set[str], *, is_folded: bool) -> AdapterDtype:
    if is_folded or len(dtypes) > 1:
        return "F32"
    only = next(iter(dtypes))
    return only if only == "BF16" or only == "F16" else "F32"


def _name(module: str, part: str) -> str:
    return f"{PREFIX}{module}.lora_{part}.weight"

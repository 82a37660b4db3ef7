"""What a base is: a fingerprint over its weights as they are stored, its config and its tokenizer. No transformers.

Weights are read by mapping their files, a tensor at a time, and hashed in the order of their names.
"""

import hashlib
import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tinylora.tensors import raw_bytes

# Of config.json: who wrote it and how it is to be loaded, which is not what the base is.
_VOLATILE_KEYS = ("transformers_version", "_name_or_path", "torch_dtype", "dtype", "use_cache")


@dataclass(frozen=True)
class RawTensor:
    """A tensor as it is stored."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview


def of_base(config: dict[str, Any], tokenizer: Any, tensors: list[RawTensor]) -> str:
    """sha256 over weights, config and tokenizer; who wrote the config, and how it is to be loaded, is left out."""
    stable = {key: value for key, value in config.items() if key not in _VOLATILE_KEYS}
    digest = hashlib.sha256(_canonical([stable, of_tokenizer(tokenizer)]))
    for tensor in sorted(tensors, key=lambda tensor: tensor.name):
        digest.update(_canonical([tensor.name, tensor.dtype, tensor.shape]))
        digest.update(tensor.data)
    return digest.hexdigest()


def of_tokenizer(tokenizer: Any) -> str:
    """Of its vocabulary, rules and special tokens; how the last text was cut or padded is not in it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = sorted(tokenizer.get_vocab().items()) if backend is None else json.loads(backend.to_str())
    if isinstance(content, dict):
        # How the last text was cut or padded, not what the tokenizer is.
        content = {key: value for key, value in content.items() if key not in ("truncation", "padding")}
    return hashlib.sha256(_canonical([content, tokenizer.special_tokens_map])).hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()


def tensors_in(files: tuple[Path, ...]) -> list[RawTensor]:
    """Every tensor of safetensors files as it is stored; the numbers are read when they are looked at."""
    return [tensor for file in files for tensor in _tensors_in_one(file)]


def _tensors_in_one(file: Path) -> Iterator[RawTensor]:
    with file.open("rb") as stream:
        data = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    n_header = int.from_bytes(data[:8], "little")
    numbers = data[8 + n_header :]
    for name, entry in json.loads(bytes(data[8 : 8 + n_header])).items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            yield RawTensor(name, entry["dtype"], tuple(entry["shape"]), numbers[start:end])


def tensors_of(model: nn.Module) -> list[RawTensor]:
    """Every tensor of a model as it is in memory."""
    return [
        RawTensor(name, str(tensor.dtype), tuple(tensor.shape), raw_bytes(tensor))
        for name, tensor in model.state_dict().items()
    ]

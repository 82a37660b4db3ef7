"""Many small tensors as a few long vectors in main memory, one for each dtype: quick to copy, few to write down."""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Flat: TypeAlias = dict[str, Tensor]
"""One vector by name of dtype, such as "float32": the tensors of that dtype, end to end, in their order."""


def flatten(tensors: Sequence[Tensor]) -> Flat:
    """A copy of the numbers, where the tensors are."""
    by_dtype: dict[str, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(_name(tensor), []).append(tensor.detach().reshape(-1))
    return {name: torch.cat(parts) for name, parts in by_dtype.items()}


def unflatten(flat: Flat, like: Iterable[Tensor]) -> list[Tensor]:
    """The tensors again, as views: in number, shape and dtype those of `like`."""
    begun = dict.fromkeys(flat, 0)
    found = []
    for tensor in like:
        name, start = _name(tensor), begun[_name(tensor)]
        begun[name] = start + tensor.numel()
        found.append(flat[name][start : begun[name]].view(tensor.shape))
    return found


def lengths(tensors: Iterable[Tensor]) -> dict[str, int]:
    """How long each vector of `flatten(tensors)` is."""
    found: dict[str, int] = {}
    for tensor in tensors:
        found[_name(tensor)] = found.get(_name(tensor), 0) + tensor.numel()
    return found


def to_host(groups: Iterable[Sequence[Tensor]]) -> list[Flat]:
    """Each group of tensors flattened, in main memory; of a CUDA device by page-locked memory, with one wait for all.

    The device holds one such vector more at a time.
    """
    found = [
        {name: vector.to("cpu", non_blocking=vector.is_cuda) for name, vector in flatten(group).items()}
        for group in groups
    ]
    for device in {tensor.device for group in groups for tensor in group if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return found


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")

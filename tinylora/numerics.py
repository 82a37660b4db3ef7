"""The numbers in payloads, for the loop: what `federation.ports.Numerics` asks, with torch."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from tinylora import tensors
from tinylora.aggregation import average_nodes
from tinylora.errors import ProtocolError
from tinylora.federation.ports import PayloadFacts
from tinylora.federation.routers import read_statistics
from tinylora.protocol.documents import Manifest
from tinylora.routing.gates import read_histograms
from tinylora.tensors import Tensors
from tinylora.tree import NodePath

LARGEST_DRAWN_RMS = 1.0
"""No initialisation draws A with a larger rms than this."""


class TorchNumerics:
    """Opens payloads with torch on the CPU; keeps nothing."""

    def read_manifest(self, payload: bytes) -> Manifest:
        """Names, dtypes and shapes from the header."""
        return tensors.read_header(payload)

    def measure(self, payload: bytes, start: bytes | None) -> PayloadFacts:
        """Whether all numbers are finite, the statistics possible, and how far the adapters moved."""
        found = tensors.from_bytes(payload)
        not_finite = _first_not_finite(found)
        if not_finite:
            return PayloadFacts(not_finite=not_finite)
        begun = tensors.from_bytes(start) if start is not None else {}
        moved = [_moved_rms(tensor, name, begun) for name, tensor in found.items() if name.startswith("node.")]
        return PayloadFacts(statistics_fault=_statistics_fault(found), delta_rms=max(moved, default=0.0))

    def arrays(self, payload: bytes, prefix: str) -> dict[str, np.ndarray]:
        """Tensors whose names begin with `prefix`, as arrays."""
        found = tensors.from_bytes(payload)
        return {name: tensor.numpy() for name, tensor in found.items() if name.startswith(prefix)}

    def pack(self, arrays: Mapping[str, np.ndarray]) -> bytes:
        """Byte-stable payload of arrays."""
        return tensors.to_bytes({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()})

    def select(self, payloads: Sequence[bytes], prefixes: Sequence[str]) -> bytes:
        """The tensors of several payloads whose names begin with one of `prefixes`."""
        kept: Tensors = {}
        for payload in payloads:
            found = tensors.from_bytes(payload)
            kept |= {name: tensor for name, tensor in found.items() if name.startswith(tuple(prefixes))}
        return tensors.to_bytes(kept)

    def average(self, updates: Mapping[NodePath, Mapping[str, bytes]]) -> bytes:
        """For each leaf the mean of its adapters over the workers' updates."""
        opened: dict[int, Tensors] = {}
        mean: Tensors = {}
        for leaf, payloads in sorted(updates.items()):
            prefix = f"node.{leaf}."
            states = {
                worker: tensors.strip_prefix(_open(opened, payload), prefix) for worker, payload in payloads.items()
            }
            mean |= tensors.with_prefix(average_nodes(states), prefix)
        return tensors.to_bytes(mean)


def _open(opened: dict[int, Tensors], payload: bytes) -> Tensors:
    """Decode each payload once, although it may hold many leaves."""
    if id(payload) not in opened:
        opened[id(payload)] = tensors.from_bytes(payload)
    return opened[id(payload)]


def _first_not_finite(found: Tensors) -> str:
    return next(
        (name for name, tensor in sorted(found.items()) if tensor.is_floating_point() and not _is_finite(tensor)),
        "",
    )


def _is_finite(tensor: torch.Tensor) -> bool:
    """One pass: a norm is finite only if all numbers are. Should the norm itself overflow, look closer."""
    return math.isfinite(float(torch.linalg.vector_norm(tensor))) or bool(torch.isfinite(tensor).all())


def _moved_rms(tensor: torch.Tensor, name: str, start: Tensors) -> float:
    """Rms of the change. Without a start B began at zero; A was drawn by the worker, so only its excess is a change."""
    if name in start:
        return _rms(tensor - start[name])
    return max(0.0, _rms(tensor) - LARGEST_DRAWN_RMS) if name.endswith(".lora_A") else _rms(tensor)


def _rms(numbers: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(numbers)) / math.sqrt(numbers.numel()) if numbers.numel() else 0.0


def _statistics_fault(found: Tensors) -> str:
    """Why sums or histograms cannot be those of any text, or nothing."""
    arrays = {name: tensor.numpy() for name, tensor in found.items() if not name.startswith("node.")}
    try:
        read_statistics({name: array for name, array in arrays.items() if name.startswith("statistics.")})
        read_histograms(arrays)
    except ProtocolError as error:
        return str(error)
    return ""

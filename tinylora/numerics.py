"""The numbers in payloads, for the loop: what `federation.ports.Numerics` asks, with torch."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from tinylora import tensors
from tinylora.adapters.lora import init_adapter
from tinylora.adapters.spec import AdapterSpec
from tinylora.aggregation import (
    Streamed,
    average_prefixes,
    average_products,
    clip_updates,
    cut,
    join,
    mismatch,
    outer_step,
    shorten,
)
from tinylora.config import BaseFacts
from tinylora.errors import ProtocolError
from tinylora.federation.ports import Averaged, PayloadFacts, Round
from tinylora.federation.routers import read_statistics
from tinylora.protocol.documents import Manifest
from tinylora.routing.gates import read_histograms
from tinylora.tensors import Tensors
from tinylora.tree import NodePath

LARGEST_DRAWN_RMS = 1.0
"""No initialisation draws A with a larger rms than this."""
MAX_WEIGHT = 1e6
"""Of a gate that a worker trained. Scores beyond 60 are all alike, and features are about one."""


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
        adapters = {name: tensor for name, tensor in found.items() if name.startswith("node.")}
        moved = {name: _moved_rms(tensor, name, begun) for name, tensor in adapters.items()}
        farthest = max(moved, key=lambda name: moved[name], default="")
        fault, rule = _statistics_fault(found)
        counts = (found[name] for name in found if name.startswith("statistics.") and name.endswith(".count"))
        n_rows = math.fsum(float(count.sum()) for count in counts)
        return PayloadFacts("", fault, rule, n_rows, moved.get(farthest, 0.0), farthest.rpartition(".")[2])

    def arrays(self, payload: bytes, prefix: str) -> dict[str, np.ndarray]:
        """Tensors whose names begin with `prefix`, as arrays."""
        found = tensors.from_bytes(payload)
        return {name: tensor.numpy() for name, tensor in found.items() if name.startswith(prefix)}

    def pack(self, arrays: Mapping[str, np.ndarray]) -> bytes:
        """Byte-stable payload of arrays."""
        return tensors.to_bytes({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()})

    def select(self, payloads: Sequence[bytes], prefixes: Sequence[str], prefix_rank: int = 0) -> bytes:
        """The tensors of several payloads whose names begin with one of `prefixes`, adapters cut to a rank."""
        kept: Tensors = {}
        for payload in payloads:
            found = tensors.from_bytes(payload)
            kept |= {name: tensor for name, tensor in found.items() if name.startswith(tuple(prefixes))}
        return tensors.to_bytes(shorten(kept, prefix_rank) if prefix_rank else kept)

    def initial(self, base: BaseFacts, spec: AdapterSpec, seed: int, paths: Sequence[NodePath]) -> bytes:
        """The adapters that nodes begin with, as every worker draws them."""
        drawn: Tensors = {}
        for path in paths:
            drawn |= tensors.with_prefix(init_adapter(base, spec, seed=seed, path=path), f"node.{path}.")
        return tensors.to_bytes(drawn)

    def candidate(self, update: bytes, start: bytes) -> bytes:
        """The adapters of an update, whole, as `candidate.<path>.*`."""
        found = {name: tensor for name, tensor in tensors.from_bytes(update).items() if name.startswith("node.")}
        whole = join(tensors.from_bytes(start), found)
        return tensors.to_bytes({f"candidate.{name.removeprefix('node.')}": tensor for name, tensor in whole.items()})

    def rename(self, payload: bytes, names: Mapping[NodePath, Sequence[NodePath]]) -> bytes:
        """The adapters of some nodes under other names."""
        found, renamed = tensors.from_bytes(payload), {}
        for node, others in names.items():
            state = tensors.strip_prefix(
                {name: tensor for name, tensor in found.items() if name.startswith(f"node.{node}.")}, f"node.{node}."
            )
            for other in others:
                renamed |= tensors.with_prefix(state, f"node.{other}.")
        return tensors.to_bytes(renamed)

    def average(
        self, updates: Mapping[NodePath, Mapping[str, str]], begun: Round, load: Callable[[str], bytes]
    ) -> Averaged:
        """For each node what the rule makes of its adapters over the workers' updates."""
        start, velocity = tensors.from_bytes(begun.start), _unpacked(begun.momentum)
        previous = {} if begun.replicas == "product" else _unpacked(begun.previous)
        opened = _Opened(load)
        after, moving, gaps = dict(start), dict(velocity), []
        for path, blobs in sorted(updates.items()):
            prefix = f"node.{path}."
            states = Streamed(blobs, partial(_adapter, opened, blobs, prefix))
            own, speed = tensors.strip_prefix(start, prefix), tensors.strip_prefix(velocity, prefix)
            mean, speed = _next(_robust(states, own, tensors.strip_prefix(previous, prefix), begun), own, speed, begun)
            after |= tensors.with_prefix(mean, prefix)
            moving |= tensors.with_prefix(speed, prefix)
            gaps += _gaps(states, own)
        return Averaged(tensors.to_bytes(after), _mismatch(gaps), tensors.to_bytes(moving) if moving else b"")


class _Opened:
    """Decoded payloads, of which the last one alone stays: it may hold many leaves."""

    def __init__(self, load: Callable[[str], bytes]) -> None:
        self._load = load
        self._name = ""
        self._found: Tensors = {}

    def __call__(self, name: str) -> Tensors:
        if name != self._name:
            self._name, self._found = "", {}  # gone before the next one comes
            self._found = tensors.from_bytes(self._load(name))
            self._name = name
        return self._found


def _adapter(opened: _Opened, blobs: Mapping[str, str], prefix: str, worker: str) -> Tensors:
    """What a worker made of one node."""
    return tensors.strip_prefix(opened(blobs[worker]), prefix)


def _unpacked(payload: bytes) -> Tensors:
    return tensors.from_bytes(payload) if payload else {}


def _robust(states: Mapping[str, Tensors], start: Tensors, previous: Tensors, begun: Round) -> Mapping[str, Tensors]:
    """What the workers made of a node, drawn in where they are far from each other."""
    is_known = previous.keys() >= start.keys()
    return clip_updates(states, start, previous if is_known else {}, begun.clip)


def _next(states: Mapping[str, Tensors], start: Tensors, velocity: Tensors, begun: Round) -> tuple[Tensors, Tensors]:
    """One node after a round, whole, and its velocity; with a single contributor there is no outer step."""
    if begun.replicas == "product" and len(states) > 1:
        return average_products(_wholes(states, start)), velocity
    mean = average_prefixes(states)
    if len(states) == 1:
        return join(start, mean), velocity
    before = {name: torch.zeros_like(start[name]) for name in mean} | velocity
    moved, speed = outer_step(
        cut(start, mean), mean, cut(before, mean), rate=begun.outer_lr, momentum=begun.outer_momentum
    )
    return join(start, moved), velocity | join({name: before[name] for name in speed}, speed)


def _gaps(states: Mapping[str, Tensors], start: Tensors) -> list[tuple[float, float]]:
    """Squared mismatch and norm of a node with replicas, if its adapter is made of pairs, layer by layer."""
    is_paired = {name.rpartition(".lora_")[2] for name in start} == {"A", "B"}
    if len(states) == 1 or not is_paired or any(tensor.ndim < 3 for tensor in start.values()):
        return []
    return [mismatch(_wholes(states, start))]


def _wholes(states: Mapping[str, Tensors], start: Tensors) -> Streamed:
    """The node as each worker has it, with what it did not train."""
    return Streamed(states, lambda worker: join(start, states[worker]))


def _mismatch(gaps: Sequence[tuple[float, float]]) -> float | None:
    """Of all nodes together; 0 while nothing was learned yet."""
    whole = math.fsum(norm for _, norm in gaps)
    return math.sqrt(math.fsum(apart for apart, _ in gaps) / whole) if whole else (0.0 if gaps else None)


def _first_not_finite(found: Tensors) -> str:
    return next(
        (name for name, tensor in sorted(found.items()) if tensor.is_floating_point() and not _is_finite(tensor)),
        "",
    )


def _is_finite(tensor: torch.Tensor) -> bool:
    """One pass: a norm is finite only if all numbers are. Should the norm itself overflow, look closer."""
    return math.isfinite(float(torch.linalg.vector_norm(tensor))) or bool(torch.isfinite(tensor).all())


def _moved_rms(tensor: torch.Tensor, name: str, start: Tensors) -> float:
    """Rms of the change. Without a start B began at zero, others were drawn or one: only their excess is a change."""
    if name in start:
        return _rms(tensor - start[name][tuple(slice(length) for length in tensor.shape)])
    return _rms(tensor) if name.endswith(".lora_B") else max(0.0, _rms(tensor) - LARGEST_DRAWN_RMS)


def _rms(numbers: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(numbers)) / math.sqrt(numbers.numel()) if numbers.numel() else 0.0


def _statistics_fault(found: Tensors) -> tuple[str, str]:
    """Why sums, histograms or gates cannot be those of any text, and the rule that they break; or nothing."""
    arrays = {name: tensor.numpy() for name, tensor in found.items() if not name.startswith("node.")}
    try:
        read_statistics({name: array for name, array in arrays.items() if name.startswith("statistics.")})
        read_histograms(arrays)
    except ProtocolError as error:
        return str(error), error.rule
    gates = (name for name in sorted(arrays) if name.startswith("weights_router."))
    wild = next((name for name in gates if np.abs(arrays[name]).max(initial=0.0) > MAX_WEIGHT), "")
    return (f"tensor {wild}: expected weights up to {MAX_WEIGHT:g}", "weights") if wild else ("", "")

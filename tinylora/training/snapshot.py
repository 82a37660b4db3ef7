"""`Snapshot`: a unit of work after its last finished step, to go on from in this process or in another one.

It holds what cannot be computed again: parameters, AdamW's moments now and before the unit, losses so far and the
held-out loss before. The order of batches, the ranks of nested adapters and whose text is whose follow from the unit
and the shard, and no step draws a random number; so a unit that goes on from a snapshot ends with the same bytes.

On disk it is a safetensors file with one JSON text beside the tensors. Nothing in it is trusted or executed: it is
checked when it is read, and against the unit and its parameters when it is used.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from tinylora import __version__
from tinylora.errors import ProtocolError
from tinylora.protocol.documents import WorkUnit
from tinylora.tensors import Tensors, check_finite, from_bytes, header_length, parse_header, strip_prefix, to_bytes
from tinylora.training.fit import Fit
from tinylora.training.flat import Flat, lengths
from tinylora.training.optimiser import Moments

_KEY = "snapshot"
_LENGTH_BYTES = 8
_WORDS = {
    "code": "version {} of tinylora",
    "unit_id": "unit {}",
    "nonce": "the lease {}",
    "payload_sha256": "the payload {}",
    "base_fingerprint": "the base {}",
    "shard_version": "the text {}",
    "worker": "worker {}",
}


class Identity(BaseModel):
    """What a snapshot belongs to; it is of use for nothing else."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: str = __version__
    unit_id: str
    nonce: str
    payload_sha256: str
    base_fingerprint: str
    shard_version: str
    worker: str

    @classmethod
    def of(cls, unit: WorkUnit, shard_version: str, worker: str) -> "Identity":
        """Of a unit at one worker."""
        return cls(
            unit_id=unit.unit_id,
            nonce=unit.nonce,
            payload_sha256=unit.payload_sha256,
            base_fingerprint=unit.base_fingerprint,
            shard_version=shard_version,
            worker=worker,
        )

    def difference(self, other: "Identity") -> str:
        """What makes `other` another one, for people; empty where they are the same."""
        for name, words in _WORDS.items():
            here, there = getattr(self, name), getattr(other, name)
            if here != there:
                return f"expected one of {words.format(here[:12])}, got one of {words.format(there[:12])}"
        return ""


class _Header(BaseModel):
    """The JSON text beside the tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    identity: Identity
    fit: Fit
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A unit after `n_steps` finished steps; all tensors are in main memory and nobody writes into them again."""

    identity: Identity
    fit: Fit
    """How the last of these steps was taken."""
    seconds: float
    """Busy time that went into them."""
    losses: tuple[float, ...]
    nll_before: float | None
    """Held-out loss before the unit's first step."""
    parameters: Flat
    moments: Moments | None
    before: Moments | None
    """AdamW's moments before the unit's first step, for a unit that has to be repeated."""

    @property
    def n_steps(self) -> int:
        """Finished steps of the unit."""
        return len(self.losses)

    def check(self, identity: Identity, parameters: Sequence[Tensor], n_steps: int) -> None:
        """Check that a unit can go on from here.

        Args:
            identity: Of the unit.
            parameters: Those that it trains.
            n_steps: That it takes.

        Raises:
            ProtocolError: This is a snapshot of something else, or its tensors do not fit, or are not finite.
        """
        where = f"unit {identity.unit_id}: checkpoint"
        if difference := identity.difference(self.identity):
            raise ProtocolError(f"{where}: {difference}", rule="other")
        if self.n_steps > n_steps:
            raise ProtocolError(f"{where}: expected {n_steps} steps at most, got {self.n_steps}", rule="steps")
        parts = [self.parameters]
        for moments in (self.moments, self.before):
            if moments is not None:
                parts += [moments.first, moments.second]
                if len(moments.steps) != len(parameters):
                    reason = f"expected moments of {len(parameters)} parameters, got {len(moments.steps)}"
                    raise ProtocolError(f"{where}: {reason}", rule="shape")
        expected = lengths(parameters)
        for part in parts:
            got = {name: len(vector) for name, vector in part.items()}
            if got != expected:
                raise ProtocolError(f"{where}: expected {expected} numbers that are trained, got {got}", rule="shape")
            check_finite(part, where=where)

    # --- on disk -----------------------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """The file; equal snapshots give equal bytes."""
        tensors: Tensors = {"losses": torch.tensor(self.losses, dtype=torch.float64)}
        if self.nll_before is not None:
            tensors["nll_before"] = torch.tensor([self.nll_before], dtype=torch.float64)
        tensors |= _named("parameters", self.parameters)
        for name, moments in (("now", self.moments), ("before", self.before)):
            if moments is not None:
                tensors[f"{name}.steps"] = moments.steps
                tensors |= _named(f"{name}.first", moments.first) | _named(f"{name}.second", moments.second)
        header = _Header(identity=self.identity, fit=self.fit, seconds=self.seconds)
        return to_bytes(tensors, {_KEY: header.model_dump_json()})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Snapshot":
        """Read a file.

        Raises:
            ProtocolError: Cut off, altered, of another format, or in any way not what `to_bytes` writes.
        """
        tensors = from_bytes(data)
        header = _header(data)
        losses, nll = tensors.pop("losses", None), tensors.pop("nll_before", None)
        if (
            losses is None
            or losses.dtype != torch.float64
            or losses.ndim != 1
            or (nll is not None and nll.shape != (1,))
        ):
            raise ProtocolError("checkpoint: expected the losses so far, one number for each step", rule="losses")
        found = cls(
            identity=header.identity,
            fit=header.fit,
            seconds=header.seconds,
            losses=tuple(losses.tolist()),
            nll_before=None if nll is None else _number(nll),
            parameters=_vectors(tensors, "parameters"),
            moments=_moments(tensors, "now"),
            before=_moments(tensors, "before"),
        )
        if tensors:
            raise ProtocolError(f"checkpoint: unexpected tensor {next(iter(tensors))}", rule="unexpected")
        return found


def _number(tensor: Tensor) -> float:
    if tensor.shape != (1,):
        raise ProtocolError(f"checkpoint: nll_before: expected one number, got {tuple(tensor.shape)}", rule="shape")
    return tensor.item()


def _named(prefix: str, flat: Flat) -> Tensors:
    return {f"{prefix}.{name}": vector for name, vector in flat.items()}


def _header(data: bytes) -> _Header:
    n_text = header_length(data[:_LENGTH_BYTES], len(data))
    metadata = parse_header(bytes(data[_LENGTH_BYTES : _LENGTH_BYTES + n_text]), len(data)).metadata
    try:
        return _Header.model_validate(json.loads(metadata.get(_KEY, "")))
    except (ValueError, ValidationError, RecursionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ProtocolError(f"checkpoint: not one of this version of tinylora ({reason})", rule="header") from None


def _vectors(tensors: Tensors, prefix: str) -> Flat:
    """Take the vectors of one kind out of `tensors`."""
    found = strip_prefix(tensors, f"{prefix}.")
    for name, vector in found.items():
        del tensors[f"{prefix}.{name}"]
        if vector.ndim != 1 or str(vector.dtype) != f"torch.{name}":
            raise ProtocolError(f"checkpoint: tensor {prefix}.{name}: expected a vector of {name}", rule="shape")
    return found


def _moments(tensors: Tensors, prefix: str) -> Moments | None:
    steps = tensors.pop(f"{prefix}.steps", None)
    if steps is None:
        return None
    if steps.ndim != 1 or steps.dtype != torch.float32:
        raise ProtocolError(f"checkpoint: tensor {prefix}.steps: expected one number for each parameter", rule="shape")
    return Moments(steps, _vectors(tensors, f"{prefix}.first"), _vectors(tensors, f"{prefix}.second"))

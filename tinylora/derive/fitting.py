"""Adapters of two bundles in one kind, one scale and the same ranks, so that one bundle can hold them.

| what differs | what is done | exact |
| --- | --- | --- |
| ranks | rows and columns of zeros are added, projection by projection | yes |
| scale | the second bundle's B is multiplied by the ratio | to float32; always where the ratio is a power of two |
| `nested` and another kind | both are plain LoRAs from then on: the others have no usable prefixes | yes |
| `tied`, unless both are one kind with the same frozen factors and scale | written out as plain LoRAs | to float32 |
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from tinylora.adapters.spec import AdapterSpec
from tinylora.bundle import Bundle
from tinylora.derive.paths import at_ranks, plain_states
from tinylora.tensors import Tensors
from tinylora.tree import NodePath


@dataclass(frozen=True, eq=False)
class Fitted:
    """The adapters of both bundles, by their own paths."""

    spec: AdapterSpec
    scale: float
    first: dict[NodePath, Tensors]
    second: dict[NodePath, Tensors]
    shared: Tensors


def fit(one: Bundle, other: Bundle) -> Fitted:
    """Both bundles' adapters as one bundle can hold them; what the table above leaves alone stays bit by bit."""
    if one.spec == other.spec and one.scale == other.scale and _same(one.shared, other.shared):
        return Fitted(one.spec, one.scale, one.nodes, other.nodes, one.shared)
    scale = one.scale or other.scale or 1.0
    ranks = {name: max(one.spec.rank_of(name), other.spec.rank_of(name)) for name in one.base.projections}
    return Fitted(
        spec=_common_spec(one.spec, other.spec, ranks),
        scale=scale,
        first=at_ranks(_scaled(_plain(one), one.scale / scale), ranks),
        second=at_ranks(_scaled(_plain(other), other.scale / scale), ranks),
        shared={},
    )


def _same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _common_spec(one: AdapterSpec, other: AdapterSpec, ranks: Mapping[str, int]) -> AdapterSpec:
    highest = max(ranks.values())
    lower = {name: rank for name, rank in sorted(ranks.items()) if rank != highest}
    if one.kind == other.kind == "nested":
        return AdapterSpec("nested", highest, lower, is_lower_frozen=one.is_lower_frozen and other.is_lower_frozen)
    return AdapterSpec("lora", highest, lower)


def _plain(bundle: Bundle) -> dict[NodePath, Tensors]:
    paths = sorted(bundle.nodes)
    return dict(zip(paths, plain_states(bundle, paths), strict=True))


def _scaled(states: Mapping[NodePath, Tensors], factor: float) -> dict[NodePath, Tensors]:
    if factor == 1:
        return dict(states)
    return {
        path: {
            name: (tensor.double() * factor).float() if name.endswith(".lora_B") else tensor
            for name, tensor in state.items()
        }
        for path, state in states.items()
    }


def differences(one: Bundle, other: Bundle) -> list[str]:
    """What `fit` had to change, in words; empty where nothing."""
    found = []
    if str(one.spec) != str(other.spec):
        found.append(f"kinds {one.spec} and {other.spec}")
    if replace(one.spec, kind="lora", trained=(), is_lower_frozen=False) != replace(
        other.spec, kind="lora", trained=(), is_lower_frozen=False
    ):
        found.append(f"ranks {one.spec.rank} and {other.spec.rank}")
    if one.scale != other.scale:
        found.append(f"scales {one.scale:g} and {other.scale:g}")
    if not _same(one.shared, other.shared):
        found.append("frozen factors")
    return found

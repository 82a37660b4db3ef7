"""What differs between two bundles, in numbers that mean something: updates, not factors; gates as functions."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinylora.adapters.mixing import concatenate
from tinylora.bundle import Bundle, LeafStatistics, inspect
from tinylora.derive.files import read_source
from tinylora.derive.paths import plain_states
from tinylora.routing.gates import Gate, Gates, drift
from tinylora.tensors import Tensors
from tinylora.tree import NodePath, by_level

_PLAIN_FIELDS = ("format", "run", "policy", "kind", "rank", "ranks", "scale", "dtype", "licences", "signed_by")
"""Of what `inspect` tells, those that are compared as they are."""
_BASE_FIELDS = ("base_id", "fingerprint", "tokenizer_fingerprint", "feature_dim", "feature_hash")


def diff_files(first: Path, second: Path) -> dict[str, Any]:
    """What differs between two files; see `diff`. Both are checked byte for byte.

    Raises:
        BundleError: A file is not a sound bundle.
    """
    sources = [read_source(first), read_source(second)]
    facts = [inspect(source.file) | {"dtype": source.dtype} for source in sources]
    found = diff(sources[0].bundle, sources[1].bundle)
    found["fields"] |= _changes(facts[0], facts[1], _PLAIN_FIELDS)
    is_same = sources[0].sha256 == sources[1].sha256
    return {"is_same_file": is_same, **found, "n_bytes": [facts[0]["n_bytes"], facts[1]["n_bytes"]]}


def diff(one: Bundle, other: Bundle) -> dict[str, Any]:
    """What differs between two bundles, ready for JSON; empty lists and objects where nothing does.

    The number of a changed node is the Frobenius norm of the change of its scaled update, all linears together, over
    that of the update before; null where that was zero. A gate's is its drift (see `gates.drift`) with the angle
    between both directions in degrees.
    """
    is_same_base = one.base.projections == other.base.projections
    known = [path for path in by_level(one.nodes) if path in other.nodes] if is_same_base else []
    changes = {path: _node_change(one, other, path) for path in known}
    return {
        "fields": _changes(_plain_facts(one), _plain_facts(other), _plain_facts(one)),
        "base": _changes(one.base.model_dump(), other.base.model_dump(), _BASE_FIELDS),
        "leaves": _sets(one.topology.leaves, other.topology.leaves),
        "nodes": {**_sets(one.nodes, other.nodes), "changed": {path: n for path, n in changes.items() if n != 0}},
        "n_same_nodes": sum(change == 0 for change in changes.values()),
        "gates": _gates(one.gates, other.gates),
        "statistics": _statistics(one.statistics, other.statistics),
        "contributors": _sets(one.contributors, other.contributors),
        "data_notes": _changes(one.data_notes, other.data_notes, {*one.data_notes, *other.data_notes}),
        "versions": _changes(one.versions, other.versions, {*one.versions, *other.versions}),
        "report": _changed_keys(one.report, other.report),
    }


def differs(found: Mapping[str, Any]) -> bool:
    """Whether a `diff` found anything at all; the sizes and sums of files do not count."""
    ignored = ("n_same_nodes", "is_same_file", "n_bytes")
    return any(_holds(value) for key, value in found.items() if key not in ignored)


def _holds(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds, value.values()))
    return bool(value) if isinstance(value, list) else True


def _plain_facts(bundle: Bundle) -> dict[str, Any]:
    spec = bundle.spec
    return {
        "run": bundle.run,
        "policy": bundle.policy,
        "kind": str(spec),
        "rank": spec.rank,
        "ranks": dict(spec.ranks),
        "scale": bundle.scale,
        "licences": list(bundle.licences),
        "derived_from": list(bundle.derived_from),
    }


def _changes(one: Mapping[str, Any], other: Mapping[str, Any], keys: Any) -> dict[str, Any]:
    """Values of both by key, where they differ; null where one has none."""
    return {key: [one.get(key), other.get(key)] for key in sorted(keys) if one.get(key) != other.get(key)}


def _sets(one: Any, other: Any) -> dict[str, Any]:
    return {"removed": sorted(set(one) - set(other)), "added": sorted(set(other) - set(one))}


def _changed_keys(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in {*one, *other} if one.get(key) != other.get(key))


# --- adapters --------------------------------------------------------------------------------------------------------


def _node_change(one: Bundle, other: Bundle, path: NodePath) -> float | None:
    """Relative size of the change of a node's update; 0 exactly where the tensors are the same."""
    if one.spec == other.spec and one.scale == other.scale and _same_tensors(one, other, path):
        return 0.0
    (before,), (after,) = plain_states(one, [path]), plain_states(other, [path])
    change = concatenate([after, before], [other.scale, -one.scale])
    size = abs(one.scale) * update_norm(before)
    moved = update_norm(change)
    return moved / size if size else (None if moved else 0.0)


def _same_tensors(one: Bundle, other: Bundle, path: NodePath) -> bool:
    states = [bundle.nodes[path] | bundle.shared for bundle in (one, other)]
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][name].float(), states[1][name].float()) for name in states[0]
    )


def update_norm(state: Tensors) -> float:
    """Frobenius norm of all updates B A of a plain state together; the updates themselves are never formed."""
    squares = []
    for name, lora_a in state.items():
        if name.endswith(".lora_A"):
            lora_b = state[f"{name.removesuffix('A')}B"]
            left = torch.linalg.qr(lora_b.double(), mode="r").R
            right = torch.linalg.qr(lora_a.double().mT, mode="r").R
            squares.append(float((left @ right.mT).square().sum()))
    return math.sqrt(math.fsum(squares))


# --- gates and statistics --------------------------------------------------------------------------------------------


def _gates(one: Gates, other: Gates) -> dict[str, Any]:
    changed = {}
    for node in by_level(set(one.nodes) & set(other.nodes)):
        before, after = one.nodes[node], other.nodes[node]
        moved = drift(Gates({node: after}, other.dim), Gates({node: before}, one.dim)) if one.dim == other.dim else 1.0
        if moved or before.tau != after.tau:
            tau = [before.tau, after.tau]
            changed[node] = {"drift": moved, "degrees": _degrees(before, after), "tau": tau}
    return {**_sets(one.nodes, other.nodes), "changed": changed}


def _degrees(one: Gate, other: Gate) -> float | None:
    """Angle between the directions in which two gates look; none where one looks nowhere."""
    sizes = np.linalg.norm(one.w), np.linalg.norm(other.w)
    if one.w.shape != other.w.shape or not all(sizes):
        return None
    # By half the chord: an arc cosine has no digits left for small angles.
    chord = np.linalg.norm(one.w / sizes[0] - other.w / sizes[1])
    return math.degrees(2 * math.asin(min(1.0, float(chord) / 2)))


def _statistics(one: LeafStatistics | None, other: LeafStatistics | None) -> dict[str, Any]:
    """Leaves of which only one tells, and those whose counts or means differ, with rows and the means' distance."""
    first, second = (item.counts if item else {} for item in (one, other))
    changed = {}
    for leaf in sorted(set(first) & set(second)):
        distance = _distance(one, other, leaf)
        if first[leaf] != second[leaf] or distance != 0:
            changed[leaf] = {"rows": [first[leaf], second[leaf]], "mean_moved": distance}
    return {**_sets(first, second), "changed": changed, "covariance": _spread_change(one, other)}


def _spread_change(one: LeafStatistics | None, other: LeafStatistics | None) -> dict[str, float]:
    """Size of the change of the covariance within leaves over the one before; empty where there is none."""
    if one is None or other is None or not one.counts or not other.counts:
        return {}
    before, after = one.covariance, other.covariance
    if before.shape != after.shape or np.array_equal(before, after):
        return {}
    return {"change": float(np.linalg.norm(after - before) / (np.linalg.norm(before) or 1.0))}


def _distance(one: LeafStatistics | None, other: LeafStatistics | None, leaf: NodePath) -> float | None:
    if one is None or other is None or one.means[leaf].shape != other.means[leaf].shape:
        return None
    return float(np.linalg.norm(one.means[leaf] - other.means[leaf]))


# --- for people ------------------------------------------------------------------------------------------------------


def in_words(found: Mapping[str, Any]) -> list[str]:
    """A `diff` as lines, the most important first."""
    if not differs(found):
        return ["the same file" if found.get("is_same_file") else "no difference but in the bytes"]
    lines = [f"base {key}: {before} -> {after}" for key, (before, after) in found["base"].items()]
    lines += [f"{key}: {before} -> {after}" for key, (before, after) in found["fields"].items()]
    for what in ("leaves", "nodes", "gates", "statistics", "contributors"):
        lines += [
            f"{what} {how}: {', '.join(map(_named, found[what][how]))}"
            for how in ("removed", "added")
            if found[what][how]
        ]
    lines += [f"node {_named(path)}: {_share(change)}" for path, change in found["nodes"]["changed"].items()]
    if found["nodes"]["changed"] and found["n_same_nodes"]:
        lines.append(f"{found['n_same_nodes']} other nodes: bit by bit the same")
    lines += [f"gate {_named(node)}: {_gate_in_words(gate)}" for node, gate in found["gates"]["changed"].items()]
    for leaf, told in found["statistics"]["changed"].items():
        moved = "" if told["mean_moved"] is None else f", mean moved by {told['mean_moved']:.3g}"
        lines.append(f"statistics of {_named(leaf)}: {told['rows'][0]:.0f} -> {told['rows'][1]:.0f} rows{moved}")
    if found["statistics"]["covariance"]:
        lines.append(
            f"statistics: covariance within leaves changed by {found['statistics']['covariance']['change']:.3%}"
        )
    lines += [f"said of the text of {_named(leaf)}: changed" for leaf in found["data_notes"]]
    lines += [f"version {key}: {before} -> {after}" for key, (before, after) in found["versions"].items()]
    return lines + [f"report: {', '.join(found['report'])}" for _ in found["report"][:1]]


def _named(path: str) -> str:
    return path or "the root"


def _share(change: float | None) -> str:
    return "was zero, is not" if change is None else f"update changed by {change:.3%} of its size"


def _gate_in_words(gate: Mapping[str, Any]) -> str:
    turned = "" if gate["degrees"] is None else f", turned by {gate['degrees']:.3g} degrees"
    before, after = gate["tau"]
    return f"drift {gate['drift']:.3g}{turned}" + ("" if before == after else f", tau {before:.3g} -> {after:.3g}")

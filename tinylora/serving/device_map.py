"""Which leaf lies on which device: text, JSON, TOML or `auto` → a `DeviceMap`. Pure, without torch.

A map names devices for subtrees, as in `0=cuda:0,10=cuda:1,11=cuda:1`; `root` is the whole tree. The longest prefix of
a leaf's path decides, so `root=cuda:0,01=cuda:1` is every leaf on the first device but those under 01. `cpu:0` and
`cpu:1` are two processes on the same processor.
"""

import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from tinylora.errors import SettingError
from tinylora.tree import MAX_DEPTH, NodePath, Topology, is_path, is_under

Device: TypeAlias = str
ROOT = "root"
"""How the empty path is written."""
_DEVICE = re.compile(r"(cpu|cuda|xpu)(:\d{1,3})?|mps")
_FORMS = "expected PATH=DEVICE,..., such as 0=cuda:0,1=cuda:1, or auto, auto:N, or a .json or .toml file of such pairs"


@dataclass(frozen=True)
class DeviceMap:
    """Every leaf of a tree on one device."""

    of_leaf: dict[NodePath, Device]

    @property
    def devices(self) -> tuple[Device, ...]:
        """Each once, in the order of the first leaf that lies there."""
        return tuple(dict.fromkeys(self.of_leaf.values()))

    @cached_property
    def leaves(self) -> dict[Device, tuple[NodePath, ...]]:
        """Leaves of every device, left to right."""
        return {
            device: tuple(leaf for leaf, there in self.of_leaf.items() if there == device) for device in self.devices
        }

    def holders(self, node: NodePath) -> tuple[Device, ...]:
        """Devices that hold every adapter on the way to `node`: one for a leaf, maybe several for an inner node."""
        return tuple(dict.fromkeys(device for leaf, device in self.of_leaf.items() if is_under(leaf, node)))

    def __str__(self) -> str:
        """Text that `device_map` reads as this map."""
        return ",".join(f"{leaf or ROOT}={device}" for leaf, device in self.of_leaf.items())


# --- reading ---------------------------------------------------------------------------------------------------------


def device_map(
    wanted: str | Mapping[str, str] | DeviceMap,
    topology: Topology,
    *,
    visible: Sequence[Device] = (),
    counts: Mapping[NodePath, float] | None = None,
) -> DeviceMap:
    """Read what somebody wants, and check that every leaf has its device.

    Args:
        wanted: The text of a map, a `.json` or `.toml` file that holds one, pairs of path and device, `auto` for all
            visible devices, or `auto:N` for N of them.
        topology: The tree.
        visible: Devices that this machine has; `auto` alone needs them. With `auto:N` the CPU counts as N.
        counts: How much text each leaf was made from, which is what `auto` balances; equal where it is not known.

    Raises:
        SettingError: No map, a path that the tree does not have, no such kind of device, or a leaf without one.
    """
    if isinstance(wanted, DeviceMap):
        wanted = wanted.of_leaf
    if isinstance(wanted, Mapping):
        return _resolved(dict(wanted), topology, where="device map")
    head, _, number = wanted.strip().partition(":")
    if head == "auto":
        return spread(topology, _first(visible, number), counts or {})
    if wanted.endswith((".json", ".toml")):
        return _resolved(_read_file(Path(wanted)), topology, where=wanted)
    return _resolved(_pairs(wanted), topology, where=f"device map {wanted!r}")


def _pairs(text: str) -> dict[str, str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.count("=") == 1 for part in parts):
        raise SettingError(f"device map {text!r}: {_FORMS}")
    pairs = [tuple(side.strip() for side in part.split("=")) for part in parts]
    return _once((path, device) for path, device in pairs)


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Pairs as a dict, none of them said twice."""
    found: dict[str, Any] = {}
    for path, device in pairs:
        if path in found:
            raise SettingError(f"device map: {path!r} stands there twice; name one device for each path")
        found[path] = device
    return found


def _read_file(file: Path) -> dict[str, str]:
    try:
        text = file.read_text(encoding="utf-8")
        found = tomllib.loads(text) if file.suffix == ".toml" else json.loads(text, object_pairs_hook=_once)
    except OSError as error:
        raise SettingError(f"{file}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise SettingError(f"{file}: no {file.suffix[1:].upper()}: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(device, str) for device in found.values()):
        raise SettingError(f'{file}: expected paths with the device of each, such as "0" and "cuda:0"')
    return found


def _resolved(pairs: dict[str, str], topology: Topology, *, where: str) -> DeviceMap:
    """Pairs by prefix → a device for every leaf."""
    by_path = _once(("" if path == ROOT else path, device) for path, device in pairs.items())
    known = set(topology.nodes)
    for path, device in by_path.items():
        _check(path, device, topology, known, where)
    found = {leaf: _longest(leaf, by_path) for leaf in topology.leaves}
    bare = next((leaf for leaf, device in found.items() if device is None), None)
    if bare is not None:
        raise SettingError(f"{where}: leaf {bare or ROOT} has no device; name one for it, or one for {ROOT}")
    return DeviceMap({leaf: device for leaf, device in found.items() if device is not None})


def _check(path: str, device: str, topology: Topology, known: set[NodePath], where: str) -> None:
    if not is_path(path):
        raise SettingError(f"{where}: {path!r} is no path; expected {ROOT}, or at most {MAX_DEPTH} digits 0 or 1")
    if path not in known:
        leaves = ", ".join(leaf or ROOT for leaf in topology.leaves)
        raise SettingError(f"{where}: the tree has no node {path}; its leaves are {leaves}")
    if not _DEVICE.fullmatch(device):
        raise SettingError(f"{where}: device {device!r}: expected such as cuda:0, xpu:0, mps or cpu:0")


def _longest(leaf: NodePath, by_path: Mapping[str, Device]) -> Device | None:
    return next((by_path[leaf[:n]] for n in range(len(leaf), -1, -1) if leaf[:n] in by_path), None)


# --- choosing --------------------------------------------------------------------------------------------------------


def spread(topology: Topology, devices: Sequence[Device], counts: Mapping[NodePath, float]) -> DeviceMap:
    """Leaves over devices, in runs of neighbours, so that what they share above them lies on few devices.

    Each device gets about the same share of the text. With fewer leaves than devices the last ones stay empty.

    Args:
        topology: The tree.
        devices: At least one.
        counts: How much text each leaf was made from; a leaf without a count weighs as much as the others on average.
    """
    known = {leaf: count for leaf in topology.leaves if 0 < (count := counts.get(leaf, 0.0)) < math.inf}
    usual = sum(known.values()) / len(known) if known else 1.0
    weights = {leaf: known.get(leaf, usual) for leaf in topology.leaves}
    parts = _split([(leaf, weights[leaf]) for leaf in topology.leaves], min(len(devices), len(topology.leaves)))
    return DeviceMap({leaf: device for part, device in zip(parts, devices, strict=False) for leaf, _ in part})


def _split(leaves: list[tuple[NodePath, float]], n_parts: int) -> list[list[tuple[NodePath, float]]]:
    """`n_parts` runs of neighbours, none empty, halved again and again where both sides weigh most nearly as much."""
    if n_parts == 1:
        return [leaves]
    n_left = n_parts // 2
    total, left = sum(weight for _, weight in leaves), 0.0
    wanted = total * n_left / n_parts
    cuts: dict[int, float] = {}
    for index, (_, weight) in enumerate(leaves[:-1], start=1):
        left += weight
        cuts[index] = abs(left - wanted)
    possible = range(n_left, len(leaves) - (n_parts - n_left) + 1)
    cut = min(possible, key=lambda index: cuts[index])
    return _split(leaves[:cut], n_left) + _split(leaves[cut:], n_parts - n_left)


def _first(visible: Sequence[Device], number: str) -> list[Device]:
    """Those of `auto`, or as many as `auto:N` asks for."""
    if not number:
        return list(visible)
    if not (number.isdecimal() and 1 <= int(number) <= 999):
        raise SettingError(f"device map 'auto:{number}': expected a number of devices, such as auto:2")
    if list(visible) == ["cpu"]:
        return [f"cpu:{index}" for index in range(int(number))]
    if int(number) > len(visible):
        raise SettingError(f"device map 'auto:{number}': this machine has {len(visible)}: {', '.join(visible)}")
    return list(visible)[: int(number)]

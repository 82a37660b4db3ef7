"""A device for every leaf: what is read, what is refused, and what `auto` chooses."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinylora.errors import SettingError
from tinylora.serving.device_map import DeviceMap, device_map, spread
from tinylora.tree import Topology

UNEVEN = Topology(("0", "10", "11"))
ONE = Topology(("",))
PAIRS = {"root": "cuda:0", "1": "cuda:1", "11": "cpu:0"}
EXPECTED = {"0": "cuda:0", "10": "cuda:1", "11": "cpu:0"}


def test_the_longest_prefix_wins_in_every_form(tmp_path: Path) -> None:
    as_json, as_toml = tmp_path / "map.json", tmp_path / "map.toml"
    as_json.write_text(json.dumps(PAIRS))
    as_toml.write_text("".join(f'{path} = "{device}"\n' for path, device in PAIRS.items()))
    text = ", ".join(f"{path} = {device}" for path, device in PAIRS.items())
    for wanted in (text, PAIRS, str(as_json), str(as_toml), DeviceMap(EXPECTED)):
        found = device_map(wanted, UNEVEN)
        assert found.of_leaf == EXPECTED
        assert device_map(str(found), UNEVEN) == found
    assert found.leaves == {"cuda:0": ("0",), "cuda:1": ("10",), "cpu:0": ("11",)}
    assert found.holders("1") == ("cuda:1", "cpu:0")
    assert found.holders("10") == ("cuda:1",)
    assert str(device_map("root=cpu", ONE)) == "root=cpu"


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("", "expected PATH=DEVICE"),
        ("cuda:0", "expected PATH=DEVICE"),
        ("0=cuda:0,1", "expected PATH=DEVICE"),
        ("0=a=b", "expected PATH=DEVICE"),
        ("0=cpu,0=cpu:1", "'0' stands there twice"),
        ("root=cpu,=cpu:1", "'' stands there twice"),
        ("2=cpu", "'2' is no path"),
        ("01=cpu", "the tree has no node 01; its leaves are 0, 10, 11"),
        ("0=cuda:0,10=cuda:1", "leaf 11 has no device"),
        ("root=gpu", "device 'gpu': expected such as cuda:0"),
        ("root=cuda:0;rm", "device 'cuda:0;rm'"),
        ("root=mps:1", "device 'mps:1'"),
        ("auto:0", "expected a number of devices"),
        ("auto:x", "expected a number of devices"),
        ("auto:3", "this machine has 2: cuda:0, cuda:1"),
        ("missing.json", "missing.json: cannot be read"),
    ],
)
def test_refused(wanted: str, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        device_map(wanted, UNEVEN, visible=["cuda:0", "cuda:1"])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("map.json", "{", "no JSON"),
        ("map.json", "[]", "expected paths"),
        ("map.json", '{"0": 1}', "expected paths"),
        ("map.json", '{"0": "cpu", "0": "cpu"}', "stands there twice"),
        ("map.toml", "0 =", "no TOML"),
        ("map.toml", "[a]\n0 = 'cpu'", "expected paths"),
    ],
)
def test_files_that_are_no_map(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SettingError, match=said):
        device_map(str(tmp_path / name), UNEVEN)


def test_auto() -> None:
    assert device_map("auto", UNEVEN, visible=["cpu"]).devices == ("cpu",)
    assert device_map("auto:2", UNEVEN, visible=["cpu"]).leaves == {"cpu:0": ("0",), "cpu:1": ("10", "11")}
    assert device_map("auto:1", UNEVEN, visible=["cuda:0", "cuda:1"]).devices == ("cuda:0",)
    assert device_map("auto:9", ONE, visible=["cpu"]).devices == ("cpu:0",)
    counts = {"0": 1.0, "10": 1.0, "11": 2.0}
    assert device_map("auto", UNEVEN, visible=["mps", "cpu"], counts=counts).leaves["cpu"] == ("11",)


@given(st.lists(st.floats(0, 100), min_size=16, max_size=16), st.integers(1, 16))
def test_spread_is_as_even_as_runs_of_neighbours_can_nearly_be(counts: list[float], n_devices: int) -> None:
    tree = Topology.perfect(4)
    by_leaf = dict(zip(tree.leaves, counts, strict=True))
    devices = [f"cuda:{index}" for index in range(n_devices)]
    found = spread(tree, devices, by_leaf)
    assert found.devices == tuple(devices)
    assert tuple(itertools.chain(*found.leaves.values())) == tree.leaves
    known = [count for count in counts if count > 0]
    usual = sum(known) / len(known) if known else 1.0
    weights = {leaf: by_leaf[leaf] or usual for leaf in tree.leaves}
    loads = [sum(weights[leaf] for leaf in leaves) for leaves in found.leaves.values()]
    fair = sum(weights.values()) / n_devices
    assert max(loads) <= fair + 3 * max(weights.values())

"""Reading a part of a bundle: what is on the way to some leaves, mapped, with and without the numbers' sums."""

import os

import pytest
import torch

from tests.bundle.test_bundle import adapter, flip, make, written
from tinylora.bundle import open_bundle, read_bundle, read_open
from tinylora.errors import BundleError, SettingError
from tinylora.tree import Topology

TREE = Topology.perfect(2)


@pytest.fixture
def file(tmp_path):
    nodes = {path: adapter(index) for index, path in enumerate(("", "0", "00", "01", "10"))}
    return written(tmp_path, make(TREE, nodes=nodes))


@pytest.mark.parametrize(
    ("leaves", "nodes"),
    [((), set()), (("00",), {"", "0", "00"}), (("11",), {""}), (("01", "10"), {"", "0", "01", "10"})],
)
@pytest.mark.parametrize("verify", [True, False])
def test_what_is_on_the_way_is_read_and_nothing_else(file, leaves, nodes, verify):
    whole, part = read_bundle(file), read_bundle(file, leaves=leaves, verify=verify)
    assert set(part.nodes) == nodes
    for path in nodes:
        assert part.nodes[path].keys() == whole.nodes[path].keys()
        assert all(torch.equal(tensor, whole.nodes[path][name]) for name, tensor in part.nodes[path].items())
    assert part.statistics is None and part.topology == whole.topology
    assert part.gates.nodes.keys() == whole.gates.nodes.keys()
    assert part.projection is not None and whole.projection is not None
    assert torch.equal(part.projection, whole.projection)


def test_one_opening_serves_any_number_of_parts(file):
    opened = open_bundle(file)
    for leaf in TREE.leaves:
        assert "" in read_open(opened, leaves=[leaf], verify=False).nodes
    assert set(read_open(opened).nodes) == {"", "0", "00", "01", "10"}


def test_sums_are_checked_of_what_is_read(file):
    data = file.read_bytes()
    last = len(data) - 1  # of node 10, which comes last in the file
    file.write_bytes(flip(data, last, 1))
    assert set(read_bundle(file, leaves=["00"]).nodes) == {"", "0", "00"}
    assert set(read_bundle(file, leaves=["10"], verify=False).nodes) == {"", "10"}
    for leaves in (["10"], None):
        with pytest.raises(BundleError, match=r"tensor node\.10\.\S+ does not fit its sha256"):
            read_bundle(file, leaves=leaves)
    file.write_bytes(flip(data, 200, 1))
    with pytest.raises(BundleError):
        read_bundle(file, leaves=["00"], verify=False)


def test_a_leaf_that_is_not_there(file):
    with pytest.raises(SettingError, match=r"no leaf '0'; the bundle has 00, 01, 10, 11"):
        read_bundle(file, leaves=["0"])


def test_tensors_are_of_the_file_but_not_the_file(file, tmp_path):
    data = file.read_bytes()
    read = read_bundle(file, leaves=["00"])
    tensor = read.nodes["00"]["mlp.down_proj.lora_A"]
    before = tensor.clone()
    (tmp_path / "new").write_bytes(b"something else")
    os.replace(tmp_path / "new", file)
    assert torch.equal(tensor, before)
    file.write_bytes(data)
    tensor.zero_()
    assert file.read_bytes() == data

"""A dropped leaf is as one that was never there; all others compute, bit by bit, what they did."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bundle.test_assemble import LORA, TREE, make, trained
from tests.bundle.test_derive import logits, run
from tests.bundle.test_derive_merge import a_run, routed, sums_of
from tests.helpers import tiny_base_model
from tests.routing.helpers import topologies
from tinylora.base_model import LoadedBase
from tinylora.bundle import Bundle, LeafStatistics, read_bundle, summarise, write_bundle
from tinylora.derive import drop_leaf
from tinylora.errors import SettingError
from tinylora.routing.gates import DEFAULT_TAU, EMPTY_SIDE_BIAS, Gate, Gates, solve_gates
from tinylora.tree import Topology

LEAVES = ("0", "100", "101", "11")


@pytest.fixture(scope="module")
def base() -> LoadedBase:
    return tiny_base_model()


def a_tree(base: LoadedBase) -> Bundle:
    """A run whose gates have measured temperatures, and that has an adapter on an inner node, too."""
    made = a_run(base, "tree", LEAVES)
    nodes = {node: replace(gate, tau=0.2 + 0.1 * len(node)) for node, gate in made.gates.nodes.items()}
    return replace(made, gates=replace(made.gates, nodes=nodes), nodes=made.nodes | {"10": trained(base, "10")})


def test_all_other_leaves_are_bit_by_bit_what_they_were(base: LoadedBase, tmp_path: Path) -> None:
    file, out = tmp_path / "whole.safetensors", tmp_path / "less.safetensors"
    write_bundle(a_tree(base), file)
    assert run("drop", file, "--leaf", "101", "--out", out) == 0
    whole, less = read_bundle(file), read_bundle(out)
    assert sorted(less.nodes) == ["0", "10", "100", "11"]
    for leaf in ("0", "100", "11"):
        assert torch.equal(logits(less, base, leaf), logits(whole, base, leaf))
    above = replace(whole, nodes={"10": whole.nodes["10"]})
    assert torch.equal(logits(less, base, "101"), logits(above, base, "101"))
    for path in ("0", "100", "11"):
        # The same text on the same way, decided by gates: sent there, one token after the other.
        sent = [routed(replace(bundle, gates=towards(path, bundle)), base, "hard") for bundle in (whole, less)]
        assert torch.equal(*sent)


def towards(path: str, bundle: Bundle) -> Gates:
    """Gates that send everything to one leaf."""
    zero = np.zeros(bundle.gates.dim)
    nodes = {
        node: Gate(zero, 1e3 if path[len(node) :].startswith("1") else -1e3, 1.0) for node in bundle.topology.inner
    }
    return Gates(nodes, bundle.gates.dim)


@settings(max_examples=25)
@given(topologies(), st.integers(0, 1000), st.data())
def test_gates_are_those_of_the_tree_that_never_saw_the_leaf(plain, topology, seed, data):
    if len(topology.leaves) < 2:
        return
    sums = {leaf: sums_of(leaf, 4, seed) for leaf in topology.leaves}
    leaf = data.draw(st.sampled_from(topology.leaves))
    made = replace(plain, topology=topology, gates=solve_gates(sums, topology, tau=0.7), statistics=summarise(sums))
    less = drop_leaf(made, leaf)
    expected = solve_gates({path: item for path, item in sums.items() if path != leaf}, topology)
    for node, gate in less.gates.nodes.items():
        assert np.abs(gate.w - expected.nodes[node].w).max() < 1e-10
        assert abs(gate.b - expected.nodes[node].b) < 1e-10
        has_both = all(any(p.startswith(node + side) and p != leaf for p in topology.leaves) for side in "01")
        assert gate.tau == (0.7 if has_both else DEFAULT_TAU)
    above = less.gates.nodes[leaf[:-1]]
    if any(path.startswith(leaf[:-1]) and path != leaf for path in topology.leaves):
        assert above.b == (EMPTY_SIDE_BIAS if leaf[-1] == "0" else -EMPTY_SIDE_BIAS)
    assert less.topology == topology and less.report["drop"]["is_exact"]
    assert less.statistics is not None and leaf not in less.statistics.covariances


@pytest.fixture(scope="module")
def plain(base: LoadedBase) -> Bundle:
    """A bundle without adapters whose features have four numbers."""
    return replace(make(base), base=base.facts.model_copy(update={"feature_dim": 4}))


def test_leaves_go_one_after_the_other_but_for_the_last(base: LoadedBase) -> None:
    made = a_run(base, "run", TREE.leaves)
    first = drop_leaf(drop_leaf(made, "10"), "11")
    second = drop_leaf(drop_leaf(made, "11"), "10")
    for node, gate in first.gates.nodes.items():
        assert np.array_equal(gate.w, second.gates.nodes[node].w) and gate.b == second.gates.nodes[node].b
    assert first.gates.nodes["1"].b == 0  # nobody is left below it, and it is undecided
    assert first.gates.nodes[""].b == -EMPTY_SIDE_BIAS
    with pytest.raises(SettingError, match="leaf '0': is the last one that anybody trained"):
        drop_leaf(first, "0")


def test_what_a_bundle_told_of_the_leaf_goes_too(
    base: LoadedBase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "whole.safetensors", tmp_path / "less.safetensors"
    write_bundle(a_tree(base), file)
    assert run("drop", file, "--leaf", "0", "--out", out) == 0
    said = capsys.readouterr().out
    assert "without leaf 0, 4 adapters, BF16" in said and "contributors stay" in said
    less = read_bundle(out)
    assert (less.data_notes, less.versions) == ({}, {"router": 3})
    assert (less.contributors, less.licences) == (("ann", "tree"), ("licence of tree",))
    assert len(less.derived_from) == 1 and less.report["drop"]["leaf"] == "0"
    assert run("drop", file, "--leaf", "100", "--out", out) == 0
    assert "the adapters above it (10) stay, with its workers' share in them" in capsys.readouterr().out
    for leaf, words in (
        ("10", "'10': an inner node; its leaves are dropped one by one; expected one of '100', '101'"),
        ("", "'': an inner node"),
        ("1000", "'1000': no such leaf; expected one of '0', '100', '101', '11'"),
        ("<b>", "no such leaf"),
    ):
        written = out.read_bytes()
        assert run("drop", file, "--leaf", leaf, "--out", out) == 2
        assert words in capsys.readouterr().err
        assert out.read_bytes() == written
    assert run("drop", file, "--leaf", "0", "--out", file) == 2


def test_without_single_covariances_the_gates_are_near_and_that_is_said(
    base: LoadedBase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = a_run(base, "run", TREE.leaves)
    exact = drop_leaf(made, "11")
    assert made.statistics is not None
    whole = made.statistics
    pooled = replace(made, statistics=LeafStatistics(whole.counts, whole.means, pooled=whole.covariance))
    write_bundle(pooled, tmp_path / "pooled.safetensors")
    assert run("drop", tmp_path / "pooled.safetensors", "--leaf", "11", "--out", tmp_path / "less.safetensors") == 0
    assert "gates nearly as without the leaf: the bundle has one covariance for all leaves" in capsys.readouterr().out
    near = drop_leaf(pooled, "11")
    assert near.report["drop"]["is_exact"] is False
    assert np.abs(near.gates.nodes[""].w - exact.gates.nodes[""].w).max() > 0
    none = replace(made, statistics=None)
    with pytest.raises(SettingError, match="no statistics of other leaves, from which the gates could be solved anew"):
        drop_leaf(none, "11")
    kept = drop_leaf(none, "11", keeps_gates=True)
    assert kept.gates is none.gates and "11" not in kept.nodes


def test_a_lone_leaf_and_an_empty_one_cannot_be_dropped(base: LoadedBase) -> None:
    with pytest.raises(SettingError, match="leaf '': is the last one"):
        drop_leaf(a_run(base, "run", ("",)), "")
    made = replace(make(base, "0", "10"), spec=LORA, topology=Topology(TREE.leaves))
    with pytest.raises(SettingError, match="leaf '11': has neither adapter nor statistics"):
        drop_leaf(made, "11")

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinylora.errors import SettingError
from tinylora.tree import MAX_DEPTH, Topology, ancestors, by_level, children, is_path, is_under, parent


@st.composite
def topologies(draw: st.DrawFn, max_splits: int = 12) -> Topology:
    """Any tree that up to `max_splits` splits of the root can make."""
    tree = Topology.perfect(0)
    for _ in range(draw(st.integers(0, max_splits))):
        tree = tree.split(draw(st.sampled_from([leaf for leaf in tree.leaves if len(leaf) < MAX_DEPTH])))
    return tree


def test_the_tree_of_depth_two_on_paper() -> None:
    tree = Topology.perfect(2)
    assert tree.leaves == ("00", "01", "10", "11")
    assert tree.inner == ("", "0", "1")
    assert tree.nodes == ("", "0", "1", "00", "01", "10", "11")
    assert tree.leaves_below("1") == ("10", "11")
    assert tree.inner_below("1") == ("1",)


def test_the_tree_of_depth_zero_is_one_leaf_at_the_root() -> None:
    tree = Topology.perfect(0)
    assert (tree.leaves, tree.inner, tree.nodes, tree.depth) == (("",), (), ("",), 0)


def test_paths() -> None:
    assert parent("01") == "0"
    assert children("01") == ("010", "011")
    assert ancestors("011") == ("", "0", "01")
    assert is_under("01", "0")
    assert is_under("01", "01")
    assert not is_under("0", "01")
    assert by_level(["10", "0", "", "1", "01"]) == ("", "0", "1", "01", "10")
    with pytest.raises(ValueError, match="no parent"):
        parent("")


@pytest.mark.parametrize(("text", "expected"), [("", True), ("0110", True), ("2", False), ("0" * 17, False)])
def test_is_path(text: str, expected: bool) -> None:
    assert is_path(text) is expected


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        ((), "lacks a child"),
        (("0",), "lacks a child"),
        (("0", "10"), "lacks a child"),
        (("0", "01", "1"), "under another"),
        (("0", "0", "1"), "under another"),
        (("", "0", "1"), "under another"),
        (("0", "x"), "expected at most 16 digits"),
    ],
)
def test_leaves_that_are_no_tree_are_refused(leaves: tuple[str, ...], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Topology(leaves)


@pytest.mark.parametrize("depth", [-1, MAX_DEPTH + 1])
def test_a_depth_out_of_range_is_refused(depth: int) -> None:
    with pytest.raises(SettingError, match=f"depth {depth}"):
        Topology.perfect(depth)


@given(topologies())
def test_every_tree_is_full_and_prefix_free(tree: Topology) -> None:
    assert len(tree.inner) == len(tree.leaves) - 1
    assert not any(is_under(a, b) or is_under(b, a) for a, b in combinations(tree.leaves, 2))
    assert all(child in tree.nodes for node in tree.inner for child in children(node))
    assert tree.depth == max(map(len, tree.leaves))


@given(topologies(), st.randoms(use_true_random=False))
def test_the_order_in_which_leaves_are_given_does_not_matter(tree: Topology, random) -> None:
    leaves = list(tree.leaves)
    random.shuffle(leaves)
    assert Topology(tuple(leaves)) == tree


@given(topologies(), st.data())
def test_merge_undoes_split(tree: Topology, data: st.DataObject) -> None:
    leaf = data.draw(st.sampled_from(tree.leaves))
    assert tree.split(leaf).merge(leaf) == tree


@given(topologies())
def test_the_subtrees_of_both_children_divide_a_subtree(tree: Topology) -> None:
    for node in tree.inner:
        left, right = children(node)
        assert tree.leaves_below(left) + tree.leaves_below(right) == tree.leaves_below(node)
        assert set(tree.inner_below(node)) == {node, *tree.inner_below(left), *tree.inner_below(right)}


def test_split_and_merge_want_the_right_nodes() -> None:
    tree = Topology.perfect(2)
    with pytest.raises(ValueError, match="not a leaf"):
        tree.split("0")
    with pytest.raises(ValueError, match="not both leaves"):
        tree.merge("")

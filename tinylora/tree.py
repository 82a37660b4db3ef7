"""The shape of the tree: node paths and topologies. Plain Python, no tensors.

A node is named by the turns that lead to it from the root: `""` is the root, `"0"` its left child, `"01"` that one's
right child. A topology is the set of its leaves: any prefix-free set in which every inner node has both children, so
trees may be uneven and may split and merge while a run goes on.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from tinylora.errors import SettingError

MAX_DEPTH = 16

NodePath: TypeAlias = str


def parent(path: NodePath) -> NodePath:
    """The node one level up.

    Raises:
        ValueError: `path` is the root, which has no parent.
    """
    if not path:
        raise ValueError("the root has no parent")
    return path[:-1]


def children(path: NodePath) -> tuple[NodePath, NodePath]:
    """Left and right child."""
    return path + "0", path + "1"


def ancestors(path: NodePath) -> tuple[NodePath, ...]:
    """All nodes above `path`, root first, without `path` itself."""
    return tuple(path[:level] for level in range(len(path)))


def is_under(path: NodePath, top: NodePath) -> bool:
    """Whether `path` lies in the subtree of `top`; a node lies in its own subtree."""
    return path.startswith(top)


def are_in_line(one: NodePath, other: NodePath) -> bool:
    """Whether one of the two lies on the way from the root to the other; a node is in line with itself."""
    return is_under(one, other) or is_under(other, one)


def is_path(text: str) -> bool:
    """Whether `text` names a node: at most `MAX_DEPTH` turns, each 0 or 1."""
    return len(text) <= MAX_DEPTH and set(text) <= {"0", "1"}


def by_level(paths: Iterable[NodePath]) -> tuple[NodePath, ...]:
    """Sorted from the root down, left to right: the one order of nodes used everywhere."""
    return tuple(sorted(paths, key=lambda path: (len(path), path)))


@dataclass(frozen=True)
class Topology:
    """A full binary tree, given by its leaves (kept sorted from left to right).

    Raises:
        SettingError: A leaf is no path, lies under another leaf, or an inner node lacks a child.
    """

    leaves: tuple[NodePath, ...]

    def __post_init__(self) -> None:
        """Sort the leaves and check that they form a full binary tree."""
        object.__setattr__(self, "leaves", tuple(sorted(self.leaves)))
        wrong = next((leaf for leaf in self.leaves if not is_path(leaf)), None)
        if wrong is not None:
            raise SettingError(f"leaf {wrong!r}: expected at most {MAX_DEPTH} digits 0 or 1")
        # Kraft's equality holds exactly for the leaf sets of full binary trees, if no leaf lies under another.
        if len(set(self.leaves)) != len(self.leaves) or any(
            right.startswith(left) for left, right in zip(self.leaves, self.leaves[1:], strict=False)
        ):
            raise SettingError(f"leaves {', '.join(self.leaves)}: one lies under another", rule="tree")
        if sum(2 ** (MAX_DEPTH - len(leaf)) for leaf in self.leaves) != 2**MAX_DEPTH:
            raise SettingError(f"leaves {', '.join(self.leaves) or '(none)'}: an inner node lacks a child", rule="tree")

    @classmethod
    def perfect(cls, depth: int) -> "Topology":
        """The tree of 2**depth leaves, all at the same level.

        Raises:
            SettingError: `depth` is not between 0 and `MAX_DEPTH`.
        """
        if not 0 <= depth <= MAX_DEPTH:
            raise SettingError(f"depth {depth}: expected 0 to {MAX_DEPTH}")
        return cls(tuple(format(index, f"0{depth}b") if depth else "" for index in range(2**depth)))

    @cached_property
    def inner(self) -> tuple[NodePath, ...]:
        """Inner nodes, root first: the ones that carry a router."""
        return by_level({node for leaf in self.leaves for node in ancestors(leaf)})

    @property
    def nodes(self) -> tuple[NodePath, ...]:
        """All nodes, root first."""
        return by_level((*self.inner, *self.leaves))

    @property
    def depth(self) -> int:
        """Edges from the root to the deepest leaf."""
        return max(len(leaf) for leaf in self.leaves)

    def leaves_below(self, node: NodePath) -> tuple[NodePath, ...]:
        """Leaves in the subtree of `node`, left to right; a leaf's own subtree is itself."""
        return tuple(leaf for leaf in self.leaves if is_under(leaf, node))

    def inner_below(self, node: NodePath) -> tuple[NodePath, ...]:
        """Inner nodes in the subtree of `node`, `node` first."""
        return tuple(inner for inner in self.inner if is_under(inner, node))

    def split(self, leaf: NodePath) -> "Topology":
        """The topology after `leaf` became an inner node with two leaves.

        Raises:
            ValueError: `leaf` is not a leaf of this topology.
        """
        if leaf not in self.leaves:
            raise ValueError(f"{leaf!r} is not a leaf")
        return Topology((*(other for other in self.leaves if other != leaf), *children(leaf)))

    def merge(self, node: NodePath) -> "Topology":
        """The topology after the two leaves under `node` became the leaf `node`.

        Raises:
            ValueError: The children of `node` are not both leaves.
        """
        if not set(children(node)) <= set(self.leaves):
            raise ValueError(f"the children of {node!r} are not both leaves")
        return Topology((*(leaf for leaf in self.leaves if leaf not in children(node)), node))

"""Which nodes a token has, and how much of each: said once per forward pass, read by every linear.

| kind       | says                                                   | made by                                    |
| ---------- | ------------------------------------------------------ | ------------------------------------------ |
| `Fixed`    | every token has the same nodes, whole                  | no router, an oracle                       |
| `ByRow`    | all tokens of a row have the nodes of the row          | `@sequence`, an oracle by row, one token   |
| `ByToken`  | every token has a short list of nodes                  | `hard`, `top2`, `elastic`, `@window`       |
| `Weighted` | every token has all nodes, by weight                   | `soft`                                     |

A list has a fixed width: a leaf and its ancestors, or the paths of two leaves. Where a token has fewer, the list is
filled up with some node and a gate of zero, so that shapes depend on no value and nothing waits for a device.
"""

import weakref
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Fixed:
    """The nodes numbered `nodes` take every token with weight 1, so that their updates add up."""

    nodes: tuple[int, ...] = (0,)

    def to(self, device: torch.device) -> "Fixed":
        """On a device."""
        return self


@dataclass(frozen=True)
class ByRow:
    """One list of nodes for each row of the batch."""

    nodes: Int[Tensor, "row width"]
    gates: Float[Tensor, "row _ width"] | None
    """How much of each node a token has, or all tokens of a row; None is 1. Without any node gates are zero."""
    n_tokens: int
    """In each row."""
    n_nodes: int
    """That the model has."""

    def to(self, device: torch.device) -> "ByRow":
        """On a device."""
        if self.nodes.device == device:
            return self
        return ByRow(self.nodes.to(device), _to(self.gates, device), self.n_tokens, self.n_nodes)

    def dense(self) -> Float[Tensor, "row token node"]:
        """The same as a weight for every node."""
        gates = torch.ones_like(self.nodes, dtype=torch.float32)[:, None] if self.gates is None else self.gates
        nodes = self.nodes[:, None].expand(-1, self.n_tokens, -1)
        return scatter(nodes, gates.expand(nodes.shape), self.n_nodes)


@dataclass(frozen=True)
class ByToken:
    """One list of nodes for each token; `order` and `gathered` are made when they are first needed, and kept."""

    nodes: Int[Tensor, "row token width"]
    gates: Float[Tensor, "row token width"] | None
    """How much of each node a token has; None is 1."""
    n_nodes: int
    """That the model has."""
    _seen: "_Seen" = field(default_factory=lambda: _Seen(), repr=False, compare=False)

    @cached_property
    def order(self) -> "Order":
        """All entries of all lists, sorted by node."""
        return Order.of(self.nodes, self.n_nodes)

    def to(self, device: torch.device) -> "ByToken":
        """On a device."""
        if self.nodes.device == device:
            return self
        return ByToken(self.nodes.to(device), _to(self.gates, device), self.n_nodes)

    def dense(self) -> Float[Tensor, "row token node"]:
        """The same as a weight for every node."""
        gates = torch.ones_like(self.nodes, dtype=torch.float32) if self.gates is None else self.gates
        return scatter(self.nodes, gates, self.n_nodes)

    def gathered(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "entry in"]:
        """Each entry's row of `x`, in the order; without gradient.

        Linears that read the same tensor one after the other, as those of query, key and value do, share one copy.
        """
        known = self._seen.of(x)
        if known is None:
            with torch.no_grad():
                known = x.detach().reshape(-1, x.shape[-1]).index_select(0, self.order.token)
            self._seen.remember(x, known)
        return known


@dataclass(frozen=True)
class Weighted:
    """Every node takes every token, by weight."""

    weights: Float[Tensor, "row token node"]

    def to(self, device: torch.device) -> "Weighted":
        """On a device."""
        return Weighted(self.weights.to(device))

    def dense(self) -> Float[Tensor, "row token node"]:
        """The weights."""
        return self.weights


Routing: TypeAlias = Fixed | ByRow | ByToken | Weighted


@dataclass(frozen=True)
class Order:
    """Entries (a token and one of its nodes) sorted by node. No value leaves the device."""

    entry: Int[Tensor, " entry"]
    """Which entry stands at each place."""
    place: Int[Tensor, " entry"]
    """Where each entry stands."""
    token: Int[Tensor, " entry"]
    """Which token the entry at each place belongs to."""
    ends: Int[Tensor, " node"]
    """Where each node's entries end; int32, as `grouped_mm` wants it."""
    width: int
    """Entries of each token."""

    @classmethod
    def of(cls, nodes: Int[Tensor, "*rows width"], n_nodes: int) -> "Order":
        """Of lists of nodes; entries of one node stay in the order of the tokens."""
        width = nodes.shape[-1]
        ordered, entry = nodes.flatten().sort(stable=True)
        place = torch.empty_like(entry)
        place[entry] = torch.arange(len(entry), device=entry.device)
        ends = torch.searchsorted(ordered, torch.arange(n_nodes, device=entry.device), right=True, out_int32=True)
        token = entry if width == 1 else entry.div(width, rounding_mode="floor")
        return cls(entry, place, token, ends, width)

    @cached_property
    def bounds(self) -> list[tuple[int, int]]:
        """First and last place of each node's entries, in Python; on a GPU this waits for it."""
        ends = self.ends.tolist()
        return list(zip([0, *ends[:-1]], ends, strict=True))


class _Seen:
    """What was made of the tensor that was seen last, for as long as that tensor lives unchanged."""

    def __init__(self) -> None:
        self._key: tuple[weakref.ref[Tensor], int] | None = None
        self._made: Tensor | None = None

    def of(self, x: Tensor) -> Tensor | None:
        return self._made if self._key is not None and self._key[0]() is x and self._key[1] == _version(x) else None

    def remember(self, x: Tensor, made: Tensor) -> None:
        self._key, self._made = (weakref.ref(x, self._forget), _version(x)), made

    def _forget(self, gone: "weakref.ref[Tensor]") -> None:
        if self._key is not None and self._key[0] is gone:
            self._key = self._made = None


def _version(x: Tensor) -> int:
    """Counts changes in place; tensors of inference mode do not count them, nor are they changed."""
    return 0 if x.is_inference() else x._version


def _to(gates: Tensor | None, device: torch.device) -> Tensor | None:
    return None if gates is None else gates.to(device)


def scatter(
    nodes: Int[Tensor, "*place width"], gates: Float[Tensor, "*place width"], n_nodes: int
) -> Float[Tensor, "*place node"]:
    """Lists of nodes as a weight for every node."""
    empty = gates.new_zeros(*nodes.shape[:-1], n_nodes)
    return empty.scatter_add(-1, nodes, gates) if n_nodes else empty

"""The adapters of all nodes on one linear as two tensors, which is what products over many nodes take.

Parameters stay those of their nodes: some are trained, others frozen bit by bit. Each is a view into the stack, so no
number is in memory twice, and nothing is copied in a pass. Gradients of a stack go to the parameters node by node.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from tinylora.mixture.batched import rows_of

_n_steps = 0  # of any optimiser of this process: fused ones write without counting it in a tensor's version


def _count_step(*_: Any) -> None:
    global _n_steps
    _n_steps += 1


register_optimizer_step_post_hook(_count_step)


@dataclass(frozen=True, eq=False)
class Rows:
    """The nodes of each row in one pass, and which rows have others than in the pass before."""

    nodes: Int[Tensor, "row width"]
    before: int = 0
    """Number of the pass that `changed` compares with."""
    changed: Int[Tensor, " changed"] | None = None
    """Rows; None is all of them."""
    number: int = field(default_factory=itertools.count(1).__next__)
    """Of the pass, in this process."""

    @classmethod
    def after(cls, before: "Rows | None", nodes: Int[Tensor, "row width"]) -> "Rows":
        """Of the pass that follows; equal ones are the same."""
        if before is None or before.nodes.shape != nodes.shape:
            return cls(nodes)
        changed = (nodes != before.nodes).any(dim=1).nonzero().flatten()
        if not len(changed):
            return before
        return cls(nodes, before.number, changed) if 2 * len(changed) <= len(nodes) else cls(nodes)

    def since(self, known: "Rows") -> Int[Tensor, " changed"] | None:
        """Rows that have other nodes than in `known`; None where that is not known."""
        if known.number == self.number:
            return self.nodes.new_empty(0)
        return self.changed if known.number == self.before else None


@runtime_checkable
class Product(Protocol):
    """One node's pair."""

    has_own_factors: bool

    def product(self) -> tuple[Tensor, Tensor]:
        """A (rank, in) and B (out, rank)."""
        ...


class Stack:
    """The pairs of all nodes on one linear.

    Args:
        pairs: Node by node. Parameters that do not lie side by side in memory are moved there, and stay themselves.
    """

    def __init__(self, pairs: Sequence[Product]) -> None:
        self._pairs = pairs
        self._factors: tuple[_Factor, _Factor] | None = None
        if all(pair.has_own_factors for pair in pairs):
            a, b = zip(*(pair.product() for pair in pairs), strict=True)
            self._factors = _Factor(a), _Factor(b)
        self._cast: tuple[Any, tuple[Tensor, Tensor]] | None = None
        self._kept: tuple[Any, Rows, tuple[Tensor, Tensor]] | None = None

    def of(
        self, dtype: torch.dtype, nodes: tuple[int, ...] | None = None
    ) -> tuple[Float[Tensor, "node rank in"], Float[Tensor, "node out rank"]]:
        """A and B of some nodes, or of all.

        Without gradients they are of `dtype`, and a cast is kept until the numbers change; with them, or where products
        are computed as those of tied pairs are, the dtype is the parameters' own.
        """
        self._kept = None
        if self._factors is None:
            chosen = [self._pairs[node].product() for node in nodes or range(len(self._pairs))]
            return torch.stack([a for a, _ in chosen]), torch.stack([b for _, b in chosen])
        a, b = self._factors
        if torch.is_grad_enabled():
            self._cast = None
            return a.traced(nodes), b.traced(nodes)
        if a.stack.dtype == dtype:
            return _rows(a.stack, nodes), _rows(b.stack, nodes)
        key = (dtype, nodes, _n_steps, a.version, b.version)
        if self._cast is None or self._cast[0] != key:
            self._cast = key, (_rows(a.stack, nodes).to(dtype), _rows(b.stack, nodes).to(dtype))
        return self._cast[1]

    def of_rows(
        self, dtype: torch.dtype, rows: Rows
    ) -> tuple[Float[Tensor, "row entries in"], Float[Tensor, "row out entries"]]:
        """A and B of each row's list, as `mixture.batched.rows_of` lays them out; for passes without gradients.

        They are kept until the numbers change or anything else is asked for. Rows that went on to other nodes are
        gathered anew, the others stay.
        """
        factors = self._factors
        key = None if factors is None else (dtype, torch.is_inference_mode_enabled(), _n_steps, *_versions(factors))
        known, self._kept = self._kept, None
        if known is not None and key is not None and known[0] == key:
            gathered, changed = known[2], rows.since(known[1])
        else:
            gathered, changed = None, None
        if gathered is None or changed is None:
            gathered = rows_of(*self.of(dtype), rows.nodes)
        elif len(changed):
            for kept, part in zip(gathered, rows_of(*self.of(dtype), rows.nodes[changed]), strict=True):
                kept.index_copy_(0, changed, part)
        self._kept = key, rows, gathered
        return gathered


def _versions(factors: "tuple[_Factor, _Factor]") -> list[Any]:
    return [factor.version for factor in factors]


class _Factor:
    """A or B of all nodes, side by side."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self.stack = _side_by_side(parameters)
        self._is_counted_together = not self.stack.is_inference() and _count_together(self.stack, parameters)

    @property
    def version(self) -> Any:
        """Another one after any change in place that autograd could see."""
        if self._is_counted_together:
            return self.stack._version
        if self.stack.is_inference():
            return object()
        return [parameter._version for parameter in self._parameters]

    def traced(self, nodes: tuple[int, ...] | None) -> Tensor:
        """The stack of these nodes, with gradients to those parameters that want one."""
        chosen = self._parameters if nodes is None else [self._parameters[node] for node in nodes]
        if len(chosen) == 1:
            return chosen[0].unsqueeze(0)
        if nodes is not None and not _is_run(nodes):
            return torch.stack(tuple(chosen))
        stack = _rows(self.stack, nodes)
        return _Traced.apply(stack, *chosen) if any(parameter.requires_grad for parameter in chosen) else stack


class _Traced(torch.autograd.Function):
    """A stack as if it had been made of its parameters."""

    @staticmethod
    def forward(ctx: Any, stack: Tensor, *parameters: Tensor) -> Tensor:
        """The stack, in the same memory."""
        return stack.view_as(stack)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Each parameter's own part; a copy where it would keep the memory of parts that nobody wants."""
        needs = ctx.needs_input_grad[1:]
        parts = gradients[0].unbind()
        if not all(needs):
            parts = tuple(part.clone() if is_wanted else None for part, is_wanted in zip(parts, needs, strict=True))
        return None, *parts


@torch.no_grad()
def _side_by_side(parameters: Sequence[Tensor]) -> Tensor:
    """One tensor over the memory of all; they are moved together where they are not."""
    first = parameters[0].detach()
    step = first.numel() * first.element_size()
    places = [parameter.data_ptr() - first.data_ptr() for parameter in parameters]
    storage = first.untyped_storage().data_ptr()
    is_one = all(parameter.untyped_storage().data_ptr() == storage for parameter in parameters)
    if is_one and places == [step * index for index in range(len(parameters))] and first.is_contiguous():
        return first.as_strided((len(parameters), *first.shape), (first.numel(), *first.stride()))
    stack = torch.stack([parameter.detach() for parameter in parameters])
    for parameter, part in zip(parameters, stack, strict=True):
        parameter.data = part
    return stack


def _count_together(stack: Tensor, parameters: Iterable[Tensor]) -> bool:
    """Whether a change of any parameter shows in the stack's version, as it does before the first move."""
    before = [parameter._version for parameter in parameters]
    torch.autograd.graph.increment_version(stack)
    return all(parameter._version == version + 1 for parameter, version in zip(parameters, before, strict=True))


def _rows(stack: Tensor, nodes: tuple[int, ...] | None) -> Tensor:
    if nodes is None:
        return stack
    if _is_run(nodes):
        return stack[nodes[0] : nodes[-1] + 1]
    return torch.stack([stack[node] for node in nodes])


def _is_run(nodes: tuple[int, ...]) -> bool:
    return nodes[-1] - nodes[0] == len(nodes) - 1 and nodes == tuple(range(nodes[0], nodes[-1] + 1))

"""LoRA pairs: how a node's begin, and the module that adds those of many nodes to one frozen linear.

The state of one node is a dict of tensors, stacked over the layers that have the projection:
`<projection>.lora_A` (n_layers, rank, in) and `<projection>.lora_B` (n_layers, out, rank). Tied ones have their own
names and shapes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tinylora.adapters.drawing import draw
from tinylora.adapters.nested import prefix
from tinylora.adapters.shapes import check_projections
from tinylora.adapters.spec import AdapterSpec
from tinylora.adapters.stacks import Rows, Stack
from tinylora.adapters.tied import TiedPair, init_tied
from tinylora.config import BaseFacts, ProjectionShape
from tinylora.mixture import ByRow, Fixed, Impl, Routing, add_own, leaf_lora
from tinylora.tensors import Tensors


def init_adapter(facts: BaseFacts, spec: AdapterSpec, *, seed: int, path: str) -> Tensors:
    """The adapter that a new node begins with: A Gaussian with variance 1 / in, B zero, so that it changes nothing yet.

    The numbers depend on `seed`, `path` and the projection's name, on nothing else: every machine begins alike. Tied
    adapters begin as the table in `adapters.tied` says.

    Raises:
        SettingError: The spec does not fit the base.
    """
    check_projections(facts, spec)
    if spec.kind == "tied":
        return init_tied(facts, spec, seed=seed, path=path)
    state: Tensors = {}
    for projection, shape in facts.projections.items():
        rank, n_in = spec.rank_of(projection), shape.in_features
        size = (shape.n_layers, rank, n_in)
        state[f"{projection}.lora_A"] = draw(size, fan_in=n_in, seed=seed, path=path, label=projection)
        state[f"{projection}.lora_B"] = torch.zeros(shape.n_layers, shape.out_features, rank)
    return state


class LoraPair(nn.Module):
    """One node's A and B on one linear, both trained.

    Nodes have parameters of their own, so that some can be trained while others are frozen; those of all nodes on one
    linear lie side by side in a `Stack`.
    """

    has_own_factors = True
    """Whether the product's factors are this pair's own parameters."""

    def __init__(self, lora_a: Float[Tensor, "rank in"], lora_b: Float[Tensor, "out rank"]) -> None:
        super().__init__()
        self.lora_a, self.lora_b = nn.Parameter(lora_a), nn.Parameter(lora_b)

    def product(self) -> tuple[Float[Tensor, "rank in"], Float[Tensor, "out rank"]]:
        """A and B, whose product B A is the update."""
        return self.lora_a, self.lora_b

    def factors(self) -> dict[str, nn.Parameter]:
        """What is trained, by its name in states."""
        return {"lora_A": self.lora_a, "lora_B": self.lora_b}


def lora_pairs(n_nodes: int, shape: ProjectionShape, rank: int, device: torch.device) -> list[list[LoraPair]]:
    """Pairs of all nodes, layer by layer of a projection, all zero; those of one layer share two stacks."""
    layers = []
    for _ in range(shape.n_layers):
        stack_a = torch.zeros(n_nodes, rank, shape.in_features, device=device)
        stack_b = torch.zeros(n_nodes, shape.out_features, rank, device=device)
        layers.append([LoraPair(lora_a, lora_b) for lora_a, lora_b in zip(stack_a, stack_b, strict=True)])
    return layers


Pair: TypeAlias = LoraPair | TiedPair


@dataclass
class SharedRouting:
    """The routing of the forward pass under way, read by every `AdapterLinear` of a model.

    It stays until the next pass, because gradient checkpointing runs blocks again during backward.
    """

    routing: Routing
    impl: Impl = "auto"
    rank: int | None = None
    """Only the first so many rows of every adapter are used; None is all."""
    is_lower_frozen: bool = False
    """Whether only the last of those rows gets a gradient."""
    n_kept: int = 0
    """Adapters that may be kept gathered by row, from one step of one token to the next."""
    rows: Rows | None = None
    """Of the pass under way, where they are kept."""

    def take(self, routing: Routing) -> None:
        """Begin a pass.

        Adapters of rows are kept where there is one token of each, as gathering them costs more than their product
        with it. Not on a GPU: to compare is to wait for it, and a graph that is captured there would not see a change.
        """
        self.routing = routing
        can_keep = self.rank is None and self.impl != "reference" and not torch.is_grad_enabled()
        if can_keep and isinstance(routing, ByRow) and self._is_kept(routing):
            self.rows = Rows.after(self.rows, routing.nodes)
        else:
            self.rows = None

    def _is_kept(self, routing: ByRow) -> bool:
        nodes = routing.nodes
        return routing.n_tokens == 1 and nodes.numel() <= self.n_kept and nodes.device.type == "cpu"


class AdapterLinear(nn.Module):
    """A frozen linear with the adapters of several nodes beside it.

    The linear is opaque: it is called, and nothing of it is read. It may be an `nn.Linear`, a `Conv1D`, or quantised.
    """

    def __init__(self, base: nn.Module, pairs: Sequence[Pair], *, scale: float, shared: SharedRouting) -> None:
        """Wrap `base`; there is one pair per node, and the routing is read from `shared` at every call."""
        super().__init__()
        self.base = base
        self.pairs: Sequence[Pair] = nn.ModuleList(pairs)  # pyright: ignore[reportAttributeAccessIssue]
        self.in_features, self.out_features = pairs[0].lora_a.shape[-1], pairs[0].lora_b.shape[-2]
        self.scale = scale
        self.shared = shared
        self.limit: int | None = None
        """Rows beyond this are neither used nor trained in this layer; None is no limit."""
        self._stack = Stack(list(pairs))

    @property
    def weight(self) -> Tensor:
        """The linear's own, for blocks that read it past the call, as Mamba's do; adapters have no effect there."""
        return self.base.weight  # pyright: ignore[reportReturnType]

    @property
    def bias(self) -> Tensor | None:
        """The linear's own, as with `weight`."""
        return self.base.bias  # pyright: ignore[reportReturnType]

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """What the linear makes of `x`, plus what the current routing's nodes add."""
        shared, base_out = self.shared, self.base(x)
        routing = shared.routing
        if (
            isinstance(routing, ByRow)
            and shared.rows is not None
            and self.limit is None
            and not torch.is_grad_enabled()
        ):
            return add_own(x, base_out, *self._stack.of_rows(x.dtype, shared.rows), routing, self.scale)
        if type(routing) is Fixed:  # stacks of these alone: the others cost nothing, and get no gradient
            lora_a, lora_b = self._stack.of(x.dtype, routing.nodes)
            routing = Fixed(tuple(range(len(routing.nodes))))
        else:
            lora_a, lora_b = self._stack.of(x.dtype)
        if self.limit is not None:
            lora_a, lora_b = prefix(lora_a, lora_b, self.limit)
        if shared.rank is not None:
            lora_a, lora_b = prefix(lora_a, lora_b, shared.rank, is_lower_frozen=shared.is_lower_frozen)
        return leaf_lora(x, base_out, lora_a, lora_b, routing, self.scale, shared.impl)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "AdapterLinear":
        """Move or cast; parameters that moved lie elsewhere than in their stacks, and are put together again."""
        super()._apply(fn, recurse)
        self._stack = Stack(list(self.pairs))
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy's parameters have memory of their own, too."""
        super().__setstate__(state)
        self._stack = Stack(list(self.pairs))

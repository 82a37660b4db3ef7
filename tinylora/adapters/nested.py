"""Nested adapters: every prefix of the rank is an adapter of its own, so one training serves all ranks.

A step draws a rank b and uses the first b rows of A and columns of B alone. So early rows learn to do without the later
ones, a bundle can be cut to any rank afterwards, and workers of different memory can train prefixes of one leaf. The
tensors are those of a plain LoRA. Unlike the paper's alpha / b the scale stays alpha / rank at every b: the update of a
prefix is then the same function whoever uses it, and prefixes of several workers can be averaged.

Source:
    Valipour et al. 2022, DyLoRA, arXiv:2210.07558, algorithm 1.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from tinylora.adapters.prefixes import highest_rank
from tinylora.adapters.spec import AdapterSpec
from tinylora.errors import SettingError
from tinylora.tensors import Tensors

NestedLoss: TypeAlias = Callable[..., tuple[Tensor, Tensor]]
"""Token ids, document numbers, the step within the unit and perhaps which tokens are targets, to loss and nll."""


# --- training --------------------------------------------------------------------------------------------------------


@runtime_checkable
class Truncatable(Protocol):
    """What `nested_loss` asks of a `TreeModel`."""

    base: Any

    def use_rank(self, rank: int | None) -> None:
        """Use the first `rank` rows of every adapter in the following passes; None is all."""

    def loss(self, input_ids: Any, *, documents: Any = None, is_target: Any = None) -> Any:
        """Mean nats per token."""


def sample_rank(step: int, seed: int, rank: int, allowed: Sequence[int] = ()) -> int:
    """The rank that a training step uses: uniform over 1 to `rank`, or over `allowed` ones such as powers of two.

    It depends on the arguments alone, so that a unit that is repeated uses the same ranks again.

    Raises:
        SettingError: An allowed rank lies outside of 1 to `rank`.
    """
    choices = allowed or range(1, rank + 1)
    if not all(1 <= choice <= rank for choice in choices):
        raise SettingError(f"ranks to draw from: expected numbers from 1 to {rank}, got {list(choices)}")
    digest = hashlib.sha256(f"{seed}/rank of step/{step}".encode()).digest()
    return choices[int.from_bytes(digest[:8], "little") % len(choices)]


def nested_loss(
    model: Truncatable, spec: AdapterSpec, seed: int, first_step: int, allowed: Sequence[int] = ()
) -> NestedLoss:
    """Next-token loss, each step through a prefix of its own; passes in between see the whole adapter.

    With `nested:frozen` a step at rank b gives a gradient to row b of A and column b of B alone, the lower ones being
    used as they are. AdamW's momentum still moves rows that had a gradient in earlier steps.

    Args:
        model: Holds the adapters; a projection of lower rank is used whole when more is drawn.
        spec: Of the adapters.
        seed: Of the run.
        first_step: The node's steps before this unit.
        allowed: Ranks to draw from; none given means all.
    """
    rank = highest_rank(spec, model.base.facts)

    def loss_of(ids: Tensor, documents: Tensor, index: int, is_target: Tensor | None = None) -> tuple[Tensor, Tensor]:
        model.use_rank(sample_rank(first_step + index, seed, rank, allowed))
        try:
            nll = model.loss(ids, documents=documents, is_target=is_target)
        finally:
            model.use_rank(None)
        return nll, nll.detach()

    return loss_of


def prefix(
    lora_a: Float[Tensor, "*node rank in"],
    lora_b: Float[Tensor, "*node out rank"],
    rank: int,
    *,
    is_lower_frozen: bool = False,
) -> tuple[Float[Tensor, "*node cut in"], Float[Tensor, "*node out cut"]]:
    """The first `rank` rows of A and columns of B, or all where there are fewer; of one node or of a stack.

    With the lower ones frozen the gradient reaches row and column number `rank` only: nothing, where they do not exist.
    """
    lora_a, lora_b = lora_a[..., :rank, :], lora_b[..., :rank]
    if not is_lower_frozen:
        return lora_a, lora_b
    low = rank - 1
    return (
        torch.cat([lora_a[..., :low, :].detach(), lora_a[..., low:, :]], dim=-2),
        torch.cat([lora_b[..., :low].detach(), lora_b[..., low:]], dim=-1),
    )


# --- states ----------------------------------------------------------------------------------------------------------


def cut(state: Tensors, spec: AdapterSpec, ranks: Mapping[str, int]) -> Tensors:
    """An adapter's first rows and columns: `ranks` by projection, the others whole.

    Args:
        state: Of a node, of kind lora or nested.
        spec: Of that state.
        ranks: From 1 to the projection's own.

    Raises:
        SettingError: A rank is out of range, a projection is not there, or the kind is tied.
    """
    if spec.kind == "tied":
        raise SettingError(f"cut: adapters of kind {spec} have no usable prefixes; only lora and nested can be cut")
    strange = sorted(ranks.keys() - {_projection(name) for name in state})
    if strange:
        raise SettingError(f"cut: {strange[0]}: the adapter has no such projection")
    for projection, rank in sorted(ranks.items()):
        if not 1 <= rank <= spec.rank_of(projection):
            raise SettingError(f"cut: {projection}: expected a rank from 1 to {spec.rank_of(projection)}, got {rank}")
    return {name: _shorten(name, tensor, ranks.get(_projection(name))) for name, tensor in state.items()}


def pad(state: Tensors, ranks: Mapping[str, int]) -> Tensors:
    """The same function at higher ranks: rows and columns of zeros are added up to `ranks` by projection.

    Raises:
        SettingError: A projection has a higher rank already.
    """
    padded = {}
    for name, tensor in state.items():
        rank = ranks.get(_projection(name), _rank(name, tensor))
        missing = rank - _rank(name, tensor)
        if missing < 0:
            raise SettingError(f"pad: {_projection(name)}: expected rank {rank} at most, got {_rank(name, tensor)}")
        padded[name] = F.pad(tensor, (0, 0, 0, missing) if _is_a(name) else (0, missing))
    return padded


def _shorten(name: str, tensor: Tensor, rank: int | None) -> Tensor:
    shorter = tensor[:, :rank] if _is_a(name) else tensor[:, :, :rank]
    return shorter.clone()  # of its own, so that the longer one can be freed


def _projection(name: str) -> str:
    return name.rpartition(".")[0]


def _is_a(name: str) -> bool:
    return name.endswith(".lora_A")


def _rank(name: str, tensor: Tensor) -> int:
    return tensor.shape[1 if _is_a(name) else 2]

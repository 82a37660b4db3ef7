"""The adapters on the way to a node as one plain LoRA: their ranks side by side, which adds them up exactly."""

from collections.abc import Mapping, Sequence

from tinylora.adapters.mixing import concatenate
from tinylora.adapters.nested import pad
from tinylora.adapters.spec import AdapterSpec
from tinylora.adapters.tied import expand
from tinylora.bundle import Bundle
from tinylora.config import MAX_RANK
from tinylora.errors import SettingError
from tinylora.tensors import Tensors
from tinylora.tree import NodePath, by_level, is_under


def on_the_way(bundle: Bundle, path: NodePath) -> tuple[NodePath, ...]:
    """The nodes that have an adapter on the way from the root to `path`, itself included, root first."""
    return by_level(node for node in bundle.nodes if is_under(path, node))


def plain_states(bundle: Bundle, paths: Sequence[NodePath]) -> list[Tensors]:
    """The adapters of these nodes as plain LoRAs; tied ones are written out, in float32."""
    states = [bundle.nodes[path] for path in paths]
    if bundle.spec.kind != "tied":
        return states
    shared = {name: tensor.float() for name, tensor in bundle.shared.items()}
    return [
        expand({name: tensor.float() for name, tensor in state.items()}, bundle.spec, shared, bundle.base)
        for state in states
    ]


def leaf_state(bundle: Bundle, leaf: NodePath) -> Tensors:
    """The plain LoRA of a leaf with all its ancestors: their ranks side by side.

    Raises:
        SettingError: Nobody has trained an adapter on the way to the leaf.
    """
    paths = on_the_way(bundle, leaf)
    if not paths:
        raise SettingError(f"leaf {leaf!r}: nobody has trained it, so there is nothing to mix; leave it out")
    return concatenate(plain_states(bundle, paths))


def ranks_of(state: Tensors) -> dict[str, int]:
    """Rank by projection of a plain state."""
    return {name.removesuffix(".lora_A"): tensor.shape[1] for name, tensor in state.items() if name.endswith("A")}


def spec_of(ranks: Mapping[str, int], *, verb: str, cure: str) -> AdapterSpec:
    """What plain adapters of these ranks are: the highest one, and the others by projection.

    Args:
        ranks: By projection.
        verb: The command, for the message.
        cure: What to do where the rank is too high.

    Raises:
        SettingError: A rank is above the highest that a bundle may have.
    """
    highest = max(ranks.values())
    if highest > MAX_RANK:
        raise SettingError(f"{verb}: rank {highest} in all: expected at most {MAX_RANK}; {cure}")
    return AdapterSpec("lora", highest, {name: rank for name, rank in sorted(ranks.items()) if rank != highest})


def at_ranks(states: Mapping[NodePath, Tensors], ranks: Mapping[str, int]) -> dict[NodePath, Tensors]:
    """The same functions at these ranks, none of which is lower: rows and columns of zeros are added."""
    return {path: pad(state, ranks) for path, state in states.items()}

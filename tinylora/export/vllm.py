"""All leaves as a folder that vLLM serves, and the command that does.

vLLM reads PEFT's folders, but less of them than PEFT does (vllm/lora/peft_helper.py): one scale, lora_alpha / r, for
all modules, whatever `rank_pattern` and `alpha_pattern` say; r at most --max-lora-rank, which must be one of a few
numbers (vllm/config/lora.py). So every module gets the same rank by rows of zeros, which change nothing, and alpha is
whole. Its file-system resolver (vllm/plugins/lora_resolvers) takes a folder `<name>/` whose `base_model_name_or_path`
is the very text that `vllm serve` was given.
"""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from tinylora.adapters.nested import pad
from tinylora.adapters.shapes import adapter_shapes
from tinylora.adapters.spec import AdapterSpec
from tinylora.bundle import Bundle
from tinylora.derive.paths import ranks_of
from tinylora.errors import SettingError
from tinylora.export.card import Card, adapter_card, plain
from tinylora.export.folder import check_free, whole_folder
from tinylora.export.leaf import stored_state, trained_nodes
from tinylora.export.origin import Origin
from tinylora.export.peft_format import CARD_FILE, peft_config, write_adapter
from tinylora.export.places import Places, check_places
from tinylora.tensors import Tensors
from tinylora.tree import NodePath

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What --max-lora-rank may be."""
WITHOUT_LORA = ("BloomForCausalLM", "GPT2LMHeadModel", "GPTNeoXForCausalLM", "GPTJForCausalLM", "FalconForCausalLM")
"""Architectures of which vLLM's own implementation takes no adapters (its page "Supported Models")."""


@dataclass(frozen=True)
class ExportedForVllm:
    """What was written, and how it is served."""

    folder: Path
    leaves: tuple[NodePath, ...]
    untrained: tuple[NodePath, ...]
    """Of those: leaves with nothing on their way, whose adapters add nothing."""
    rank: int
    """For --max-lora-rank."""
    n_bytes: int
    command: str
    """One line for a shell."""
    notes: tuple[str, ...]
    """What a person must know besides; each a sentence."""


def leaf_name(leaf: NodePath) -> str:
    """What a leaf is called where a server lists its models."""
    return f"leaf-{leaf or 'root'}"


def allowed_rank(rank: int) -> int:
    """The lowest --max-lora-rank that an adapter of this rank fits in.

    Raises:
        SettingError: It is above all of them.
    """
    found = next((allowed for allowed in RANKS if allowed >= rank), None)
    if found is None:
        raise SettingError(
            f"rank {rank} on the way to a leaf: vLLM takes at most {RANKS[-1]}; cut the bundle to a lower rank "
            "(--nested-rank, or tinylora cut), or merge one leaf into the base (--format merged)"
        )
    return found


def export_vllm(
    bundle: Bundle,
    out_dir: Path,
    *,
    places: Places,
    base: str | Origin = "",
    card: Card | None = None,
    architecture: str = "",
    is_forced: bool = False,
) -> ExportedForVllm:
    """Write every leaf as an adapter folder `leaf-<path>`, and a README.md with the command.

    A leaf that nobody has trained gets an adapter that adds nothing, so that a router may name any leaf.

    Args:
        bundle: Of any kind.
        out_dir: Not there yet, or empty; it is written whole or not at all.
        places: Where the base has its projections.
        base: What `vllm serve` is to load; the bundle's own if not given.
        card: Further facts for the model cards.
        architecture: Of the base, for a note where vLLM has no LoRA for it.
        is_forced: Whether an earlier export in `out_dir` may be replaced.

    Raises:
        SettingError: Nobody has trained any leaf, a rank is above vLLM's highest, or the places are of another base.
        StorageError: The folder cannot be written, or is not empty.
    """
    check_places(bundle, places)
    check_free(out_dir, is_forced=is_forced)
    origin = base if isinstance(base, Origin) else Origin(base or bundle.base.base_id)
    leaves = bundle.topology.leaves
    nodes = {leaf: trained_nodes(bundle, leaf) for leaf in leaves}
    untrained = tuple(leaf for leaf in leaves if not nodes[leaf])
    if len(untrained) == len(leaves):
        raise SettingError(f"run {bundle.run}: nobody has trained any leaf, so there is nothing to export")
    rank = allowed_rank(max(_rank(bundle, path) for path in nodes.values()))
    n_bytes = 0
    with whole_folder(out_dir, is_forced=is_forced) as folder:
        for leaf in leaves:
            place = folder / leaf_name(leaf)
            place.mkdir()
            state = stored_state(bundle, leaf, nodes[leaf]) if nodes[leaf] else _nothing(bundle)
            state, scale = uniform(state, bundle.scale)
            text = adapter_card(bundle, leaf, nodes[leaf], max(ranks_of(state).values()), origin, card or Card())
            n_bytes += write_adapter(place, state, places, peft_config(state, places, scale, origin), text)
        names = [leaf_name(leaf) for leaf in leaves]
        command = serve_command(origin, rank, {name: name for name in names})
        (folder / CARD_FILE).write_text(_readme(bundle, origin, command), encoding="utf-8")
    where = {name: str(out_dir.resolve() / name) for name in names}
    notes = tuple(_notes(origin, untrained, architecture))
    return ExportedForVllm(out_dir, leaves, untrained, rank, n_bytes, serve_command(origin, rank, where), notes)


def uniform(state: Tensors, scale: float) -> tuple[Tensors, float]:
    """The same function with one rank for all projections, and a scale at which alpha is a whole number.

    Where `scale` times the rank is none, the scale goes into B, in fp32.
    """
    rank = max(ranks_of(state).values())
    state = pad(state, dict.fromkeys(ranks_of(state), rank))
    if (scale * rank).is_integer():
        return state, scale
    return {name: stacked.float() * (scale if name.endswith("B") else 1) for name, stacked in state.items()}, 1.0


def serve_command(origin: Origin, rank: int, adapters: dict[str, str]) -> str:
    """What serves these adapters, by name and folder."""
    revision = ["--revision", origin.revision] if origin.revision and origin.is_on_hub else []
    words = ["vllm", "serve", origin.base, *revision, "--enable-lora"]
    words += ["--max-loras", str(len(adapters)), "--max-lora-rank", str(rank)]
    words += ["--lora-modules", *(f"{name}={place}" for name, place in adapters.items())]
    return shlex.join(words)


def _rank(bundle: Bundle, path: tuple[NodePath, ...]) -> int:
    return len(path) * max(bundle.spec.rank_of(projection) for projection in bundle.base.projections)


def _nothing(bundle: Bundle) -> Tensors:
    shapes = adapter_shapes(bundle.base, AdapterSpec("lora", 1))
    return {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}


def _notes(origin: Origin, untrained: tuple[NodePath, ...], architecture: str) -> Iterator[str]:
    if architecture in WITHOUT_LORA:
        yield (
            f"vLLM's own {architecture} takes no LoRA: try --model-impl transformers, or merge a leaf into the base "
            "(--format merged)"
        )
    if untrained:
        told = ", ".join(leaf or "root" for leaf in untrained)
        yield f"nobody has trained {told}: adapters that add nothing stand for them"
    if not origin.is_on_hub:
        yield f"the base is named {origin.base}: the adapters are found by vLLM's resolver under this very name alone"


def _readme(bundle: Bundle, origin: Origin, command: str) -> str:
    return f"""# Leaves of {plain(bundle.run)} for vLLM

One folder for each leaf, an ordinary PEFT adapter whose name is that of the model to ask for. In this folder:

```sh
{command}
```

Or let vLLM find them when they are asked for:

```sh
VLLM_ALLOW_RUNTIME_LORA_UPDATING=True VLLM_PLUGINS=lora_filesystem_resolver VLLM_LORA_RESOLVER_CACHE_DIR=$PWD \\
  {command.partition(" --lora-modules")[0]}
```

A leaf is exact where all tokens of a request belong to it (hard routing). `tinylora route-proxy` chooses it.
The base is {plain(origin.base)}.
"""

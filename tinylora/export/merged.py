"""One leaf merged into its base: a model like any other, for tools that know no adapters."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tinylora.bundle import Bundle, check_base
from tinylora.errors import BaseModelError, SettingError
from tinylora.export.card import Card, merged_card
from tinylora.export.folder import check_free, whole_folder
from tinylora.export.leaf import stored_state, trained_nodes
from tinylora.export.origin import Origin, find_origin
from tinylora.export.peft_format import CARD_FILE
from tinylora.export.places import check_shapes
from tinylora.tensors import Tensors
from tinylora.tree import NodePath


@dataclass(frozen=True)
class Merged:
    """What was written."""

    folder: Path
    n_bytes: int
    nodes: tuple[NodePath, ...]
    """Whose adapters are in it, the root's first."""


def export_merged(
    bundle: Bundle,
    leaf: NodePath,
    out_dir: Path,
    *,
    base: str | Path,
    origin: Origin | None = None,
    card: Card | None = None,
    is_forced: bool = False,
) -> Merged:
    """Write the base with one leaf's update in its weights, with its tokenizer, as `save_pretrained` does.

    Args:
        bundle: Of any kind.
        leaf: Its path.
        out_dir: Not there yet, or empty; it is written whole or not at all.
        base: Folder or hub id; its weights keep the dtype that they are stored in.
        origin: Of the base, for the card; found if not given.
        card: Further facts for the card.
        is_forced: Whether an earlier export in `out_dir` may be replaced.

    Raises:
        SettingError: There is no such leaf, or nobody has trained it.
        BaseModelError: The base is not there, stored quantised, or not the bundle's.
        StorageError: The folder cannot be written, or is not empty.
    """
    from tinylora.base_model import find_structure, load_base, save_as_it_is  # transformers takes seconds to load

    nodes = trained_nodes(bundle, leaf)
    if not nodes:
        raise SettingError(f"leaf {leaf or 'root'}: nobody has trained it, so the base is all there is")
    check_free(out_dir, is_forced=is_forced)
    found = find_structure(base)
    if found.is_quantised:
        raise BaseModelError(
            f"{base}: its weights are stored quantised, and no adapter can be merged into them exactly; give the base "
            "in fp32, fp16 or bf16"
        )
    check_shapes(bundle, found.shapes, str(base))
    loaded = load_base(base, dtype=None, feature_dim=bundle.base.feature_dim)
    check_base(bundle, loaded.facts)
    merge_state(loaded.model, loaded.linears, stored_state(bundle, leaf, nodes), bundle.scale)
    text = merged_card(bundle, leaf, nodes, origin or find_origin(base), card or Card())
    with whole_folder(out_dir, is_forced=is_forced) as folder:
        save_as_it_is(loaded.model, loaded.tokenizer, folder)
        (folder / CARD_FILE).write_text(text, encoding="utf-8")
        n_bytes = sum(file.stat().st_size for file in folder.iterdir())
    return Merged(out_dir, n_bytes, nodes)


def merge_state(model: Any, linears: dict[str, tuple[str, ...]], state: Tensors, scale: float) -> None:
    """Add a plain LoRA to the weights of a model, in place, each in its own dtype.

    Args:
        model: A causal LM whose weights are plain tensors.
        linears: Modules by projection, in the order of layers.
        state: `<projection>.lora_A` (layer, rank, in) and `.lora_B` (layer, out, rank).
        scale: Of the update.

    Raises:
        BaseModelError: Two modules share one weight, which cannot hold the updates of both.
    """
    _check_own_weights(model, linears)
    for projection, modules in sorted(linears.items()):
        lora_a, lora_b = (state[f"{projection}.lora_{part}"] for part in "AB")
        for name, a, b in zip(modules, lora_a, lora_b, strict=True):
            module = model.get_submodule(name)
            # GPT-2's Conv1D keeps its weight as (in, out).
            module.weight.data = merged(module.weight.data, a, b, scale, is_transposed=hasattr(module, "nf"))


def _check_own_weights(model: Any, linears: dict[str, tuple[str, ...]]) -> None:
    seen: dict[int, str] = {}
    for name in (name for modules in linears.values() for name in modules):
        other = seen.setdefault(model.get_submodule(name).weight.data_ptr(), name)
        if other != name:
            raise BaseModelError(f"{other} and {name} share one weight, which cannot hold two updates")


def merged(
    weight: Float[Tensor, "rows columns"],
    lora_a: Float[Tensor, "rank in"],
    lora_b: Float[Tensor, "out rank"],
    scale: float,
    *,
    is_transposed: bool,
) -> Float[Tensor, "rows columns"]:
    """W + scale · B A, computed in fp32, in the dtype of W; W is (out, in), or (in, out) where it is transposed.

    Source:
        Hu et al. 2021, arXiv:2106.09685, section 4.1.
    """
    update = (lora_b.float() @ lora_a.float()) * scale
    return (weight.float() + (update.T if is_transposed else update)).to(weight.dtype)

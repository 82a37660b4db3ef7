"""One leaf as an ordinary PEFT adapter: its path's adapters side by side in one, their ranks added up."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinylora.bundle import Bundle
from tinylora.derive.paths import leaf_state, on_the_way, ranks_of
from tinylora.errors import SettingError
from tinylora.export.card import Card, adapter_card
from tinylora.export.folder import whole_folder
from tinylora.export.origin import Origin
from tinylora.export.peft_format import peft_config, write_adapter
from tinylora.export.places import Places, check_places
from tinylora.tensors import Tensors
from tinylora.tree import NodePath


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    rank: int
    """Highest of its projections."""
    n_bytes: int
    nodes: tuple[NodePath, ...]
    """Whose adapters are in it, the root's first."""


def export_leaf(
    bundle: Bundle,
    leaf: NodePath,
    out_dir: Path,
    *,
    places: Places,
    base: str | Origin = "",
    card: Card | None = None,
    is_forced: bool = False,
) -> Exported:
    """Write one leaf as a folder that PEFT loads: adapter_config.json, adapter_model.safetensors, README.md.

    Args:
        bundle: As read from a file, or as `release.make_bundle` makes it of a run. Nested and tied adapters are written
            out as plain LoRAs.
        leaf: Its path.
        out_dir: Not there yet, or empty; it is written whole or not at all.
        places: Where the base has its projections.
        base: For `base_model_name_or_path`: the hub id or folder that readers load; that of the bundle if not given.
        card: Further facts for the model card.
        is_forced: Whether an earlier export in `out_dir` may be replaced.

    Raises:
        SettingError: There is no such leaf, nobody has trained it, or the places are those of another base.
        StorageError: The folder cannot be written, or is not empty.
    """
    nodes = trained_nodes(bundle, leaf)
    if not nodes:
        raise SettingError(f"leaf {leaf or 'root'}: nobody has trained it, so there is nothing to export")
    check_places(bundle, places)
    origin = base if isinstance(base, Origin) else Origin(base or bundle.base.base_id)
    state = stored_state(bundle, leaf, nodes)
    config = peft_config(state, places, bundle.scale, origin)
    rank = max(ranks_of(state).values())
    text = adapter_card(bundle, leaf, nodes, rank, origin, card or Card())
    with whole_folder(out_dir, is_forced=is_forced) as folder:
        n_bytes = write_adapter(folder, state, places, config, text)
    return Exported(out_dir, rank, n_bytes, nodes)


def trained_nodes(bundle: Bundle, leaf: NodePath) -> tuple[NodePath, ...]:
    """Nodes on the way to a leaf that have an adapter, the root's first.

    Raises:
        SettingError: There is no such leaf.
    """
    if leaf not in bundle.topology.leaves:
        known = ", ".join(path or "root" for path in bundle.topology.leaves[:16])
        raise SettingError(f"leaf {leaf or 'root'}: the tree has no such leaf; it has {known}")
    return on_the_way(bundle, leaf)


def stored_state(bundle: Bundle, leaf: NodePath, nodes: Sequence[NodePath]) -> Tensors:
    """The leaf as one plain LoRA, in the dtype that all adapters on its path have.

    They are only laid side by side, so no bit is lost. Written out tied adapters are in fp32.
    """
    state = leaf_state(bundle, leaf)
    dtypes = {tensor.dtype for node in nodes for tensor in bundle.nodes[node].values()}
    is_exact = bundle.spec.kind != "tied" and len(dtypes) == 1
    return {name: tensor.to(next(iter(dtypes))) for name, tensor in state.items()} if is_exact else state

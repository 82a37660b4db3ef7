"""Names, dtypes and shapes of a node's adapter, from facts about the base alone. No torch."""

import math

from tinylora.adapters.spec import AdapterSpec
from tinylora.config import BaseFacts
from tinylora.errors import SettingError
from tinylora.protocol.documents import Manifest


def adapter_manifest(facts: BaseFacts, spec: AdapterSpec, *, path: str = "", dtype: str = "F32") -> Manifest:
    """Every tensor of the adapter of node `path`: `node.<path>.<projection>.lora_A` and `.lora_B`, sorted by name.

    Raises:
        SettingError: The ranks name a projection that the base has not.
    """
    return {f"node.{path}.{name}": (dtype, shape) for name, shape in adapter_shapes(facts, spec).items()}


def adapter_shapes(facts: BaseFacts, spec: AdapterSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of an adapter's tensors, stacked over layers, by name within the node; sorted by name.

    Raises:
        SettingError: The ranks name a projection that the base has not.
    """
    check_projections(facts, spec)
    shapes: dict[str, tuple[int, ...]] = {}
    for projection, shape in sorted(facts.projections.items()):
        rank = spec.rank_of(projection)
        shapes[f"{projection}.lora_A"] = (shape.n_layers, rank, shape.in_features)
        shapes[f"{projection}.lora_B"] = (shape.n_layers, shape.out_features, rank)
    return shapes


def check_projections(facts: BaseFacts, spec: AdapterSpec) -> None:
    """Check that every projection with a rank of its own is one of the base's.

    Raises:
        SettingError: One is not.
    """
    strange = sorted(spec.ranks.keys() - facts.projections.keys())
    if strange:
        known = ", ".join(sorted(facts.projections))
        raise SettingError(f"ranks: {strange[0]}: no such projection; {facts.base_id} has {known}")


def n_adapter_parameters(facts: BaseFacts, spec: AdapterSpec) -> int:
    """Numbers in the adapter of one node."""
    return sum(math.prod(shape) for shape in adapter_shapes(facts, spec).values())

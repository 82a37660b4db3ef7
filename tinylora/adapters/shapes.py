"""Names, dtypes and shapes of a node's adapter, from facts about the base alone. No torch."""

import math

from tinylora.config import BaseFacts
from tinylora.protocol.documents import Manifest


def adapter_manifest(facts: BaseFacts, rank: int, *, path: str = "", dtype: str = "F32") -> Manifest:
    """Every tensor of the adapter of node `path`: `node.<path>.<projection>.lora_A` and `.lora_B`, sorted by name."""
    return {f"node.{path}.{name}": (dtype, shape) for name, shape in adapter_shapes(facts, rank).items()}


def adapter_shapes(facts: BaseFacts, rank: int) -> dict[str, tuple[int, ...]]:
    """Shapes of an adapter's tensors, stacked over layers, by name within the node; sorted by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for projection, shape in sorted(facts.projections.items()):
        shapes[f"{projection}.lora_A"] = (shape.n_layers, rank, shape.in_features)
        shapes[f"{projection}.lora_B"] = (shape.n_layers, shape.out_features, rank)
    return shapes


def n_adapter_parameters(facts: BaseFacts, rank: int) -> int:
    """Numbers in the adapter of one node."""
    return sum(math.prod(shape) for shape in adapter_shapes(facts, rank).values())

"""Names, dtypes and shapes of a node's adapter, from facts about the base alone. No torch."""

from tinylora.config import BaseFacts
from tinylora.protocol.documents import Manifest


def adapter_manifest(facts: BaseFacts, rank: int, *, path: str = "", dtype: str = "F32") -> Manifest:
    """Every tensor of the adapter of node `path`: `node.<path>.<projection>.lora_A` and `.lora_B`, sorted by name."""
    manifest: Manifest = {}
    for projection, shape in sorted(facts.projections.items()):
        prefix = f"node.{path}.{projection}"
        manifest[f"{prefix}.lora_A"] = (dtype, (shape.n_layers, rank, shape.in_features))
        manifest[f"{prefix}.lora_B"] = (dtype, (shape.n_layers, shape.out_features, rank))
    return manifest


def n_adapter_parameters(facts: BaseFacts, rank: int) -> int:
    """Numbers in the adapter of one node."""
    return sum(shape.n_layers * rank * (shape.in_features + shape.out_features) for shape in facts.projections.values())

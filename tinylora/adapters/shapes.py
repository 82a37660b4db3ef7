"""Names, dtypes and shapes of a node's adapter, from facts about the base alone. No torch."""

import math
import re

from tinylora.adapters.spec import AdapterSpec
from tinylora.config import BaseFacts, ProjectionShape
from tinylora.errors import SettingError
from tinylora.protocol.documents import Manifest

_OF_ONE_SHAPE = re.compile(r"-\d+$")
"""Ends the name of a projection whose layers differ in shape: there is one such name for each shape."""


def adapter_manifest(facts: BaseFacts, spec: AdapterSpec, *, path: str = "", dtype: str = "F32") -> Manifest:
    """Every tensor that is trained of node `path`, such as `node.<path>.<projection>.lora_A`, sorted by name.

    Raises:
        SettingError: The spec does not fit the base.
    """
    return {f"node.{path}.{name}": (dtype, shape) for name, shape in adapter_shapes(facts, spec).items()}


def adapter_shapes(facts: BaseFacts, spec: AdapterSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of what is trained of a node, by name within the node; sorted by name.

    All are stacked over layers, but the A and B of tied adapters, which belong to all layers.

    Raises:
        SettingError: The spec does not fit the base.
    """
    check_projections(facts, spec)
    shapes: dict[str, tuple[int, ...]] = {}
    for projection, shape in sorted(facts.projections.items()):
        found = _tied(shape, spec, projection) if spec.kind == "tied" else _stacked(shape, spec.rank_of(projection))
        shapes |= {f"{projection}.{factor}": size for factor, size in found.items()}
    return shapes


def shared_shapes(facts: BaseFacts, spec: AdapterSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of the frozen factors that all nodes have in common; there are some in tied adapters alone.

    Raises:
        SettingError: The spec does not fit the base.
    """
    check_projections(facts, spec)
    if spec.kind != "tied":
        return {}
    return {
        f"{projection}.lora_{factor}": size
        for projection, shape in sorted(facts.projections.items())
        for factor, size in _tied_pair(shape, spec.rank_of(projection)).items()
        if factor not in spec.trained
    }


def _stacked(shape: ProjectionShape, rank: int) -> dict[str, tuple[int, ...]]:
    return {
        "lora_A": (shape.n_layers, rank, shape.in_features),
        "lora_B": (shape.n_layers, shape.out_features, rank),
    }


def _tied(shape: ProjectionShape, spec: AdapterSpec, projection: str) -> dict[str, tuple[int, ...]]:
    rank = spec.rank_of(projection)
    sizes = {f"lora_{factor}": size for factor, size in _tied_pair(shape, rank).items() if factor in spec.trained}
    if "uv" in spec.trained:
        sizes |= {"lora_u": (shape.n_layers, rank), "lora_v": (shape.n_layers, shape.out_features)}
    return sizes


def _tied_pair(shape: ProjectionShape, rank: int) -> dict[str, tuple[int, ...]]:
    return {"A": (rank, shape.in_features), "B": (shape.out_features, rank)}


def check_projections(facts: BaseFacts, spec: AdapterSpec) -> None:
    """Check that a spec fits the projections of a base.

    Raises:
        SettingError: Its ranks name another projection, or layers of unequal shape would have to share their factors.
    """
    unequal = sorted(name for name in facts.projections if _OF_ONE_SHAPE.search(name))
    if spec.kind == "tied" and unequal:
        raise SettingError(
            f"adapter {spec}: the layers of {facts.base_id} differ in shape ({unequal[0]}) and cannot share A and B; "
            "use lora or nested"
        )
    strange = sorted(spec.ranks.keys() - facts.projections.keys())
    if strange:
        known = ", ".join(sorted(facts.projections))
        raise SettingError(f"ranks: {strange[0]}: no such projection; {facts.base_id} has {known}")


def n_adapter_parameters(facts: BaseFacts, spec: AdapterSpec) -> int:
    """Numbers that are trained of one node."""
    return sum(math.prod(shape) for shape in adapter_shapes(facts, spec).values())

"""A bundle whose leaves differ visibly, on a base that is given."""

from pathlib import Path

import numpy as np
import torch

from tests.model.families import fill_randomly
from tinylora.adapters.spec import AdapterSpec
from tinylora.base_model import LoadedBase
from tinylora.bundle import Bundle, write_bundle
from tinylora.model import TreeModel
from tinylora.routing.gates import Gate, Gates
from tinylora.routing.policy import Router
from tinylora.tree import Topology

TREE = Topology(("00", "01", "1"))
LORA = AdapterSpec("lora", 2)


def random_bundle(base: LoadedBase, policy: str = "hard") -> Bundle:
    """Gates that turn now left, now right, and adapters that nobody trained."""
    dim, draw = base.facts.feature_dim, np.random.default_rng(0)
    gates = Gates({node: Gate(3 * draw.normal(size=dim), 0.0, 0.5) for node in TREE.inner}, dim)
    router = Router(base.routing_feature, gates, TREE, TREE.leaves)
    model = TreeModel(base, nodes=TREE.leaves, spec=LORA, scale=1.0, router=router)
    fill_randomly(model)
    nodes = {path: {name: tensor.bfloat16() for name, tensor in model.node_state(path).items()} for path in TREE.leaves}
    model.detach_adapters()
    return Bundle(
        run="random", topology=TREE, base=base.facts, spec=LORA, scale=1.0, nodes=nodes, gates=gates, policy=policy,
        projection=base.routing_feature.projection,
    )  # fmt: skip


def random_bundle_file(base: LoadedBase, folder: Path) -> Path:
    """Such a bundle on disk."""
    file = folder / "bundle.safetensors"
    with torch.no_grad():
        write_bundle(random_bundle(base), file)
    return file

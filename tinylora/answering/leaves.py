"""Which leaf answers a text."""

from dataclasses import dataclass

import torch

from tinylora.model import TreeModel
from tinylora.routing.ways import likeliest, n_deciding, posterior_of, way_of, weights_of
from tinylora.tree import NodePath, is_under


@dataclass(frozen=True)
class Answering:
    """The node whose adapter weighs most in the next token."""

    path: NodePath
    probability: float
    """That the text belongs there, as the gates say."""
    weight: float
    """Of its adapter, under the model's policy."""

    def __str__(self) -> str:
        return f"leaf {self.path or 'root'} (probability {self.probability:.0%}, weight {self.weight:.0%})"


@torch.no_grad()
def answering_leaf(model: TreeModel, ids: list[int]) -> Answering | None:
    """Who answers a text at its end.

    None where nothing was decided yet, as before the first window's end: then the base answers, with the root's adapter
    if there is one.

    Args:
        model: A tree that routes by itself.
        ids: The text.
    """
    n_seen = n_deciding(model.policy, len(ids))
    if model.router is None or n_seen is None:
        return None
    means, _, _ = model.router.feature(torch.tensor([ids[:n_seen]], device=model.router.start.device))
    feature, gates = means[0, -1].double().cpu().numpy(), model.router.gates()
    posterior = posterior_of(gates, feature)
    weights = weights_of(posterior, "".join(gate.went for gate in way_of(gates, feature)), model.policy)
    path = likeliest(weights)[0]
    probability = sum(share for leaf, share in posterior.items() if is_under(leaf, path))
    return Answering(path, min(probability, 1.0), weights[path])

"""What a policy costs: the rank of the adapters at one token, and the products of one pass."""

import itertools
from collections.abc import Sequence

from tinylora.adapters.prefixes import highest_rank
from tinylora.adapters.spec import AdapterSpec
from tinylora.config import BaseFacts
from tinylora.model import TreeModel
from tinylora.routing.decision import Decision
from tinylora.tree import NodePath, is_under


def costs_at_a_token(model: TreeModel, decision: Decision | None) -> dict[str, int]:
    """`active_rank` and `flops_per_token` of a model under a decision; None is its base alone."""
    facts, head = model.base.facts, model.base.model.get_output_embeddings()
    leaves = model.nodes[-1:] if model.router is None else model.router.topology.leaves
    n_nodes = 0 if decision is None else nodes_at_a_token(decision, model.nodes, leaves)
    n_head = 0 if head is None else head.weight.numel()
    return {
        "active_rank": n_nodes * highest_rank(model.spec, facts),
        "flops_per_token": flops_per_token(facts, model.spec, n_nodes=n_nodes, n_head=n_head),
    }


def nodes_at_a_token(decision: Decision, nodes: Sequence[NodePath], leaves: Sequence[NodePath]) -> int:
    """How many adapters one token meets at most; with adapters on whole paths those on the way count, too.

    Args:
        decision: Of the policy.
        nodes: Those that carry an adapter.
        leaves: Of the tree.
    """
    if decision == "soft":
        return len(nodes)
    ways = [frozenset(node for node in nodes if is_under(leaf, node)) for leaf in leaves]
    if decision == "top2" and len(ways) > 1:
        return max(len(one | other) for one, other in itertools.combinations(set(ways), 2))
    return max(map(len, ways), default=0)


def flops_per_token(facts: BaseFacts, spec: AdapterSpec, *, n_nodes: int, n_head: int) -> int:
    """Multiplications and additions of the matrices at one token of a forward pass: blocks, head, adapters.

    What attention does among tokens is left out: it grows with their number and is the same for all systems.

    Args:
        facts: Of the base.
        spec: Of the adapters.
        n_nodes: Adapters at one token.
        n_head: Numbers in the head.
    """
    shapes = facts.projections.items()
    blocks = sum(shape.n_layers * shape.in_features * shape.out_features for _, shape in shapes)
    adapters = sum(
        shape.n_layers * spec.rank_of(name) * (shape.in_features + shape.out_features) for name, shape in shapes
    )
    return 2 * (blocks + n_head + n_nodes * adapters)

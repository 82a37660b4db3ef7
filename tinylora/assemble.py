"""A bundle and its base become a model that is ready to use."""

from tinylora.base_model import LoadedBase
from tinylora.bundle import Bundle, check_base
from tinylora.model import TreeModel
from tinylora.routing.policy import Policy, Router
from tinylora.tree import by_level


def tree_model(bundle: Bundle, base: LoadedBase, policy: Policy | str | None = None) -> TreeModel:
    """Put a bundle's adapters and gates on its base.

    Every leaf has a place in the model. One that nobody has trained stays zero there: text that is routed to it meets
    the base alone.

    Args:
        bundle: As read by `read_bundle`, or fresh from a run.
        base: The base it was made for. It carries the adapters until the model's `detach_adapters`.
        policy: How the gates decide; None takes the bundle's own.

    Raises:
        BaseModelError: The bundle was made for another base, or the base carries adapters already.
        SettingError: The policy is none.
    """
    base = base.with_feature(bundle.base.feature_dim)
    check_base(bundle, base.facts)
    wanted = policy if isinstance(policy, Policy) else Policy.parse(policy or bundle.policy)
    nodes = by_level({*bundle.topology.leaves, *bundle.nodes})
    router = Router(base.routing_feature, bundle.gates, bundle.topology, nodes)
    model = TreeModel(
        base,
        nodes=nodes,
        spec=bundle.spec,
        scale=bundle.scale,
        router=router,
        policy=wanted,
        shared=bundle.shared,
    )
    for path, state in bundle.nodes.items():
        model.load_node(path, state)
    return model

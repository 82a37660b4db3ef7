"""Ranks by projection and layer: what a plan leaves of an adapter, and the search for a plan.

A nested adapter works at every prefix, so the rank of each of its pairs can be chosen after the training, by how much
held-out loss it is worth.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tinylora.adapters.spec import AdapterSpec
from tinylora.config import BaseFacts
from tinylora.errors import SettingError
from tinylora.tensors import Tensors

RankPlan: TypeAlias = Mapping[str, tuple[int, ...]]
"""By projection the rank in each layer that has it; 0 leaves the pair out."""
Place: TypeAlias = tuple[str, int]
"""A projection, and the number of the layer among those that have it."""


@dataclass(frozen=True)
class RankSearch:
    """A plan that was found, and what it costs."""

    plan: RankPlan
    n_parameters: int
    loss: float
    """Held-out loss of the plan itself."""
    whole_loss: float
    """Held-out loss at full ranks."""
    expected_loss: float
    """`whole_loss` plus the rises that were measured one at a time: the assumption to compare `loss` with."""
    n_scored: int
    """Calls of the scoring function."""


def whole_plan(facts: BaseFacts, spec: AdapterSpec) -> RankPlan:
    """Every pair at its full rank."""
    return {name: (spec.rank_of(name),) * shape.n_layers for name, shape in sorted(facts.projections.items())}


def n_plan_parameters(facts: BaseFacts, plan: RankPlan) -> int:
    """Numbers in the rows and columns that a plan leaves to one node."""
    return sum(_pair_size(facts, projection) * sum(ranks) for projection, ranks in plan.items())


def check_plan(plan: RankPlan, facts: BaseFacts, spec: AdapterSpec) -> None:
    """Check that a plan fits adapters of a spec on a base; projections may be missing, which leaves them whole.

    Raises:
        SettingError: It names another projection, another number of layers, or a rank out of range.
    """
    if spec.kind == "tied" and plan:
        raise SettingError(f"rank plan: layers share the rows of adapters of kind {spec}; expected lora or nested")
    for projection, ranks in sorted(plan.items()):
        if projection not in facts.projections:
            raise SettingError(f"rank plan: {projection}: no such projection in {facts.base_id}")
        n_layers, highest = facts.projections[projection].n_layers, spec.rank_of(projection)
        if len(ranks) != n_layers:
            raise SettingError(f"rank plan: {projection}: expected {n_layers} ranks, one per layer, got {len(ranks)}")
        if not all(0 <= rank <= highest for rank in ranks):
            raise SettingError(f"rank plan: {projection}: expected ranks from 0 to {highest}, got {list(ranks)}")


def apply_plan(state: Tensors, plan: RankPlan) -> Tensors:
    """A copy of a state with zeros beyond each layer's rank; shapes and function within the plan stay."""
    limited = {name: tensor.clone() for name, tensor in state.items()}
    for projection, ranks in plan.items():
        for layer, rank in enumerate(ranks):
            limited[f"{projection}.lora_A"][layer, rank:] = 0
            limited[f"{projection}.lora_B"][layer, :, rank:] = 0
    return limited


def search_ranks(
    score: Callable[[RankPlan], float],
    facts: BaseFacts,
    spec: AdapterSpec,
    *,
    max_parameters: int,
    choices: Sequence[int] = (),
) -> RankSearch:
    """The ranks that meet a budget of parameters at the least rise of held-out loss, as far as single rises tell.

    Every pair is shortened alone to every lower rank, the rest staying whole, and scored. A tolerance then says which
    rise of loss each pair may cause: its share of all parameters times the tolerance. Each pair takes the lowest rank
    within its allowance; the smallest tolerance that meets the budget wins. That rises add up is an assumption: the
    plan is scored as a whole in the end, and both figures are returned. Score on other text than what is reported.

    The cost is 2 + pairs x (ranks to choose from - 1) calls of `score`: for 7 projections in 30 layers and ranks 1, 2,
    4, 8 these are 632 passes over the held-out text, and none of them trains.

    Args:
        score: Held-out loss of a plan, in nats per token.
        facts: Of the base.
        spec: Of the adapters, which should be nested: prefixes of others are not trained to work.
        max_parameters: Of one node under the plan.
        choices: Ranks to choose from; 0 leaves a pair out. None given means the powers of two. A pair's full rank is
            always one of them.

    Raises:
        SettingError: Even the lowest ranks need more parameters.

    Source:
        That ranks can be chosen after the training: Valipour et al. 2022, arXiv:2210.07558, who choose one for the
        whole model. A rank for each pair, and the allowance by share of parameters, are ours.
    """
    whole = whole_plan(facts, spec)
    places = [(projection, layer) for projection, ranks in whole.items() for layer in range(len(ranks))]
    ranks = {place: _ranks_below(whole[place[0]][place[1]], choices) for place in places}
    lowest = _changed(whole, {place: found[0] for place, found in ranks.items()})
    if n_plan_parameters(facts, lowest) > max_parameters:
        raise SettingError(
            f"max_parameters {max_parameters}: expected at least {n_plan_parameters(facts, lowest)}, which the lowest "
            "ranks to choose from need"
        )
    whole_loss = score(whole)
    rises = {
        place: {rank: score(_changed(whole, {place: rank})) - whole_loss for rank in found[:-1]} | {found[-1]: 0.0}
        for place, found in ranks.items()
    }
    shares = {place: _pair_size(facts, place[0]) * ranks[place][-1] for place in places}

    def size_of(found: Mapping[Place, int]) -> int:
        return n_plan_parameters(facts, _changed(whole, found))

    chosen = _within_budget(rises, shares, size_of, max_parameters)
    plan = _changed(whole, chosen)
    return RankSearch(
        plan=plan,
        n_parameters=n_plan_parameters(facts, plan),
        loss=score(plan),
        whole_loss=whole_loss,
        expected_loss=whole_loss + math.fsum(rises[place][rank] for place, rank in chosen.items()),
        n_scored=2 + sum(len(found) - 1 for found in ranks.values()),
    )


def _within_budget(
    rises: Mapping[Place, Mapping[int, float]],
    shares: Mapping[Place, int],
    size_of: Callable[[Mapping[Place, int]], int],
    max_parameters: int,
) -> dict[Place, int]:
    """Ranks at the smallest tolerance that meets the budget; only tolerances at which some rank changes are tried."""
    steps = sorted({rise / shares[place] for place, found in rises.items() for rise in found.values()})
    low, high = 0, len(steps) - 1
    while low < high:
        middle = (low + high) // 2
        is_met = size_of(_lowest(rises, shares, steps[middle])) <= max_parameters
        low, high = (low, middle) if is_met else (middle + 1, high)
    return _lowest(rises, shares, steps[low])


def _lowest(
    rises: Mapping[Place, Mapping[int, float]], shares: Mapping[Place, int], tolerance: float
) -> dict[Place, int]:
    """Of every pair the lowest rank whose rise is within its allowance, or its full rank."""
    return {
        place: min((rank for rank, rise in found.items() if rise / shares[place] <= tolerance), default=max(found))
        for place, found in rises.items()
    }


def _ranks_below(rank: int, choices: Sequence[int]) -> list[int]:
    wanted = choices or list(itertools.takewhile(lambda power: power < rank, (2**n for n in itertools.count())))
    return sorted({choice for choice in wanted if 0 <= choice < rank} | {rank})


def _changed(plan: RankPlan, changes: Mapping[Place, int]) -> RankPlan:
    return {
        projection: tuple(changes.get((projection, layer), rank) for layer, rank in enumerate(ranks))
        for projection, ranks in plan.items()
    }


def _pair_size(facts: BaseFacts, projection: str) -> int:
    """Numbers that one rank of one layer takes."""
    shape = facts.projections[projection]
    return shape.in_features + shape.out_features

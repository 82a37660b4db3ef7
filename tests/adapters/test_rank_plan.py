"""Ranks by projection and layer: limits in the model, and the search for them."""

import pytest
import torch

from tests.model.families import family_base, fill_randomly, some_ids
from tinylora.adapters.rank_plan import RankPlan, apply_plan, n_plan_parameters, search_ranks, whole_plan
from tinylora.adapters.shapes import n_adapter_parameters
from tinylora.adapters.spec import AdapterSpec
from tinylora.base_model import LoadedBase
from tinylora.config import BaseFacts, ProjectionShape
from tinylora.errors import SettingError
from tinylora.model import TreeModel

NESTED = AdapterSpec("nested", 4)
PLAN: RankPlan = {"mlp.up_proj": (0, 3), "self_attn.q_proj": (1, 4)}
FACTS = BaseFacts(
    base_id="plan",
    fingerprint="a" * 64,
    tokenizer_fingerprint="b" * 64,
    feature_dim=4,
    feature_hash="c" * 64,
    max_window_tokens=64,
    projections={
        "big": ProjectionShape(n_layers=2, in_features=30, out_features=70),
        "small": ProjectionShape(n_layers=1, in_features=5, out_features=5),
    },
)


@pytest.fixture
def base() -> LoadedBase:
    return family_base("llama")


def model_of(base: LoadedBase) -> TreeModel:
    model = TreeModel(base, nodes=("0",), spec=NESTED, scale=0.5)
    fill_randomly(model)
    return model


# --- in the model -----------------------------------------------------------------------------------------------------


def test_limits_are_the_function_of_zeros_beyond_them(base: LoadedBase) -> None:
    model, ids = model_of(base), some_ids(base)
    state, whole = model.node_state("0"), model(ids).logits
    model.limit_ranks(PLAN)
    limited = model(ids).logits
    read = model.node_state("0")
    model.limit_ranks(None)
    assert torch.equal(model(ids).logits, whole)
    planned = apply_plan(state, PLAN)
    assert all(torch.equal(read[name], tensor) for name, tensor in planned.items())
    assert all(torch.equal(model.node_state("0")[name], tensor) for name, tensor in state.items())
    model.load_node("0", planned)
    assert torch.allclose(model(ids).logits, limited, atol=1e-6)
    assert not torch.allclose(limited, whole, atol=1e-3)


def test_a_plan_zeroes_rows_layer_by_layer() -> None:
    state = {"big.lora_A": torch.ones(2, 4, 3), "big.lora_B": torch.ones(2, 5, 4)}
    planned = apply_plan(state, {"big": (1, 0)})
    assert planned["big.lora_A"].sum(dim=(1, 2)).tolist() == [3, 0]
    assert planned["big.lora_B"].sum(dim=(1, 2)).tolist() == [5, 0]
    assert planned["big.lora_A"][0, 0].all() and planned["big.lora_B"][0, :, 0].all()
    assert state["big.lora_A"].all()


def test_training_on_under_a_plan_keeps_the_zeros(base: LoadedBase) -> None:
    model, ids = model_of(base), some_ids(base)
    model.load_node("0", apply_plan(model.node_state("0"), PLAN))
    model.limit_ranks(PLAN)
    before = model.node_state("0")
    optimizer = torch.optim.AdamW(model.adapter_parameters(), lr=0.02, weight_decay=0.0)
    for _ in range(3):
        model.loss(ids).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.limit_ranks(None)  # the parameters themselves, not what node_state hides
    after = model.node_state("0")
    for name, tensor in apply_plan(after, PLAN).items():
        assert torch.equal(tensor, after[name])
    assert not torch.equal(after["mlp.up_proj.lora_A"][1, :3], before["mlp.up_proj.lora_A"][1, :3])
    assert not after["mlp.up_proj.lora_A"][0].any()


def test_prefix_and_plan_together_are_the_lower_of_the_two(base: LoadedBase) -> None:
    model, ids = model_of(base), some_ids(base)
    model.limit_ranks(PLAN)
    model.use_rank(2)
    both = model(ids).logits
    model.use_rank(None)
    full = {name: tuple(min(2, rank) for rank in ranks) for name, ranks in whole_plan(base.facts, NESTED).items()}
    model.limit_ranks(full | {"mlp.up_proj": (0, 2), "self_attn.q_proj": (1, 2)})
    assert torch.allclose(model(ids).logits, both, atol=1e-6)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"head": (1, 1)}, "head: no such projection"),
        ({"mlp.up_proj": (1,)}, "mlp.up_proj: expected 2 ranks, one per layer, got 1"),
        ({"mlp.up_proj": (1, 5)}, r"expected ranks from 0 to 4, got \[1, 5\]"),
    ],
)
def test_plans_that_do_not_fit_are_refused(base: LoadedBase, plan: RankPlan, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        model_of(base).limit_ranks(plan)


# --- the search -------------------------------------------------------------------------------------------------------


def additive(plan: RankPlan) -> float:
    """Loss of a world where each lost rank of a pair costs what its place says: the first layer of `big` nothing."""
    price = {("big", 0): 0.0, ("big", 1): 1.0, ("small", 0): 0.05}
    return 3.0 + sum(price[name, layer] * (4 - r) for name, ranks in plan.items() for layer, r in enumerate(ranks))


def test_the_search_drops_what_is_worth_least_per_parameter() -> None:
    assert n_plan_parameters(FACTS, whole_plan(FACTS, NESTED)) == n_adapter_parameters(FACTS, NESTED) == 840
    found = search_ranks(additive, FACTS, NESTED, max_parameters=600)
    assert found.plan == {"big": (1, 4), "small": (4,)}
    assert (found.n_parameters, found.whole_loss, found.loss) == (540, 3.0, 3.0)
    found = search_ranks(additive, FACTS, NESTED, max_parameters=520, choices=(1, 2))
    assert found.plan == {"big": (1, 4), "small": (2,)}
    assert found.loss == pytest.approx(found.expected_loss) == pytest.approx(3.1)
    assert found.n_scored == 2 + 3 * 2
    assert search_ranks(additive, FACTS, NESTED, max_parameters=20, choices=(0,)).plan == {"big": (0, 0), "small": (0,)}


def test_the_search_says_what_it_cost_and_counts_its_calls() -> None:
    scored: list[RankPlan] = []

    def score(plan: RankPlan) -> float:
        scored.append(plan)
        return additive(plan)

    found = search_ranks(score, FACTS, NESTED, max_parameters=700, choices=(1, 2, 3))
    assert found.n_scored == len(scored) == 2 + 3 * 3
    assert scored[0] == whole_plan(FACTS, NESTED) and scored[-1] == found.plan


def test_no_smaller_tolerance_would_meet_the_budget() -> None:
    """Every plan that gives each pair the lowest rank within its allowance, tried one by one."""
    rises = {place: {r: additive_rise(place, r) for r in (1, 2, 4)} for place in (("big", 0), ("big", 1), ("small", 0))}
    sizes = {"big": 400, "small": 40}
    for budget in range(210, 840, 30):
        found = search_ranks(additive, FACTS, NESTED, max_parameters=budget)
        assert found.n_parameters <= budget
        tolerances = sorted({rise / sizes[place[0]] for place, one in rises.items() for rise in one.values()})
        for tolerance in tolerances:
            allowed = {place: tolerance * sizes[place[0]] + 1e-12 for place in rises}
            ranks = {p: min(r for r, rise in one.items() if rise <= allowed[p]) for p, one in rises.items()}
            plan = {"big": (ranks["big", 0], ranks["big", 1]), "small": (ranks["small", 0],)}
            if n_plan_parameters(FACTS, plan) <= budget:
                assert found.plan == plan
                break


def additive_rise(place: tuple[str, int], rank: int) -> float:
    whole = {name: list(ranks) for name, ranks in whole_plan(FACTS, NESTED).items()}
    whole[place[0]][place[1]] = rank
    return additive({name: tuple(ranks) for name, ranks in whole.items()}) - 3.0


def test_a_budget_below_the_lowest_ranks_is_refused() -> None:
    with pytest.raises(SettingError, match="max_parameters 100: expected at least 210"):
        search_ranks(additive, FACTS, NESTED, max_parameters=100)


def test_searching_with_a_model_finds_the_rows_that_are_zero(base: LoadedBase) -> None:
    model, ids = model_of(base), some_ids(base)
    full = whole_plan(base.facts, NESTED)
    hidden = {name: tuple(1 + (layer + len(name)) % 2 for layer in range(2)) for name in full}
    model.load_node("0", apply_plan(model.node_state("0"), hidden))

    whole = model(ids).logits

    @torch.no_grad()
    def distance(plan: RankPlan) -> float:
        model.limit_ranks(plan)
        return round((model(ids).logits - whole).abs().max().item(), 4)

    found = search_ranks(distance, base.facts, NESTED, max_parameters=n_plan_parameters(base.facts, hidden))
    assert (found.loss, found.whole_loss) == (0.0, 0.0)
    assert found.plan == hidden

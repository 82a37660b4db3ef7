"""DyLoRA's search: train nested, choose a rank for each layer on validation text, prune, train on.

Beside it the same with one rank for all layers at as many parameters.
"""

import time
from collections.abc import Mapping

import torch

from tinylora.adapters.lora import init_adapter
from tinylora.adapters.nested import nested_loss
from tinylora.adapters.rank_plan import RankPlan, RankSearch, n_plan_parameters, search_ranks, whole_plan
from tinylora.base_model import LoadedBase
from tinylora.config import RunSettings
from tinylora.evaluation import score_domains
from tinylora.model import TreeModel
from tinylora.quality.jobs import Context, Job, Outcome, Scored, run_settings, timed_scores
from tinylora.quality.training import schedule, shard_batches
from tinylora.shards import Shard
from tinylora.training.optimiser import Optimiser

N_DOMAINS = 3
"""The first ones: a search scores each of them some ninety times."""
SEARCH_TOKENS = 512
"""Of each validation document that the search reads."""


def train_and_search(context: Context, job: Job) -> Outcome:
    """Leaves of some domains, each under a plan of its own and under a uniform one of the same size."""
    base, settings = context.base(job.base), run_settings(context.config, job)
    started = time.perf_counter()
    shards = dict(list(zip(context.corpus.domains, context.corpus.by_domain().values(), strict=True))[:N_DOMAINS])
    found: dict[str, list[Scored]] = {"searched": [], "uniform": [], "whole": []}
    plans: dict[str, object] = {}
    for domain, shard in shards.items():
        nested = _train(base, settings, shard, None, None)
        search = _search(context, base, settings, nested, domain)
        plans[domain] = {"plan": dict(search.plan), "expected": search.expected_loss, "measured": search.loss}
        uniform = {name: (settings.rank // 4,) * len(ranks) for name, ranks in search.plan.items()}
        for name, plan in (("searched", search.plan), ("uniform", uniform), ("whole", None)):
            state = _train(base, settings, shard, nested, plan)
            found[name].append(_scored(context, job, base, settings, state, domain, plan))
    return Outcome(
        job=job,
        scored={name: _joined(parts) for name, parts in found.items()},
        total_rank=settings.rank,
        tokens=2 * settings.leaf_steps * settings.unit_tokens * len(shards),
        train_seconds=time.perf_counter() - started,
        facts={"plans": plans, "budget": _budget(base, settings)},
    )


def _budget(base: LoadedBase, settings: RunSettings) -> int:
    """Parameters of a quarter of the rank everywhere."""
    return n_plan_parameters(base.facts, whole_plan(base.facts, settings.spec)) // 4


def _model(base: LoadedBase, settings: RunSettings, state: Mapping[str, torch.Tensor] | None) -> TreeModel:
    model = TreeModel(base, nodes=("",), spec=settings.spec, scale=settings.scale)
    begun = init_adapter(base.facts, settings.spec, seed=settings.seed, path="") if state is None else dict(state)
    model.load_node("", begun)
    return model


def _train(
    base: LoadedBase,
    settings: RunSettings,
    shard: Shard,
    state: Mapping[str, torch.Tensor] | None,
    plan: RankPlan | None,
) -> dict[str, torch.Tensor]:
    """Nested from the start, or on from a state under a plan, for `leaf_steps`."""
    model = _model(base, settings, state)
    try:
        if plan is not None:
            model.limit_ranks(plan)
        nested = nested_loss(model, settings.spec, settings.seed, 0)
        optimiser = Optimiser(model.adapter_parameters(), schedule(settings))
        first = 0 if state is None else settings.leaf_steps
        for step, (ids, documents) in enumerate(shard_batches(settings, shard, first, settings.leaf_steps)):
            loss = nested(ids, documents, step)[0] if state is None else model.loss(ids, documents=documents)
            optimiser.step(loss, step)
        return model.node_state("")
    finally:
        model.detach_adapters()


def _search(
    context: Context, base: LoadedBase, settings: RunSettings, state: Mapping[str, torch.Tensor], domain: str
) -> RankSearch:
    """A plan for a quarter of the parameters, chosen on the domain's validation documents."""
    documents = {domain: context.corpus.validation[domain]}
    model = _model(base, settings, state)

    def loss_of(plan: RankPlan) -> float:
        model.load_node("", dict(state))
        model.limit_ranks(plan)
        rows = score_domains(
            model, documents, window_tokens=settings.window_tokens, max_tokens_per_document=SEARCH_TOKENS
        )
        return sum(row.nll_sum for row in rows) / sum(row.n_tokens for row in rows)

    try:
        return search_ranks(loss_of, base.facts, settings.spec, max_parameters=_budget(base, settings))
    finally:
        model.detach_adapters()


def _scored(
    context: Context,
    job: Job,
    base: LoadedBase,
    settings: RunSettings,
    state: Mapping[str, torch.Tensor],
    domain: str,
    plan: RankPlan | None,
) -> Scored:
    model = _model(base, settings, state)
    try:
        rank = settings.rank if plan is None else settings.rank // 4
        documents = {domain: context.documents(job)[domain]}
        return timed_scores(context, job, model, active_rank=rank, documents=documents)
    finally:
        model.detach_adapters()


def _joined(parts: list[Scored]) -> Scored:
    return Scored(
        active_rank=parts[0].active_rank,
        seconds=sum(part.seconds for part in parts),
        scores=tuple(score for part in parts for score in part.scores),
    )

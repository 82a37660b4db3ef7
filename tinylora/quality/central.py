"""What no federation can have, for comparison: the tree trained in one place, and the base trained on fully."""

import time
from collections.abc import Mapping, Sequence

import torch

from tinylora.adapters.lora import init_adapter
from tinylora.adapters.shapes import n_adapter_parameters
from tinylora.base_model import LoadedBase
from tinylora.bundle import Bundle
from tinylora.config import RunSettings
from tinylora.federation.assignment import assign
from tinylora.model import TreeModel
from tinylora.quality.jobs import Context, Job, Outcome, bare, run_settings, score_policies, timed_scores
from tinylora.quality.training import schedule, shard_batches
from tinylora.routing.gates import calibrate, solve_gates
from tinylora.routing.sketch import collect
from tinylora.shards import Document, Shard
from tinylora.tensors import Tensors
from tinylora.training import sending
from tinylora.training.optimiser import Optimiser
from tinylora.tree import NodePath, Topology

__all__ = ["train_centrally", "train_fully"]


def train_centrally(context: Context, job: Job) -> Outcome:
    """The job's tree with all text in one place and every document labelled by its domain.

    Each leaf is trained without interruption, and the gates are fitted on the pooled rows themselves.
    """
    base, settings = context.base(job.base), run_settings(context.config, job)
    corpus, started = context.corpus, time.perf_counter()
    shards = dict(zip(corpus.domains, corpus.by_domain().values(), strict=True))
    sums = {domain: collect(base.routing_feature, [d.tokens for d in shard.train]) for domain, shard in shards.items()}
    leaf_of = assign(sums, settings.depth)
    topology = Topology(tuple(leaf_of.values()))
    nodes = {leaf_of[domain]: _train_leaf(base, settings, shard, leaf_of[domain]) for domain, shard in shards.items()}
    gates = solve_gates({leaf_of[domain]: item for domain, item in sums.items()}, topology)
    local = {leaf_of[domain]: shard.heldout for domain, shard in shards.items()}
    histograms = sending.histogram_tensors(gates, base.routing_feature, *_labelled(local))
    gates = calibrate(gates, {name.removeprefix("histogram."): t.numpy() for name, t in histograms.items()})
    bundle = Bundle(
        run="central",
        topology=topology,
        base=base.facts,
        spec=settings.spec,
        scale=settings.scale,
        nodes=nodes,
        gates=gates,
        projection=base.routing_feature.projection,
    )
    seconds = time.perf_counter() - started
    context.keep(job, bundle)
    model = TreeModel.from_bundle(bundle, base)
    try:
        scored = score_policies(context, job, model, bundle, leaf_of)
    finally:
        model.detach_adapters()
    return Outcome(
        job=job,
        scored=scored,
        total_rank=settings.rank * len(nodes),
        n_parameters=len(nodes) * n_adapter_parameters(base.facts, settings.spec),
        tokens=settings.leaf_steps * settings.unit_tokens * len(nodes),
        train_seconds=seconds,
        facts={"leaf_of": leaf_of},
    )


def _labelled(documents: Mapping[NodePath, Sequence[Document]]) -> tuple[list[Document], list[NodePath]]:
    pairs = [(document, leaf) for leaf, some in documents.items() for document in some]
    return [document for document, _ in pairs], [leaf for _, leaf in pairs]


def _train_leaf(base: LoadedBase, settings: RunSettings, shard: Shard, leaf: NodePath) -> Tensors:
    model = TreeModel(base, nodes=(leaf,), spec=settings.spec, scale=settings.scale)
    try:
        model.load_node(leaf, init_adapter(base.facts, settings.spec, seed=settings.seed, path=leaf))
        optimiser = Optimiser(model.adapter_parameters(), schedule(settings))
        for step, (ids, documents) in enumerate(shard_batches(settings, shard, 0, settings.leaf_steps)):
            optimiser.step(model.loss(ids, documents=documents), step)
        return model.node_state(leaf)
    finally:
        model.detach_adapters()


def train_fully(context: Context, job: Job) -> Outcome:
    """The base's own weights trained on all text in one place; master weights in float32, arithmetic as the job's."""
    base, settings = context.fresh_base(), run_settings(context.config, job)
    shard = next(iter(context.corpus.pooled().values()))
    started = time.perf_counter()
    network, dtype = base.model, next(base.model.parameters()).dtype
    network.float()
    parameters = list(network.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimiser = Optimiser(parameters, schedule(settings))
    for step, (ids, _) in enumerate(shard_batches(settings, shard, 0, settings.leaf_steps)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = network(input_ids=ids, use_cache=False).logits
        targets = ids[:, 1:].flatten()
        optimiser.step(torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), targets), step)
    for parameter in parameters:
        parameter.requires_grad_(False)
    network.to(dtype)
    seconds = time.perf_counter() - started
    scored = {"one": timed_scores(context, job, bare(base), active_rank=0)}
    return Outcome(
        job=job,
        scored=scored,
        n_parameters=sum(parameter.numel() for parameter in parameters),
        tokens=settings.leaf_steps * settings.unit_tokens,
        train_seconds=seconds,
    )

"""One system trained and scored: a `Job` in, an `Outcome` out. What is federated runs through the production loop."""

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from tinylora.adapters.shapes import n_adapter_parameters
from tinylora.base_model import LoadedBase, load_base
from tinylora.bundle import Bundle, write_bundle
from tinylora.config import RunSettings, make_settings
from tinylora.demo.experiment import BASE_DIR
from tinylora.derive import mush_bundle
from tinylora.errors import SettingError
from tinylora.evaluation import DocumentScore, best_leaves, score_domains, score_leaves
from tinylora.federation.campaign import Campaign, fold
from tinylora.federation.events import Event, LeaseExpired, NodeAveraged, UnitLeased, UpdateAccepted
from tinylora.federation.summary import summarise
from tinylora.model import TreeModel
from tinylora.quality.config import QualityConfig, Rate
from tinylora.quality.corpus import Corpus, Documents, deal, read_corpus
from tinylora.release import make_bundle
from tinylora.routing.gates import Gate, Gates
from tinylora.routing.policy import Policy
from tinylora.shards import Shard
from tinylora.simulate import FaultPlan, SimulatedWorker, SimulationResult, simulate
from tinylora.tree import NodePath

Kind = Literal["base", "federated", "central", "full", "searched"]
ROUTED = ("soft", "top2", "hard", "elastic", "hard@sequence:32")
OTHER_ROUTERS = ("uniform", "random", "averaged weights")
"""Baselines that are no policies of the gates."""
MIXES = {"merged": "uniform", "concatenated": "concat"}
"""All leaves in one adapter without a router, by name; each also compressed to the rank of one leaf."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Job(_Frozen):
    """One system and seed. Equal jobs of one configuration give equal outcomes; what is on disk is not made anew."""

    system: str
    """Its name in the tables."""
    kind: Kind = "federated"
    seed: int = 0
    base: Literal["demo", "bloom", "nf4"] = "demo"
    split: str = "domain"
    n_workers: int = 8
    """Of the splits that can be dealt to any number; one for each domain, or one for all, otherwise."""
    rate_key: str = ""
    """The entry of `[rates]` that it learns with; none for what does not learn."""
    rate: Rate = Rate(learning_rate=1e-3)
    """That entry, once the job is planned."""
    settings: dict[str, Any] = {}
    """Of the run, over the defaults of `run_settings`."""
    policies: tuple[str, ...] = ()
    """Routing policies to score; none for a system without a router."""
    has_oracle: bool = False
    """Whether every domain is also sent to the leaf that was trained on it."""
    cuts: tuple[int, ...] = ()
    """Ranks to which the adapters are cut and scored by the oracle."""
    n_checkpoints: int = 0
    """Points of the curve of loss against tokens, the end not counted."""
    drop: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the updates that are lost on their way."""
    joins_every_s: float = 0.0
    """Virtual seconds between the workers' arrivals; a step takes one."""
    on: Literal["validation", "heldout"] = "heldout"


class Score(_Frozen):
    """One document under one system."""

    domain: str
    name: str
    nll_sum: float
    n_tokens: int
    n_bytes: int
    nll_sum_late: float = 0.0
    n_tokens_late: int = 0


class Scored(_Frozen):
    """One policy of one system."""

    active_rank: int
    seconds: float
    scores: tuple[Score, ...]

    @property
    def tokens_per_s(self) -> float:
        """Scored tokens per second of one core."""
        return sum(score.n_tokens for score in self.scores) / max(self.seconds, 1e-9)


class Point(_Frozen):
    """Mean over domains of the loss at one moment of a run."""

    tokens: int
    nll: dict[str, float]


class Outcome(_Frozen):
    """What a job leaves behind."""

    job: Job
    scored: dict[str, Scored]
    """By policy; `one` where there is nothing to route, `oracle`, `cut:R`."""
    total_rank: int = 0
    n_parameters: int = 0
    """Trained, in all adapters together."""
    tokens: int = 0
    """Trained on, by all workers together."""
    bytes_sent: int = 0
    """Both ways, by all workers together."""
    train_seconds: float = 0.0
    n_updates: int = 0
    mismatch: tuple[float, ...] = ()
    """|mean(BA) - mean(B) mean(A)| / |mean(BA)| of every average."""
    curve: tuple[Point, ...] = ()
    facts: dict[str, Any] = {}


@dataclass(eq=False)
class Context:
    """Base and text of one process, loaded when they are first asked for."""

    config: QualityConfig
    folder: Path | None = None
    """Where trained trees are kept beside their outcomes; None keeps none."""

    def keep(self, job: Job, bundle: Bundle) -> None:
        """Write a trained tree down, in full precision."""
        if self.folder is not None and job.on == "heldout":
            file = outcome_file(self.folder, job).with_suffix(".safetensors")
            file.parent.mkdir(parents=True, exist_ok=True)
            write_bundle(bundle, file, dtype="F32")

    @cached_property
    def corpus(self) -> Corpus:
        """Text by domain."""
        config = self.config
        return read_corpus(
            self.base("demo"),
            n_domains=config.n_workers,
            shard_chars=config.shard_chars,
            n_documents=config.n_documents,
        )

    @cached_property
    def _bases(self) -> dict[str, LoadedBase]:
        return {}

    def base(self, name: str) -> LoadedBase:
        """The demo base (or the configuration's own), the small BLOOM, or the demo base in four bits."""
        if name not in self._bases:
            self._bases[name] = self._load(name)
        return self._bases[name]

    def _load(self, name: str) -> LoadedBase:
        where = str(BASE_DIR) if self.config.base == "demo" else self.config.base
        dtype = getattr(torch, self.config.dtype)
        if name == "bloom":
            return load_base(self.config.bloom, dtype=dtype)
        return load_base(where, dtype=dtype, quantise="nf4") if name == "nf4" else load_base(where, dtype=dtype)

    def fresh_base(self) -> LoadedBase:
        """A base of one's own, to be changed."""
        return self._load("demo")

    def documents(self, job: Job) -> dict[str, Documents]:
        """What the job is scored on."""
        return self.corpus.heldout if job.on == "heldout" else self.corpus.validation


def run_settings(config: QualityConfig, job: Job) -> RunSettings:
    """Settings of a job's run."""
    rank = int(job.settings.get("rank", config.rank))
    values: dict[str, Any] = {
        "name": "quality",
        "seed": job.seed,
        "depth": config.depth,
        "rank": rank,
        "alpha": job.rate.scale * rank,
        "learning_rate": job.rate.learning_rate,
        "warmup_steps": 10,
        "leaf_steps": config.leaf_steps,
        "unit_steps": config.round_steps,
        "batch_windows": config.batch_windows,
        "window_tokens": config.window_tokens,
        "router_period": config.n_workers,
        "min_workers": job.n_workers,
        "min_sequences": 8,
        "first_deadline_s": 1e6,
        "probes": 0,  # what is compared here is learning, not what protects it
        "clip": 0,
    }
    return make_settings(job.system, values | job.settings)


def run_job(context: Context, job: Job) -> Outcome:
    """Train and score one system."""
    if job.kind == "base":
        return _score_base(context, job)
    if job.kind == "full":
        from tinylora.quality.central import train_fully

        return train_fully(context, job)
    if job.kind == "central":
        from tinylora.quality.central import train_centrally

        return train_centrally(context, job)
    if job.kind == "searched":
        from tinylora.quality.searched import train_and_search

        return train_and_search(context, job)
    return _federate(context, job)


def _score_base(context: Context, job: Job) -> Outcome:
    base = context.base(job.base)
    model = bare(base)
    try:
        scored = {"one": timed_scores(context, job, model, active_rank=0)}
    finally:
        model.detach_adapters()
    return Outcome(job=job, scored=scored)


def bare(base: LoadedBase) -> TreeModel:
    """The base alone, as a model that can be scored."""
    from tinylora.adapters.spec import AdapterSpec

    return TreeModel(base, nodes=(), spec=AdapterSpec.parse("lora", 1), scale=1.0)


# --- federated -------------------------------------------------------------------------------------------------------


def _federate(context: Context, job: Job) -> Outcome:
    config, base = context.config, context.base(job.base)
    settings = run_settings(config, job)
    shards = deal(context.corpus, job.split, n_workers=job.n_workers, seed=job.seed)
    settings = settings.model_copy(update={"min_workers": 1 if job.joins_every_s else len(shards)})
    started = time.perf_counter()
    result = _simulate(settings, shards, base, job)
    seconds = time.perf_counter() - started
    events = result.ledger.events()
    bundle = result.bundle
    context.keep(job, bundle)
    model = TreeModel.from_bundle(bundle, base)
    try:
        leaf_of = oracle_leaves(context, job, model, result.campaign, shards)
        scored = score_policies(context, job, model, bundle, leaf_of)
    finally:
        model.detach_adapters()
    return Outcome(
        job=job,
        scored=scored
        | _score_other_routers(context, job, result, base)
        | _score_cuts(context, job, base, bundle, leaf_of),
        total_rank=sum(bundle.spec.rank for _ in bundle.nodes),
        n_parameters=len(bundle.nodes) * n_adapter_parameters(base.facts, bundle.spec),
        tokens=_tokens(events),
        bytes_sent=_bytes(events),
        train_seconds=seconds,
        n_updates=sum(isinstance(event, UpdateAccepted) and event.kind == "train" for event in events),
        mismatch=_mismatches(events),
        curve=_curve(context, job, result, base, leaf_of),
        facts={
            "leaf_of": leaf_of,
            "leaves": list(bundle.topology.leaves),
            "finished": result.campaign.finished,
            "changes": [change["type"] for change in summarise(events)["topology"]["changes"]],
        },
    )


def _simulate(settings: RunSettings, shards: Mapping[str, Shard], base: LoadedBase, job: Job) -> SimulationResult:
    workers = [
        SimulatedWorker(name, shard, joins_at_s=number * job.joins_every_s, seconds_per_step=1.0)
        for number, (name, shard) in enumerate(shards.items())
    ]
    if not job.drop:
        return simulate(settings, workers, base)
    # As in DiLoCo's table: nobody works more because updates were lost, so about that share of the steps is missing.
    settings = settings.model_copy(update={"first_deadline_s": 4.0 * settings.unit_steps})
    effort = _Effort(n_units=len(workers) * -(-settings.leaf_steps // settings.unit_steps))
    return simulate(settings, workers, base, FaultPlan(drop=job.drop), effort.count, finish=effort.is_spent)


@dataclass
class _Effort:
    """Train units that were worked on, whether their updates arrived or not."""

    n_units: int
    _open: set[str] = field(default_factory=set)
    _n_given: int = 0

    def count(self, event: Event) -> None:
        """Take in an event of the run."""
        if isinstance(event, UnitLeased) and event.kind == "train":
            self._n_given += 1
            self._open.add(event.unit_id)
        elif isinstance(event, UpdateAccepted | LeaseExpired):
            self._open.discard(event.unit_id)

    def is_spent(self) -> bool:
        """Whether all of it is over. A little more may be under way when the last one is counted."""
        return self._n_given - len(self._open) >= self.n_units


def _tokens(events: Sequence[Event]) -> int:
    return sum(event.tokens for event in events if isinstance(event, UpdateAccepted))


def _bytes(events: Sequence[Event]) -> int:
    sent = sum(event.bytes_sent for event in events if isinstance(event, UnitLeased))
    return sent + sum(event.bytes_received for event in events if isinstance(event, UpdateAccepted))


def _mismatches(events: Sequence[Event]) -> tuple[float, ...]:
    found = (getattr(event, "mismatch", None) for event in events if isinstance(event, NodeAveraged))
    return tuple(value for value in found if value is not None)


def oracle_leaves(
    context: Context, job: Job, model: TreeModel, campaign: Campaign, shards: Mapping[str, Shard]
) -> dict[str, NodePath]:
    """The leaf of each domain: its worker's, or the best on validation documents where workers mix domains."""
    if not job.has_oracle:
        return {}
    names = {worker.name: worker.node for worker in campaign.workers.values()}
    domains = context.corpus.domains
    if job.split == "domain" and len(shards) == len(domains):
        owned = {domain: names.get(worker) for worker, domain in zip(shards, domains, strict=True)}
        if all(node is not None and node in campaign.leaves for node in owned.values()):
            return {domain: node for domain, node in owned.items() if node is not None}
    return best_leaves(
        model,
        context.corpus.validation,
        window_tokens=context.config.window_tokens,
        candidates={domain: campaign.leaves for domain in domains},
        max_tokens_per_document=context.config.scored_tokens,
    )


# --- scoring ---------------------------------------------------------------------------------------------------------


def score_policies(
    context: Context, job: Job, model: TreeModel, bundle: Bundle, leaf_of: Mapping[str, NodePath]
) -> dict[str, Scored]:
    """Every policy of the job, and the oracle."""
    rank, n_leaves = bundle.spec.rank, len(bundle.topology.leaves)
    scored: dict[str, Scored] = {}
    if not job.policies and not job.has_oracle:
        model.route_to(bundle.topology.leaves[0] if n_leaves == 1 else None)
        scored["one"] = timed_scores(context, job, model, active_rank=rank)
        model.route_to(None)
    for policy in job.policies:
        if policy in (*OTHER_ROUTERS, *MIXES):
            continue
        model.policy = Policy.parse(policy)
        active = rank * {"soft": n_leaves, "top2": min(2, n_leaves)}.get(model.policy.decision, 1)
        scored[policy] = timed_scores(context, job, model, active_rank=active)
    if "random" in job.policies:
        scored["random"] = _score_randomly(context, job, model, active_rank=rank)
    if leaf_of:
        scored["oracle"] = timed_scores(context, job, model, active_rank=rank, leaf_of=leaf_of)
    return scored


def _score_randomly(context: Context, job: Job, model: TreeModel, *, active_rank: int) -> Scored:
    """Every document goes to a leaf drawn by its name: what a router that knows nothing would keep."""
    parts: list[Scored] = []
    for leaf in model.nodes:
        chosen = {
            domain: tuple(document for document in some if _drawn(document.name, model.nodes) == leaf)
            for domain, some in context.documents(job).items()
        }
        model.route_to(leaf)
        parts.append(timed_scores(context, job, model, active_rank=active_rank, documents=chosen))
    model.route_to(None)
    scores = tuple(sorted((s for part in parts for s in part.scores), key=lambda score: (score.domain, score.name)))
    return Scored(active_rank=active_rank, seconds=sum(part.seconds for part in parts), scores=scores)


def _drawn(name: str, leaves: Sequence[NodePath]) -> NodePath:
    return leaves[int.from_bytes(hashlib.sha256(f"leaf of {name}".encode()).digest()[:8], "big") % len(leaves)]


def _score_other_routers(context: Context, job: Job, result: SimulationResult, base: LoadedBase) -> dict[str, Scored]:
    """The baselines: all leaves alike, gates whose weights were averaged, and all leaves mixed into one adapter."""
    bundles: dict[str, Bundle] = {}
    if "uniform" in job.policies:
        gates = result.bundle.gates
        blank = {node: Gate(np.zeros(gates.dim), 0.0, 1.0) for node in gates.nodes}
        bundles["uniform"] = replace(result.bundle, gates=Gates(blank, gates.dim))
    if "averaged weights" in job.policies:
        averaged = make_bundle(result.campaign, result.ledger, is_router_averaged=True)
        bundles["averaged weights"] = replace(averaged, projection=result.bundle.projection)
    for name, how in MIXES.items():
        if name in job.policies:
            bundles[name] = mush_bundle(result.bundle, how).bundle
            bundles[f"{name}, to one rank"] = mush_bundle(result.bundle, how, rank=result.bundle.spec.rank).bundle
    scored = {}
    for name, bundle in bundles.items():
        model = TreeModel.from_bundle(bundle, base, "soft")
        try:
            active = bundle.spec.rank * len(bundle.topology.leaves)
            scored[name] = timed_scores(context, job, model, active_rank=active)
        finally:
            model.detach_adapters()
    return scored


def timed_scores(
    context: Context,
    job: Job,
    model: TreeModel,
    *,
    active_rank: int,
    leaf_of: Mapping[str, NodePath] | None = None,
    documents: Mapping[str, Documents] | None = None,
) -> Scored:
    """Scores of all documents of the job, or of some, with the time they took."""
    config = context.config
    documents = context.documents(job) if documents is None else documents
    options = {"window_tokens": config.window_tokens, "max_tokens_per_document": config.scored_tokens}
    started = time.perf_counter()
    if leaf_of is None:
        rows = score_domains(model, documents, **options)
    else:
        rows = score_leaves(model, documents, leaf_of, **options)
    seconds = time.perf_counter() - started
    return Scored(active_rank=active_rank, seconds=seconds, scores=tuple(_score(row) for row in rows))


def _score(row: DocumentScore) -> Score:
    return Score(
        domain=row.domain,
        name=row.name,
        nll_sum=row.nll_sum,
        n_tokens=row.n_tokens,
        n_bytes=row.n_bytes,
        nll_sum_late=row.nll_sum_late,
        n_tokens_late=row.n_tokens_late,
    )


def _score_cuts(
    context: Context, job: Job, base: LoadedBase, bundle: Bundle, leaf_of: Mapping[str, NodePath]
) -> dict[str, Scored]:
    if not job.cuts:
        return {}
    scored = {}
    for rank in job.cuts:
        model = TreeModel.from_bundle(bundle, base)
        model.use_rank(rank)
        try:
            scored[f"cut:{rank}"] = timed_scores(context, job, model, active_rank=rank, leaf_of=leaf_of)
        finally:
            model.detach_adapters()
    return scored


def mean_nll(scored: Scored) -> float:
    """Mean over domains of nats per token."""
    sums: dict[str, list[float]] = {}
    for score in scored.scores:
        total = sums.setdefault(score.domain, [0.0, 0.0])
        total[0] += score.nll_sum
        total[1] += score.n_tokens
    return math.fsum(nll / n for nll, n in sums.values()) / len(sums)


def _curve(
    context: Context, job: Job, result: SimulationResult, base: LoadedBase, leaf_of: Mapping[str, NodePath]
) -> tuple[Point, ...]:
    """Loss on validation documents at evenly spaced moments of the run: every prefix of a run is a usable bundle."""
    if not job.n_checkpoints:
        return ()
    events = result.ledger.events()
    total = _tokens(events)
    points = []
    validation = job.model_copy(update={"on": "validation"})
    for number in range(1, job.n_checkpoints + 1):
        part = _until(events, total * number / job.n_checkpoints)
        state = fold(part)
        if state is None or state.topology is None or not state.router.blob:
            continue
        model = TreeModel.from_bundle(make_bundle(state, result.ledger, projection=result.bundle.projection), base)
        try:
            scored = score_policies(context, validation, model, result.bundle, leaf_of)
        finally:
            model.detach_adapters()
        points.append(Point(tokens=_tokens(part), nll={name: mean_nll(each) for name, each in scored.items()}))
    return tuple(points)


def _until(events: Sequence[Event], tokens: float) -> Sequence[Event]:
    """The events up to the one with which so many tokens had been trained on, and the averages that follow it."""
    seen = 0
    for index, event in enumerate(events):
        if isinstance(event, UpdateAccepted):
            seen += event.tokens
        if seen >= tokens and isinstance(event, NodeAveraged):
            rest = events[index + 1 :]
            n_more = next((i for i, later in enumerate(rest) if not isinstance(later, NodeAveraged)), len(rest))
            return events[: index + 1 + n_more]
    return events


# --- on disk ---------------------------------------------------------------------------------------------------------


def outcome_file(folder: Path, job: Job) -> Path:
    """Where a job's outcome is kept."""
    name = f"{job.system}-{job.seed}"
    if job.system.startswith("tune-"):
        name += f"-{job.rate.learning_rate:g}-{job.rate.scale:g}"
    return folder / "jobs" / f"{name.replace(':', '_').replace('/', '_').replace(',', '+')}.json"


def read_outcome(folder: Path, job: Job) -> Outcome | None:
    """The outcome of an earlier run; None where there is none.

    Raises:
        SettingError: The file holds another job under this name.
    """
    file = outcome_file(folder, job)
    if not file.exists():
        return None
    found = Outcome.model_validate(json.loads(file.read_text(encoding="utf-8")))
    if found.job != job:
        raise SettingError(f"{file}: holds another configuration of {job.system}; choose another folder, or remove it")
    return found


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Write an outcome whole or not at all."""
    file = outcome_file(folder, outcome.job)
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".tmp")
    draft.write_text(outcome.model_dump_json(), encoding="utf-8")
    draft.replace(file)

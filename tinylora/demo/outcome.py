"""From a finished run to what a person reads: baselines, scores of every system, report, pictures, and the table.

All systems are scored on the same held-out documents, from each document's start. The peer, FedAvg of one LoRA, is
trained here on the same shards for the same tokens (`settings.fedavg_settings`).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tinylora.base_model import LoadedBase
from tinylora.bundle import Bundle, write_bundle
from tinylora.config import RunSettings
from tinylora.demo.settings import fedavg_settings
from tinylora.demo.study import Study
from tinylora.errors import DataError
from tinylora.evaluation import (
    DocumentScore,
    RoutingTable,
    best_leaves,
    evaluate_tree,
    routing_table,
    score_domains,
)
from tinylora.federation.campaign import Campaign
from tinylora.federation.ports import Ledger
from tinylora.federation.summary import summarise
from tinylora.model import TreeModel
from tinylora.release import make_bundle
from tinylora.report import build_report, write_report
from tinylora.report.plots import NO_PICTURES, can_draw
from tinylora.routing.policy import Router
from tinylora.simulate import SimulatedWorker, simulate
from tinylora.tree import NodePath

MAX_SCORED_TOKENS = 1024
"""Of each document; scoring all of a long one would take longer than the run."""

Scores = dict[str, list[DocumentScore]]
_WIDE = 110
"""Columns of a terminal that has room for every domain's loss; `report.md` has them in any case."""


@dataclass(frozen=True, eq=False)
class Finished:
    """A run that is over."""

    campaign: Campaign
    ledger: Ledger
    bundle: Bundle


def write_outcome(
    finished: Finished,
    study: Study,
    base: LoadedBase,
    out: Path,
    *,
    how: str,
    started: float,
    peak_memory_mb: Callable[[], float],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Train the peer, score everything, and write bundle, report and pictures into `out`; returns the report.

    Args:
        finished: The run.
        study: Shards for the peer, documents to score.
        base: Bare: no adapters on it.
        out: An existing folder.
        how: The command, for the report.
        started: `time.monotonic()` when the command began.
        peak_memory_mb: Asked at the end.
        say: Told what goes on.
    """
    settings = finished.campaign.settings
    write_bundle(finished.bundle, out / "bundle.safetensors")
    say("training the peer: FedAvg of one LoRA on the same shards, for the same tokens")
    fedavg = train_fedavg(settings, study, base)
    say("scoring all systems on held-out documents")
    scores, routing = score_systems(finished, fedavg, study, base)
    report = build_report(
        scores,
        rank=settings.rank,
        n_leaves=len(finished.bundle.topology.leaves),
        how=how,
        seed=settings.seed,
        seconds=time.monotonic() - started,
        settings=settings.model_dump(mode="json"),
        routing=routing.to_dict(),
        run=summarise(finished.ledger.events()),
        peak_memory=peak_memory_mb(),
        notes=_notes(settings),
    )
    write_report(report, out)
    if not can_draw():
        say(escape(NO_PICTURES))  # what names an extra looks like markup
    return report


def _notes(settings: RunSettings) -> list[str]:
    peer = fedavg_settings(settings)
    return [
        f"fedavg_lora: one LoRA of rank {settings.rank}, all workers, {settings.leaf_steps} steps each, averaged every "
        f"{peer.unit_steps} steps, learning rate {peer.learning_rate:g}; the leaves' is {settings.learning_rate:g}. "
        "Both were chosen by one sweep (benchmarks/rates.py).",
        f"Every document is scored from its start, over its first {MAX_SCORED_TOKENS} tokens, in windows of "
        f"{settings.window_tokens}; the router's state goes on from window to window.",
        "oracle: every document goes to the leaf that was trained on its domain; where a worker mixed domains, to the "
        "leaf below it that is best on other held-out documents of the domain.",
    ]


def train_fedavg(settings: RunSettings, study: Study, base: LoadedBase) -> Bundle:
    """One LoRA by federated averaging: the production loop on a tree of one leaf."""
    workers = [SimulatedWorker(name, shard, seconds_per_step=1.0) for name, shard in study.shards.items()]
    return simulate(fedavg_settings(settings), workers, base).bundle


def score_systems(finished: Finished, fedavg: Bundle, study: Study, base: LoadedBase) -> tuple[Scores, RoutingTable]:
    """Document scores of base, peer, oracle, and of the tree under every policy; and where the domains go."""
    settings = finished.campaign.settings
    options: dict[str, Any] = {"window_tokens": settings.window_tokens, "max_tokens_per_document": MAX_SCORED_TOKENS}
    with _model(TreeModel.from_bundle(fedavg, base)) as model:
        peer = score_domains(model, study.heldout, **options)
    with _model(TreeModel.from_bundle(finished.bundle, base)) as model:
        candidates = {domain: _candidates(finished.campaign, study, domain) for domain in study.heldout}
        leaf_of = best_leaves(model, study.validation, candidates=candidates, **options)
        scores = evaluate_tree(model, study.heldout, leaf_of=leaf_of, **options)
        table = routing_table(_router(model), study.heldout, leaf_of, max_tokens_per_document=MAX_SCORED_TOKENS)
    if settings.router_sync == "both":
        averaged = make_bundle(finished.campaign, finished.ledger, is_router_averaged=True)
        with _model(TreeModel.from_bundle(replace(averaged, projection=finished.bundle.projection), base)) as model:
            scores["routed:soft:weights"] = score_domains(model, study.heldout, **options)
    return {"base": scores.pop("base"), "fedavg_lora": peer, **scores}, table


@contextmanager
def _model(model: TreeModel) -> Iterator[TreeModel]:
    """A model for a while; the base is bare again afterwards."""
    try:
        yield model
    finally:
        model.detach_adapters()


def _router(model: TreeModel) -> Router:
    if model.router is None:
        raise DataError("bundle: it has no router")
    return model.router


def _candidates(campaign: Campaign, study: Study, domain: str) -> Sequence[NodePath]:
    """Leaves that a holder of the domain has trained."""
    holders = {name for name, domains in study.domains.items() if domain in domains}
    nodes = {worker.node for worker in campaign.workers.values() if worker.name in holders and worker.node is not None}
    leaves = sorted({leaf for node in nodes for leaf in campaign.leaves_below(node)})
    if not leaves:
        raise DataError(f"domain {domain}: no worker that holds it took part in the run, so it has no leaf")
    return leaves


# --- for the terminal ------------------------------------------------------------------------------------------------


def print_outcome(console: Console, report: Mapping[str, Any], out: Path) -> None:
    """The table, what was promised and what came of it, and where everything is."""
    domains = list(report["systems"]["base"]["nll"]) if console.width >= _WIDE else []
    table = Table(title="held-out loss in nats per token, mean over domains ± standard error over documents")
    for heading in ("system", "active rank", "nll", "±", "perplexity", "regret", *domains):
        table.add_column(heading, justify="left" if heading == "system" else "right", no_wrap=True)
    for name, row in report["systems"].items():
        regret = report["regret"].get(name.removeprefix("routed:")) if name.startswith("routed:") else None
        table.add_row(
            name,
            str(row["active_rank"]),
            f"{row['nll_mean']:.4f}",
            "-" if row["stderr"] is None else f"{row['stderr']:.4f}",
            f"{row['ppl_mean']:.2f}",
            "" if regret is None else f"{regret:.0%}",
            *(f"{row['nll'][domain]:.3f}" for domain in domains),
        )
    console.print(table)
    for goal in report["goals"]:
        mark = "[green]yes[/]" if goal["is_met"] else "[red]no [/]"
        console.print(f"  {mark} {goal['statement']}: {goal['measured']}", highlight=False)
    console.print(f"  {report['seconds']:.0f} s, at most {report['peak_memory_mb'] / 1024:.1f} GiB of memory")
    for name in ("bundle.safetensors", "report.md", "report.json", "loss.png", "routing.png", "logs"):
        if (out / name).exists():
            console.print(f"  {out / name}")

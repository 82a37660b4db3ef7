"""Whole federations on the demo's base and the text of this machine, for benchmarks of how they stand trouble."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from tinylora.base_model import LoadedBase, load_base
from tinylora.bundle import Bundle
from tinylora.config import RunSettings
from tinylora.demo.experiment import BASE_DIR, gather
from tinylora.demo.settings import demo_settings
from tinylora.demo.study import Study, study_of
from tinylora.evaluation import score_domains
from tinylora.model import TreeModel

SCORED_TOKENS = 512
"""Of each held-out document."""


@dataclass(frozen=True, eq=False)
class World:
    """A base, and who has which text."""

    base: LoadedBase
    study: Study

    @property
    def names(self) -> tuple[str, ...]:
        """The workers."""
        return tuple(self.study.shards)


@cache
def demo_world(n_workers: int, depth: int) -> World:
    """The demo's own base, and the kinds of text of this machine dealt out to so many workers."""
    base = load_base(str(BASE_DIR))
    return World(base, study_of(gather(n_workers, depth), base))


def settings_for(world: World, depth: int, seed: int, **changes: object) -> RunSettings:
    """A small run of the demo's kind that keeps every default of what protects it."""
    return demo_settings(len(world.names), depth, seed=seed, router_sync="statistics", min_sequences=20, **changes)


def perplexity(bundle: Bundle, world: World, *, domains: Sequence[str] | None = None) -> dict[str, float]:
    """Of the routed model on documents that nobody trained on, by domain; `mean` is of the mean loss over domains."""
    model = TreeModel.from_bundle(bundle, world.base)
    try:
        heldout = {name: documents for name, documents in world.study.heldout.items() if name in (domains or [name])}
        rows = score_domains(model, heldout, window_tokens=256, max_tokens_per_document=SCORED_TOKENS)
    finally:
        model.detach_adapters()
    losses = {
        domain: math.fsum(row.nll_sum for row in rows if row.domain == domain)
        / sum(row.n_tokens for row in rows if row.domain == domain)
        for domain in heldout
    }
    return {domain: math.exp(loss) for domain, loss in losses.items()} | {
        "mean": math.exp(math.fsum(losses.values()) / len(losses))
    }


def cost(other: Mapping[str, float], clean: Mapping[str, float]) -> float:
    """By how much a perplexity is above another one, as a share of it; below 0 it is better."""
    return other["mean"] / clean["mean"] - 1

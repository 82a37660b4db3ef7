"""Prefixes of nested adapters: what a worker trains whose memory does not hold the whole rank. No torch."""

from dataclasses import replace

from tinylora.adapters.spec import AdapterSpec
from tinylora.config import BaseFacts


def prefix_spec(spec: AdapterSpec, facts: BaseFacts, prefix_rank: int) -> AdapterSpec:
    """The adapter cut to its first `prefix_rank` rows in every projection; 0 cuts nothing.

    The reference rank stays, and with it the scale: a prefix means the same on every machine.
    """
    if not prefix_rank:
        return spec
    return replace(spec, ranks={name: min(spec.rank_of(name), prefix_rank) for name in facts.projections})


def highest_rank(spec: AdapterSpec, facts: BaseFacts) -> int:
    """Of the projections' ranks the highest."""
    return max(spec.rank_of(name) for name in facts.projections)

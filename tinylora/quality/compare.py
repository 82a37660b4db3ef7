"""Systems against each other on the same documents: means over domains and seeds, and a paired bootstrap.

A draw takes seeds with replacement and, within every domain, documents with replacement; the same documents for both
systems. The interval is between the 2.5th and the 97.5th percentile of the draws.

Source:
    Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapters 8 (stratified data) and 13 (percentiles).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from tinylora.errors import DataError


@runtime_checkable
class ScoreLike(Protocol):
    """What is read of one scored document."""

    @property
    def domain(self) -> str:
        """The kind of text it belongs to."""
        ...

    @property
    def name(self) -> str:
        """Unique within its domain."""
        ...

    @property
    def nll_sum(self) -> float:
        """Nats over all predicted tokens."""
        ...

    @property
    def n_tokens(self) -> int:
        """Predicted tokens."""
        ...


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def as_ppl_change(self) -> "Interval":
        """A difference in nats as the relative change of perplexity, exp(x) - 1."""
        return Interval(*(math.expm1(x) for x in (self.value, self.low, self.high)))


@dataclass(frozen=True, eq=False)
class Table:
    """Scores of one system as arrays, one pair for each domain."""

    nll: dict[str, Float[np.ndarray, "seed document"]]
    n_tokens: dict[str, Float[np.ndarray, " document"]]

    @property
    def n_seeds(self) -> int:
        """How many trainings."""
        return next(iter(self.nll.values())).shape[0]

    def mean(self) -> float:
        """Mean over domains of nats per token, over all seeds."""
        return float(np.mean([self.nll[d].sum(axis=1).mean() / self.n_tokens[d].sum() for d in self.nll]))

    def perplexity(self) -> float:
        """Exp of the mean: the geometric mean of the domains' perplexities."""
        return math.exp(self.mean())

    def by_domain(self) -> dict[str, float]:
        """Nats per token of every domain, over all seeds."""
        return {d: float(self.nll[d].sum(axis=1).mean() / self.n_tokens[d].sum()) for d in self.nll}


def table(by_seed: Sequence[Sequence[ScoreLike]]) -> Table:
    """Arrays of one system's scores, documents in one order.

    Raises:
        DataError: Two seeds were scored on different documents.
    """
    keys = [sorted((s.domain, s.name, s.n_tokens) for s in scores if s.n_tokens) for scores in by_seed]
    if any(key != keys[0] for key in keys):
        raise DataError("comparison: the seeds of one system were scored on different documents")
    domains = sorted({domain for domain, _, _ in keys[0]})
    rows = [{(s.domain, s.name): s.nll_sum for s in scores} for scores in by_seed]
    nll, n_tokens = {}, {}
    for domain in domains:
        members = [(name, n) for d, name, n in keys[0] if d == domain]
        nll[domain] = np.array([[row[domain, name] for name, _ in members] for row in rows])
        n_tokens[domain] = np.array([float(n) for _, n in members])
    return Table(nll, n_tokens)


def difference(left: Table, right: Table, *, n_draws: int, seed: int = 0) -> Interval:
    """Mean nll of `left` minus that of `right`, in nats per token; below 0 where `left` is better.

    A system of one seed stands against every seed of the other.

    Raises:
        DataError: The systems were scored on different documents.
    """
    _check_same(left, right)
    draws = _draw([left, right], n_draws, seed)
    found = draws[0] - draws[1]
    return _interval(left.mean() - right.mean(), found)


def regret(routed: Table, oracle: Table, base: Table, *, n_draws: int, seed: int = 0) -> Interval:
    """(routed - oracle) / (base - oracle): 0 is as good as knowing the domain, 1 as bad as the base.

    Raises:
        DataError: The systems were scored on different documents.
    """
    _check_same(routed, oracle)
    _check_same(oracle, base)
    r, o, b = _draw([routed, oracle, base], n_draws, seed)
    value = (routed.mean() - oracle.mean()) / (base.mean() - oracle.mean())
    return _interval(value, (r - o) / (b - o))


def _check_same(left: Table, right: Table) -> None:
    for domain in sorted({*left.n_tokens, *right.n_tokens}):
        ours, theirs = left.n_tokens.get(domain), right.n_tokens.get(domain)
        if ours is None or theirs is None or not np.array_equal(ours, theirs):
            raise DataError(f"comparison: domain {domain}: the two systems were scored on different documents")


def _draw(tables: Sequence[Table], n_draws: int, seed: int) -> list[Float[np.ndarray, " draw"]]:
    """The systems' means in every draw; all see the same documents, and the same seeds where they have as many."""
    rng = np.random.default_rng(seed)
    n_seeds = max(table.n_seeds for table in tables)
    seeds = rng.integers(n_seeds, size=(n_draws, n_seeds))
    totals = [np.zeros(n_draws) for _ in tables]
    for domain, n_tokens in tables[0].n_tokens.items():
        picks = rng.integers(len(n_tokens), size=(n_draws, len(n_tokens)))
        counts = n_tokens[picks].sum(axis=1)
        for total, each in zip(totals, tables, strict=True):
            nll = each.nll[domain] if each.n_seeds == n_seeds else np.repeat(each.nll[domain], n_seeds, axis=0)
            chosen = nll[seeds[:, :, None], picks[:, None, :]].sum(axis=2).mean(axis=1)
            total += chosen / counts
    return [total / len(tables[0].n_tokens) for total in totals]


def _interval(value: float, draws: Float[np.ndarray, " draw"]) -> Interval:
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(value, float(low), float(high))

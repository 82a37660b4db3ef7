"""The paired bootstrap against sums done by hand, and what it must never depend on."""

import math
from dataclasses import dataclass

import numpy as np
import pytest

from tinylora.errors import DataError
from tinylora.quality.compare import Interval, difference, regret, table


@dataclass(frozen=True)
class Scored:
    domain: str
    name: str
    nll_sum: float
    n_tokens: int


def system(shift: float, *, seed: int = 0, n_documents: int = 12, domains: str = "ab") -> list[Scored]:
    rng = np.random.default_rng(7)
    rows = []
    for domain in domains:
        for number in range(n_documents):
            n_tokens = int(rng.integers(50, 200))
            difficulty = 3.0 + rng.normal(0, 0.5)
            noise = np.random.default_rng((seed, number, ord(domain))).normal(0, 0.01)
            rows.append(Scored(domain, f"{number:02d}", n_tokens * (difficulty + shift + noise), n_tokens))
    return rows


def by_hand(rows: list[Scored]) -> float:
    means = []
    for domain in sorted({row.domain for row in rows}):
        members = [row for row in rows if row.domain == domain]
        means.append(sum(row.nll_sum for row in members) / sum(row.n_tokens for row in members))
    return sum(means) / len(means)


def test_the_mean_is_over_domains_of_nats_per_token_and_over_seeds():
    seeds = [system(0.0, seed=1), system(0.2, seed=2)]
    assert table(seeds).mean() == pytest.approx((by_hand(seeds[0]) + by_hand(seeds[1])) / 2)


def test_the_order_of_documents_does_not_matter():
    rows = system(0.1)
    assert table([rows]).mean() == pytest.approx(table([rows[::-1]]).mean(), abs=1e-15)
    one = difference(table([rows]), table([system(0.0)]), n_draws=50)
    other = difference(table([rows[::-1]]), table([system(0.0)]), n_draws=50)
    assert one == other


def test_pairing_takes_the_documents_difficulty_out():
    """Documents differ by half a nat, systems by a twentieth: only a paired interval excludes 0."""
    found = difference(table([system(-0.05, seed=1)]), table([system(0.0, seed=2)]), n_draws=500)
    assert found.value == pytest.approx(-0.05, abs=0.01)
    assert found.low < found.value < found.high < 0


def test_equal_systems_have_an_interval_of_nothing():
    rows = table([system(0.0)])
    assert difference(rows, rows, n_draws=50) == Interval(0.0, 0.0, 0.0)


def test_seeds_that_disagree_widen_the_interval():
    base = table([system(0.0)] * 3)
    agreeing = difference(table([system(-0.1)] * 3), base, n_draws=400)
    disagreeing = difference(table([system(shift) for shift in (-0.3, -0.1, 0.1)]), base, n_draws=400)
    assert disagreeing.value == pytest.approx(agreeing.value, abs=1e-9)
    assert disagreeing.high - disagreeing.low > 5 * (agreeing.high - agreeing.low)


def test_regret_is_the_share_of_the_oracles_gain_that_is_lost():
    base, oracle, routed = (table([system(shift)]) for shift in (0.0, -0.4, -0.3))
    found = regret(routed, oracle, base, n_draws=200)
    assert found.value == pytest.approx(0.25)
    assert found.low == pytest.approx(0.25) and found.high == pytest.approx(0.25)


def test_a_difference_in_nats_as_a_change_of_perplexity():
    found = Interval(-0.1, -0.2, 0.05).as_ppl_change()
    assert found.value == pytest.approx(math.exp(-0.1) - 1)
    assert (found.low, found.high) == pytest.approx((math.exp(-0.2) - 1, math.exp(0.05) - 1))


def test_other_documents_are_refused():
    ours, theirs = table([system(0.0)]), table([system(0.0, n_documents=11)])
    with pytest.raises(DataError, match="different documents"):
        difference(ours, theirs, n_draws=10)
    with pytest.raises(DataError, match="different documents"):
        table([system(0.0), system(0.0, n_documents=11)])

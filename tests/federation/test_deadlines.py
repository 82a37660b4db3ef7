"""Deadlines by arithmetic that fits on a hand."""

from dataclasses import replace

import pytest

from tests.federation.facts import FACTS, SETTINGS
from tinylora.federation.campaign import LONGEST_REST_S, Campaign, Worker, apply
from tinylora.federation.deadlines import deadline_s, usual_seconds
from tinylora.federation.events import LeaseExpired, UnitLeased

WORKER = Worker("w0", "w0")


def _campaign(*observed_s: float) -> Campaign:
    return Campaign("test", SETTINGS, FACTS, observed_s={"train": observed_s})


def test_until_three_were_observed_the_operators_word_holds():
    assert deadline_s(_campaign(1.0, 1.0), WORKER, "train", 50) == 60.0
    assert deadline_s(_campaign(1.0, 1.0, 1.0), WORKER, "sketch", 0) == 60.0


@pytest.mark.parametrize(
    ("observed_s", "usual_s"),
    [((2.0, 2.0, 2.0), 4.0), ((1.0, 2.0, 3.0), 2 + 6 * 1), ((1.0, 1.0, 1.0, 9.0), 2.0), ((1.0, 5.0, 9.0), 5 + 6 * 4)],
)
def test_median_and_spread(observed_s, usual_s):
    assert usual_seconds(observed_s, slack=6.0) == usual_s
    assert deadline_s(_campaign(*observed_s), WORKER, "train", 10) == 10 * usual_s


def test_never_under_five_seconds():
    assert deadline_s(_campaign(0.01, 0.01, 0.01), WORKER, "train", 10) == 5.0


def test_whoever_missed_thousands_rests_as_long_as_ever():
    lease = UnitLeased(
        unit_id="u0",
        worker="w0",
        kind="sketch",
        node="",
        nonce="n",
        topology_version=0,
        router_version=0,
        node_version=0,
        at_s=0.0,
        deadline_s=1.0,
    )
    state = replace(_campaign(), workers={"w0": replace(WORKER, unit_id="u0", misses=5000)}, leases={"u0": lease})
    after = apply(state, LeaseExpired(unit_id="u0", reason="late", at_s=1.0))
    assert after.workers["w0"].rests_until_s == 1.0 + LONGEST_REST_S


def test_each_miss_in_a_row_doubles_it():
    deadlines = [deadline_s(_campaign(), replace(WORKER, misses=misses), "train", 1) for misses in range(9)]
    assert deadlines == [60.0 * 2 ** min(misses, 6) for misses in range(9)]

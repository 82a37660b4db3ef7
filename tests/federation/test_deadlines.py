"""Deadlines by arithmetic that fits on a hand."""

from dataclasses import replace

import pytest

from tests.federation.facts import FACTS, SETTINGS
from tinylora.federation.campaign import Campaign, Worker
from tinylora.federation.deadlines import deadline_s, usual_seconds

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


def test_each_miss_in_a_row_doubles_it():
    deadlines = [deadline_s(_campaign(), replace(WORKER, misses=misses), "train", 1) for misses in range(9)]
    assert deadlines == [60.0 * 2 ** min(misses, 6) for misses in range(9)]

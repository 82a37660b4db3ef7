"""A sample of the kill matrix; `make chaos` runs all of it. And the failpoints: enough, and all of them reached."""

from collections import Counter
from functools import cache

import pytest

from tests.chaos.matrix import Facts, Kill, Scenario, kills, reached, survive
from tests.chaos.scenarios import SCENARIOS
from tinylora import failpoints

EVERY = 12
"""One in so many kills is tried here."""
RECOVERY_S = 5.0
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


@cache
def undisturbed(name: str) -> tuple[Counter[str], Facts]:
    return reached(BY_NAME[name])


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_a_killed_scenario_ends_as_if_nothing_had_happened(scenario: Scenario) -> None:
    counts, facts = undisturbed(scenario.name)
    for kill in list(kills(scenario, counts))[::EVERY]:
        outcome = survive(kill)
        assert outcome.facts == facts, str(kill)
        assert outcome.recovery_s < RECOVERY_S * 4, str(kill)  # beside other tests; `make chaos` holds it to the figure


def test_every_failpoint_is_reached_by_some_scenario() -> None:
    seen = {name for scenario in SCENARIOS for name in undisturbed(scenario.name)[0]}
    of_the_product = {name for name in failpoints.registered() if not name.startswith("tests.")}
    assert of_the_product == seen
    assert len(seen) >= 60


def test_a_kill_that_never_comes_is_told() -> None:
    name = next(iter(undisturbed(SCENARIOS[0].name)[0]))
    with pytest.raises(AssertionError, match="ended before the failpoint"):
        survive(Kill(SCENARIOS[0], name, 10_000_000))

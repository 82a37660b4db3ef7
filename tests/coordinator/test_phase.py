"""What workers are told of a run: before there is a tree, while it is trained, paused, resumed, over."""

from itertools import pairwise
from pathlib import Path

import pytest
from tinylora_coordinator.operator_store import OperatorStore
from tinylora_coordinator.phase import PhaseReader, phase_of
from tinylora_coordinator.public_status import REST_S, PublicStatus

from tests.federation.facts import SETTINGS
from tests.federation.world import crowd, run_world
from tinylora.flower.enrolment import Phase
from tinylora.ledger.sqlite import SqliteLedger


@pytest.mark.parametrize("served", ["waiting", "stopping", "finished"])
def test_what_the_supervisor_says_of_beginning_and_end_holds(served: Phase) -> None:
    assert phase_of(served, [], {"0": {}}) == served


def test_a_run_waits_for_its_tree_and_is_paused_by_the_last_order(tmp_path: Path) -> None:
    now = [0.0]
    with OperatorStore(tmp_path) as store:
        phase = PhaseReader(
            lambda: "running", store, PublicStatus(tmp_path, clock=lambda: now[0]), clock=lambda: now[0]
        )
        assert phase() == "waiting"
        with SqliteLedger(tmp_path) as ledger:
            run_world(crowd(2), SETTINGS, ledger=ledger)
        found = []
        for order in (None, "pause", "finish", "resume", "pause"):
            if order is not None:
                store.order(order, now_s=now[0])
            before = phase()
            now[0] += REST_S
            found.append((before, phase()))
    states = ["waiting", "running", "paused", "paused", "running", "paused"]
    assert found == list(pairwise(states))

"""What a worker is said to be doing when it goes: left, or lost."""

import pytest
from tinylora_coordinator.dashboard.fold import RunFold
from tinylora_coordinator.dashboard.shown import node_document, worker_document

from tests.dashboard.runs import rows_of
from tinylora.federation.events import Event, GatesSolved, UnitLeased, WorkerLost, WorkerReturned
from tinylora.protocol.report import WorkerReport
from tinylora.protocol.standstill import WorkerState


def begun() -> RunFold:
    """A run whose tree is set; every worker holds a node and is at nothing."""
    rows = rows_of("leaves")
    n = next(number for number, _, event in rows if isinstance(event, GatesSolved))
    fold = RunFold()
    for number, (_, at_s, event) in enumerate((row for row in rows[:n] if not isinstance(row[2], UnitLeased)), 1):
        fold.apply(number, at_s, event)
    return fold


def happens(fold: RunFold, event: Event) -> None:
    fold.apply(fold.head.n_events + 1, 1000.0, event)


def say(fold: RunFold, worker: str, state: WorkerState) -> None:
    fold.hear(worker, WorkerReport(state=state), 999.0)


def shown(fold: RunFold, worker: str) -> tuple[str, str]:
    found = worker_document(fold, fold.workers[worker])
    return found.state, found.detail


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (WorkerState.LEAVING, ("finished", "left")),
        (WorkerState.FINISHED, ("finished", "left")),
        (WorkerState.PAUSED, ("lost", "")),
        (WorkerState.WORKING, ("lost", "")),
        (None, ("lost", "")),
    ],
)
def test_whoever_says_goodbye_has_left_and_others_are_lost(said: WorkerState | None, expected: tuple[str, str]) -> None:
    fold = begun()
    if said is not None:
        say(fold, "w1", said)
    happens(fold, WorkerLost(worker="w1", at_s=1000.0))
    assert shown(fold, "w1") == expected


def test_a_goodbye_that_comes_late_counts() -> None:
    fold = begun()
    happens(fold, WorkerLost(worker="w1", at_s=1000.0))
    say(fold, "w1", WorkerState.LEAVING)
    assert shown(fold, "w1") == ("finished", "left")


def test_a_goodbye_is_over_when_the_worker_is_back() -> None:
    fold = begun()
    say(fold, "w1", WorkerState.LEAVING)
    happens(fold, WorkerLost(worker="w1", at_s=1000.0))
    happens(fold, WorkerReturned(worker="w1", at_s=1001.0))
    assert shown(fold, "w1") == ("waiting", "")
    happens(fold, WorkerLost(worker="w1", at_s=1002.0))
    assert shown(fold, "w1") == ("lost", "")


@pytest.mark.parametrize("said", [WorkerState.LEAVING, None])
def test_a_node_whose_holders_have_all_gone_is_lost_either_way(said: WorkerState | None) -> None:
    fold = begun()
    leaf = next(node for leaf in fold.leaves if (node := node_document(fold, leaf)).holders)
    assert leaf.state == "waiting"
    for worker in leaf.holders:
        if said is not None:
            say(fold, worker, said)
        happens(fold, WorkerLost(worker=worker, at_s=1000.0))
    assert node_document(fold, leaf.path).state == "lost"

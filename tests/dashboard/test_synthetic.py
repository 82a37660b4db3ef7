"""The artificial runs tell stories that the campaign believes."""

from itertools import pairwise

import pytest

from tests.dashboard.synthetic import Plan, make_events, make_run
from tinylora.federation.campaign import fold

BUSY = {"probes": 2, "lost_every_s": 600.0, "share_bad": 0.2, "share_expired": 0.1, "share_rejected": 0.05}


@pytest.mark.parametrize(
    "plan",
    [
        Plan(n_leaves=1, n_workers=1),
        Plan(n_leaves=2, n_workers=6, probes=0, is_finished=True),
        Plan(n_leaves=16, n_workers=8, hours=0.3, seed=1),
        Plan(n_leaves=64, n_workers=24, hours=0.2, seed=2, events_per_s=2.0, **BUSY),
    ],
    ids=lambda plan: f"{plan.n_leaves} leaves",
)
def test_the_fold_accepts_every_event(plan: Plan) -> None:
    happened = make_events(plan)
    state = fold(item.event for item in happened)
    assert state is not None
    assert len(state.leaves) == plan.n_leaves
    assert bool(state.finished) == plan.is_finished
    assert [item.number for item in happened] == list(range(1, len(happened) + 1))


def test_times_never_go_back_and_a_seed_is_a_run() -> None:
    plan = Plan(n_leaves=8, n_workers=6, hours=0.2)
    items = list(make_run(plan))
    assert all(one.at_s <= other.at_s for one, other in pairwise(items))
    assert items == list(make_run(plan))
    assert items != list(make_run(Plan(n_leaves=8, n_workers=6, hours=0.2, seed=1)))


def test_much_happens_in_a_busy_one() -> None:
    types = {item.event.type for item in make_events(Plan(64, 24, 0.5, seed=1, events_per_s=1.0, **BUSY))}
    assert types >= {
        "lease_expired",
        "update_rejected",
        "worker_quarantined",
        "worker_lost",
        "worker_returned",
        "worker_assigned",
        "subtree_divided",
        "gates_solved",
        "update_probed",
        "run_paused",
    }

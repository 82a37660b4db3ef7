"""Workers that come and go for good."""

from dataclasses import replace

from tests.federation.world import FakeRunner, assert_counted_once, crowd, only, run_world
from tinylora.federation.events import LeaseExpired, WorkerJoined, WorkerLost

PERIOD_S, N_PERIODS, N_SEATS = 6.0, 20, 4


def test_half_of_the_workers_leave_in_each_of_twenty_periods_and_every_step_counts_once():
    workers = []
    for seat, worker in enumerate(crowd(N_SEATS)):
        assert isinstance(worker.runner, FakeRunner)
        changes = [period * PERIOD_S for period in range(1, N_PERIODS + 1) if period % 2 == seat % 2]
        for turn, (joins, leaves) in enumerate(zip([0.0, *changes], [*changes, float("inf")], strict=True)):
            name = f"{worker.name}-{turn}"
            runner = replace(worker.runner, worker=name)
            workers.append(replace(worker, name=name, runner=runner, joins_at_s=joins, leaves_at_s=leaves))
    campaign, events, ledger = run_world(workers, leaf_steps=88, unit_steps=4, min_workers=N_SEATS)
    assert campaign.finished == "every leaf has had its steps"
    assert campaign.latest_at_s > N_PERIODS * PERIOD_S
    assert len(only(events, WorkerJoined)) == len(workers) == N_SEATS + N_PERIODS * N_SEATS // 2
    assert len(only(events, WorkerLost)) == N_PERIODS * N_SEATS // 2
    assert only(events, LeaseExpired)
    assert_counted_once(campaign, ledger)


def test_what_a_worker_was_at_when_it_left_is_lost():
    stays, goes = crowd(2)
    leaves_at_s = 4.0  # its sketch takes two seconds, its first unit five
    campaign, events, ledger = run_world([stays, replace(goes, leaves_at_s=leaves_at_s)])
    (lost,) = only(events, WorkerLost)
    assert (lost.worker, lost.at_s) == ("w1", leaves_at_s)
    assert campaign.workers["w1"].n_accepted == 1
    assert_counted_once(campaign, ledger)

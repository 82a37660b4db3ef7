"""The run's clock in a real process."""

import threading

from tinylora.federation.events import LeaseExpired, RunFinished, WorkerAssigned
from tinylora.flower.clock import RunClock, age_s


def test_it_goes_on_where_the_ledger_stopped() -> None:
    times = iter([100.0, 100.0, 107.5])
    clock = RunClock(40.0, threading.Event(), monotonic=lambda: next(times))
    assert (clock.now(), clock.now()) == (40.0, 47.5)


def test_a_wait_ends_early_when_something_arrives() -> None:
    wake = threading.Event()
    wake.set()
    RunClock(0.0, wake).wait(1000.0)
    RunClock(0.0, threading.Event()).wait(-1.0)


def test_the_age_of_a_run_is_its_last_event_that_tells_one() -> None:
    expired = LeaseExpired(unit_id="u1", reason="late", at_s=12.5)
    assert age_s([expired, WorkerAssigned(worker="w", node="0")]) == 12.5
    assert age_s([expired, RunFinished(reason="done", at_s=13.0)]) == 13.0
    assert age_s([]) == 0.0

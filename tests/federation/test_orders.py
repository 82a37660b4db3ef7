"""The operator's orders: each carried out once, harmless twice, and answered in a sentence."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.federation.facts import FACTS, SETTINGS
from tests.federation.world import assert_counted_once, crowd, only, run_world
from tinylora.federation.campaign import fold
from tinylora.federation.events import (
    RunFinished,
    RunPaused,
    RunResumed,
    UnitLeased,
    WorkerErased,
    WorkerRevoked,
)
from tinylora.federation.ledger_memory import MemoryLedger
from tinylora.federation.loop import run_campaign
from tinylora.federation.ports import Order
from tinylora.federation.retention import named
from tinylora.numerics import TorchNumerics
from tinylora.simulate import SimulatedTransport, VirtualClock


@dataclass
class TimedDesk:
    """Orders that are laid on the desk at their time, by the run's clock."""

    planned: list[tuple[float, Order]]
    clock: VirtualClock
    outcomes: dict[str, str] = field(default_factory=dict)

    def orders(self) -> list[Order]:
        now = self.clock.now()
        return [order for at_s, order in self.planned if at_s <= now and order.order_id not in self.outcomes]

    def done(self, order: Order, outcome: str) -> None:
        self.outcomes[order.order_id] = outcome


def run_with(*planned: tuple[float, Order], n: int = 4, ledger: MemoryLedger | None = None, **changes: Any):
    """A run with orders at certain seconds: its state, events, ledger and desk."""
    settings = SETTINGS.model_copy(update={"depth": 2, "min_workers": n, **changes})
    workers, kept = crowd(n), ledger or MemoryLedger()
    past = fold(kept.events())
    clock = VirtualClock(past.latest_at_s if past else 0.0)
    transport = SimulatedTransport(workers, [worker.runner for worker in workers if worker.runner], clock)
    desk = TimedDesk(list(planned), clock)
    campaign = run_campaign(
        kept, transport, clock, run="test", settings=settings, base=FACTS, numerics=TorchNumerics(), desk=desk,
        poll_s=1.0, patience_s=50.0,
    )  # fmt: skip
    return campaign, kept.events(), kept, desk


def order(number: int, kind, **fields: str) -> Order:
    """An order by number."""
    return Order(f"o{number}", kind, **fields)


def test_a_paused_run_gives_nothing_out_and_does_not_end():
    campaign, events, ledger, desk = run_with(
        (5.0, order(1, "pause")), (6.0, order(2, "pause")), (500.0, order(3, "resume")), (501.0, order(4, "resume"))
    )
    (paused,), (resumed,) = only(events, RunPaused), only(events, RunResumed)
    assert not [lease for lease in only(events, UnitLeased) if paused.at_s <= lease.at_s < resumed.at_s]
    assert desk.outcomes["o2"] == "the run was paused already"
    assert desk.outcomes["o4"] == "the run was not paused"
    assert campaign.finished == "every leaf has had its steps"
    assert_counted_once(campaign, ledger)


def test_a_run_is_paused_across_its_processes():
    ledger = MemoryLedger()
    run_with((5.0, order(1, "pause")), (100.0, order(2, "finish", reason="enough")), ledger=ledger)
    events = ledger.events()
    half = MemoryLedger()
    half.append(events[: events.index(only(events, RunFinished)[0])], 0.0)
    state = fold(half.events())
    assert state is not None and state.is_paused
    for blob in {blob for event in events for blob in named(event)}:
        half.put_blob(ledger.get_blob(blob))
    campaign, _, _, _ = run_with((400.0, order(3, "resume")), ledger=half)
    assert campaign.finished == "every leaf has had its steps"
    assert_counted_once(campaign, half)


def test_finish_ends_the_run_with_what_it_has():
    campaign, events, _, desk = run_with((7.0, order(1, "finish", reason="enough")))
    assert campaign.finished == "enough"
    assert desk.outcomes == {"o1": "finished"}
    assert only(events, RunFinished)[0].at_s == pytest.approx(7.0, abs=1.0)


def test_orders_for_a_finished_run():
    _, _, ledger, _ = run_with((7.0, order(1, "finish")))
    campaign, events, _, desk = run_with(
        (0.0, order(2, "finish")), (0.0, order(3, "revoke", worker="w1")), (0.0, order(4, "pause")), ledger=ledger
    )
    assert "over already" in desk.outcomes["o2"]
    assert "revoked worker w1" in desk.outcomes["o3"]
    assert "the run is over" in desk.outcomes["o4"]
    assert not campaign.router.has_news  # what is released from here on knows nothing of w1
    assert len(only(events, WorkerRevoked)) == 1


@pytest.mark.parametrize("kind", ["revoke", "erase"])
def test_a_name_that_is_not_there_is_answered(kind):
    _, events, _, desk = run_with((5.0, order(1, kind, worker="nobody")))
    assert desk.outcomes["o1"] == "no worker 'nobody' in this run; known: w0, w1, w2, w3"
    assert not only(events, WorkerRevoked)


def test_revoking_and_erasing_twice():
    _, events, _, desk = run_with(
        (9.0, order(1, "revoke", worker="w1", reason="asked")),
        (10.0, order(2, "revoke", worker="w1")),
        (11.0, order(3, "erase", worker="w1")),
        (12.0, order(4, "erase", worker="w1")),
        (12.0, order(5, "revoke", worker="w1")),
    )
    assert len(only(events, WorkerRevoked)) == len(only(events, WorkerErased)) == 1
    assert only(events, WorkerRevoked)[0].reason == "asked"
    assert "revoked already" in desk.outcomes["o2"]
    assert desk.outcomes["o3"].startswith("erased worker w1: ")
    assert desk.outcomes["o4"].startswith("erased worker w1: ")
    assert "revoked already" in desk.outcomes["o5"]


def test_a_desk_without_orders_changes_nothing():
    calm, events, _ = run_world(crowd(4), depth=2, min_workers=4)
    with_desk, others, _, _ = run_with()
    assert [event.type for event in others] == [event.type for event in events]
    assert with_desk.nodes == calm.nodes

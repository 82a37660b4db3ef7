"""The operator's orders: each carried out once, harmless twice, and answered in a sentence."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.federation.facts import FACTS, SETTINGS
from tests.federation.world import assert_counted_once, crowd, only, run_world
from tinylora.federation.campaign import fold
from tinylora.federation.events import (
    BundlePublished,
    LeaseExpired,
    NodeAveraged,
    RunFinished,
    RunPaused,
    RunResumed,
    UnitLeased,
    UpdateRejected,
    WorkerAssigned,
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


# --- a unit given back, a worker moved -------------------------------------------------------------------------------


def test_a_released_unit_goes_to_somebody_else_and_nothing_is_held_against_the_worker():
    """w2 hangs in its first unit; released, it rests while an idle holder of another leaf takes the unit."""
    campaign, events, ledger, desk = run_with(
        (9.0, order(1, "release", worker="w2", reason="it hangs")), n=4, depth=1, leaf_steps=10, min_workers=4
    )
    (released,) = only(events, LeaseExpired)
    assert released.is_returned and released.reason == "the operator released it: it hangs"
    assert desk.outcomes["o1"] == f"unit {released.unit_id} of worker w2 is free for others"
    given = [event for event in only(events, UnitLeased) if event.at_s >= released.at_s and event.worker == "w2"]
    assert all(event.at_s >= released.at_s + released.rest_s for event in given)
    worker = campaign.workers["w2"]
    assert worker.misses == 0 and "fault" not in worker.results and "harm" not in worker.results
    assert {event.code for event in only(events, UpdateRejected)} <= {"lease_closed"}
    assert campaign.finished == "every leaf has had its steps"
    assert_counted_once(campaign, ledger)


def test_releasing_what_is_not_there():
    _, events, _, desk = run_with(
        (0.0, order(1, "release", worker="nobody")),
        (9.0, order(2, "release", worker="w1")),
        (9.0, order(3, "release", worker="w1")),
    )
    assert desk.outcomes["o1"].startswith("no worker 'nobody'")
    assert desk.outcomes["o3"] == "worker w1 has no unit under way"
    assert len(only(events, LeaseExpired)) == 1


def test_a_moved_worker_trains_its_new_leaf_beside_its_holder():
    campaign, events, ledger, desk = run_with(
        (9.0, order(1, "reassign", worker="w1", node="11")), (10.0, order(2, "reassign", worker="w1", node="11"))
    )
    (moved,) = only(events, WorkerAssigned)
    assert (moved.worker, moved.node) == ("w1", "11")
    assert desk.outcomes["o1"].startswith("worker w1 holds leaf 11; its unit u")
    assert desk.outcomes["o2"] == "worker w1 holds 11 already"
    place = events.index(moved)
    freed = events[place - 1]
    assert isinstance(freed, LeaseExpired) and freed.is_returned and not freed.rest_s
    later = [event for event in events[place:] if isinstance(event, UnitLeased) and event.worker == "w1"]
    assert all(event.node == "11" or event.is_adopted for event in later)
    assert any({"w1", "w3"} <= set(event.contributors) for event in only(events, NodeAveraged) if event.node == "11")
    assert campaign.finished == "every leaf has had its steps"
    assert_counted_once(campaign, ledger)
    assert fold(ledger.events()) == campaign


def test_the_holder_of_a_subtree_is_moved_into_it():
    """Its text is known to be of several leaves, so from now on it trains on what is nearest to its own."""
    campaign, events, ledger, _ = run_with((16.0, order(1, "reassign", worker="w0", node="00")), n=2, min_workers=2)
    assert only(events, WorkerAssigned)[0].node == "00"
    assert campaign.workers["w0"].is_mixed and campaign.workers["w0"].leaf_statistics
    assert campaign.finished == "every leaf has had its steps"
    assert_counted_once(campaign, ledger)


@pytest.mark.parametrize(
    ("at_s", "worker", "node", "said"),
    [
        (9.0, "nobody", "00", "no worker 'nobody'"),
        (0.5, "w1", "00", "the tree has no node 00: it was not set yet"),
        (9.0, "w1", "0", "node 0 is no leaf, and only leaves are given by hand; below it are 00, 01"),
        (9.0, "w1", "0000", "the tree has no node 0000: its leaves are 00, 01, 10, 11"),
        (9.0, "w0", "00", "worker w0 holds 00 already"),
    ],
)
def test_a_worker_that_cannot_be_moved(at_s, worker, node, said):
    _, events, _, desk = run_with((at_s, order(0, "pause")), (at_s, order(1, "reassign", worker=worker, node=node)),
                                  (at_s + 30, order(2, "resume")))  # fmt: skip
    assert desk.outcomes["o1"].startswith(said)
    assert not only(events, WorkerAssigned)


def test_a_worker_that_is_out_and_a_run_that_is_over():
    _, _, ledger, desk = run_with(
        (9.0, order(1, "revoke", worker="w1")),
        (10.0, order(2, "reassign", worker="w1", node="00")),
        (11.0, order(3, "finish")),
    )
    assert desk.outcomes["o2"].startswith("worker w1 gets no more units")
    _, _, _, desk = run_with((0.0, order(4, "reassign", worker="w2", node="00")), ledger=ledger)
    assert desk.outcomes["o4"].startswith("the run is over")


# --- bundles in the log ----------------------------------------------------------------------------------------------


def _described(ledger: MemoryLedger, of: int, **changes: Any) -> str:
    facts = {"sha256": "5" * 64, "bytes": 7, "n_events": of, "log_sha256": ledger.chain_at(of), "router_version": 0}
    return BundlePublished.model_validate(facts | changes).model_dump_json()


def test_a_bundle_of_this_log_is_recorded_once():
    _, _, ledger, _ = run_with((7.0, order(1, "finish")))
    said = _described(ledger, 3)
    campaign, events, _, desk = run_with(
        (0.0, order(2, "record", reason=said)), (0.0, order(3, "record", reason=said)), ledger=ledger
    )
    (found,) = only(events, BundlePublished)
    assert found.n_events == 3 and found.at_s >= 7.0
    assert campaign.bundles == ("5" * 64,)
    assert "is in the log already" in desk.outcomes["o3"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"log_sha256": "0" * 64}, "was made of another log"),
        ({"n_events": 10_000}, "is of a longer log"),
        ({"router_version": 99}, "is of a longer log"),
    ],
)
def test_a_bundle_of_another_log_is_not_recorded(changes, said):
    _, _, ledger, _ = run_with((7.0, order(1, "finish")))
    _, events, _, desk = run_with((0.0, order(2, "record", reason=_described(ledger, 3, **changes))), ledger=ledger)
    assert said in desk.outcomes["o2"]
    assert not only(events, BundlePublished)


def test_an_order_that_describes_no_bundle():
    _, events, _, desk = run_with((7.0, order(1, "record", reason="{}")))
    assert desk.outcomes["o1"] == "no bundle is described by this order"
    assert not only(events, BundlePublished)

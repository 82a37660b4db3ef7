"""Workers that cannot train a subtree, and workers that give a unit back: nobody is asked for what he cannot do."""

from collections.abc import Sequence

import pytest

from tests.federation.facts import FACTS, SETTINGS
from tests.federation.world import assert_counted_once, crowd, only, run_world
from tinylora.federation.campaign import fold
from tinylora.federation.events import LeaseExpired, TopologySet, UnitLeased, event_from_json, event_to_json
from tinylora.federation.ledger_memory import MemoryLedger
from tinylora.federation.loop import run_campaign
from tinylora.federation.ports import Reply
from tinylora.numerics import TorchNumerics
from tinylora.simulate import SimulatedTransport, SimulatedWorker, VirtualClock


@pytest.mark.parametrize(
    ("max_leaves", "leaves"),
    [(0, ("00", "01", "10", "11")), (1, ("",)), (2, ("0", "1")), (3, ("0", "1")), (4, ("00", "01", "10", "11"))],
)
def test_a_lone_worker_gets_a_tree_that_it_can_train(max_leaves: int, leaves: tuple[str, ...]) -> None:
    campaign, events, ledger = run_world(crowd(1, max_leaves=max_leaves), depth=2, min_workers=1)
    assert only(events, TopologySet)[0].leaves == campaign.leaves == leaves
    assert campaign.workers["w0"].max_leaves == max_leaves
    assert campaign.finished == "every leaf has had its steps"
    assert_counted_once(campaign, ledger)


@pytest.mark.parametrize("where", ["leaves", "path"])
def test_beside_others_only_its_own_part_of_the_tree_is_shallower(where: str) -> None:
    workers = [crowd(3, max_leaves=1)[0], *crowd(3)[1:]]
    campaign, events, ledger = run_world(workers, depth=2, min_workers=3, where=where)
    held: dict[str, set[int]] = {worker.name: set() for worker in workers}
    for lease in only(events, UnitLeased):
        if lease.kind == "train":
            held[lease.worker].add(len(campaign.leaves_below(lease.node)))
    assert held["w0"] == {1} and campaign.finished == "every leaf has had its steps"
    assert_counted_once(campaign, ledger)


def test_who_said_nothing_of_leaves_is_as_before() -> None:
    _, events, _ = run_world(crowd(2), depth=2, min_workers=2)
    assert {lease.node for lease in only(events, UnitLeased) if lease.kind == "train"} == {"0", "1"}


# --- units that are given back ---------------------------------------------------------------------------------------


class Returning(SimulatedTransport):
    """The first so many updates of one worker come back as units that it gives back."""

    who: str = "w0"
    n_left: int = 3

    def poll(self) -> Sequence[Reply]:
        return [self._given_back(reply) for reply in super().poll()]

    def _given_back(self, reply: Reply) -> Reply:
        if reply.worker != self.who or not self.n_left:
            return reply
        self.n_left -= 1
        return Reply(reply.worker, reply.unit_id, error="the owner needs the machine", is_returned=True)


def run_returning(workers: Sequence[SimulatedWorker]) -> tuple:
    ledger, clock = MemoryLedger(), VirtualClock(0.0)
    transport = Returning(workers, [worker.runner for worker in workers if worker.runner], clock)
    settings = SETTINGS.model_copy(update={"min_workers": len(workers)})
    campaign = run_campaign(
        ledger, transport, clock, run="r", settings=settings, base=FACTS, numerics=TorchNumerics(), poll_s=1e9
    )
    return campaign, tuple(ledger.events()), ledger


def test_a_unit_that_is_given_back_is_leased_again_at_once_and_held_against_nobody() -> None:
    campaign, events, ledger = run_returning(crowd(2))
    back = only(events, LeaseExpired)
    assert [event.is_returned for event in back] == [True] * 3
    for event in back:
        again = next(
            lease for lease in events[events.index(event) :] if isinstance(lease, UnitLeased) and lease.worker == "w0"
        )
        assert again.at_s == event.at_s, "no rest, no cooling down"
    worker = campaign.workers["w0"]
    assert (worker.misses, worker.rests_until_s, worker.refusal) == (0, 0.0, "")
    assert not campaign.late and campaign.finished == "every leaf has had its steps"
    assert_counted_once(campaign, ledger)


def test_what_was_given_back_is_not_awaited_any_more() -> None:
    _, events, _ = run_returning(crowd(2))
    at = next(number for number, event in enumerate(events) if isinstance(event, LeaseExpired))
    state = fold(events[: at + 1])
    assert state is not None and events[at].unit_id not in {**state.leases, **state.late}


def test_a_lease_that_ended_before_units_could_be_given_back_is_read() -> None:
    text = event_to_json(LeaseExpired(unit_id="u", reason="the deadline passed", at_s=1.0))
    old = event_from_json(text.replace('"is_returned":false,', ""))
    assert isinstance(old, LeaseExpired) and not old.is_returned

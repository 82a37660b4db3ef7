"""Long runs under a disk cap, on the real ledger: they stay under it, can be taken up, and forget whom they shall."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.federation.facts import FACTS, SETTINGS
from tests.federation.world import assert_counted_once, crowd, only
from tinylora.config import RunSettings
from tinylora.federation.campaign import Campaign
from tinylora.federation.events import BlobsPruned, Event, UpdateAccepted, WorkerErased
from tinylora.federation.loop import run_campaign
from tinylora.federation.ports import Order
from tinylora.ledger.sqlite import SqliteLedger
from tinylora.numerics import TorchNumerics
from tinylora.simulate import SimulatedTransport, VirtualClock

MIB = 2**20
CAP_MIB = 0.03
LONG = pytest.mark.parametrize("n_updates", [120, pytest.param(2000, marks=pytest.mark.slow)])


@dataclass
class Desk:
    """Orders that lie there once the run has come so far."""

    ledger: SqliteLedger
    after: int
    waiting: list[Order] = field(default_factory=list)

    def orders(self) -> Sequence[Order]:
        """Those that may be seen by now."""
        return tuple(self.waiting) if self.ledger.head()[0] >= self.after else ()

    def done(self, order: Order, outcome: str) -> None:
        """It is not seen again."""
        self.waiting.remove(order)


def drive(
    folder: Path, n_updates: int, *, until: float = math.inf, orders: Sequence[Order] = (), cap: float = CAP_MIB
) -> tuple[Campaign, int]:
    """Begin a run or take it up, to its end or to so many events; also the most bytes that its blobs ever took."""
    settings = SETTINGS.model_dump() | {"leaf_steps": n_updates * 5 // 2, "disk_cap_mib": cap, "router_period": 10}
    workers, most = crowd(3 if orders else 2), 0
    with SqliteLedger(folder) as ledger:
        past = ledger.events()
        clock = VirtualClock(max((getattr(event, "at_s", 0.0) for event in past), default=0.0))
        transport = SimulatedTransport(workers, [worker.runner for worker in workers if worker.runner], clock)

        def look(event: Event) -> None:
            nonlocal most
            most = max(most, ledger.stored_bytes())

        campaign = run_campaign(
            ledger, transport, clock, run="test", settings=RunSettings.model_validate(settings), base=FACTS,
            numerics=TorchNumerics(), desk=Desk(ledger, n_updates, list(orders)), on_event=look,
            stop=lambda: ledger.head()[0] >= until, poll_s=math.inf,
        )  # fmt: skip
    return campaign, most


def blobs_in(folder: Path) -> set[str]:
    return {file.name for file in (folder / "blobs").glob("*/*")}


@LONG
def test_a_long_run_stays_under_its_cap_and_goes_on_when_it_is_taken_up(tmp_path: Path, n_updates: int) -> None:
    free, capped = tmp_path / "free", tmp_path / "capped"
    expected, without_cap = drive(free, n_updates, cap=0.0)
    drive(capped, n_updates, until=n_updates)
    campaign, most = drive(capped, n_updates)
    assert most <= CAP_MIB * MIB < without_cap
    assert {top: node.blob for top, node in campaign.nodes.items()} == {
        top: node.blob for top, node in expected.nodes.items()
    }
    with SqliteLedger(capped) as ledger:
        events = ledger.events()
        assert len(only(events, UpdateAccepted)) >= n_updates
        assert only(events, BlobsPruned) and ledger.verify() == ()
        assert_counted_once(campaign, ledger)


@LONG
def test_who_is_erased_leaves_no_blob(tmp_path: Path, n_updates: int) -> None:
    orders = [Order("1", "revoke", worker="w2"), Order("2", "erase", worker="w2")]
    campaign, _ = drive(tmp_path, n_updates, orders=orders)
    assert campaign.finished == "every leaf has had its steps"
    with SqliteLedger(tmp_path) as ledger:
        events = ledger.events()
        accepted = only(events, UpdateAccepted)
        others = {event.blob for event in accepted if event.worker != "w2"}
        brought = {event.blob for event in accepted if event.worker == "w2"} - others
        assert brought and not brought & blobs_in(tmp_path)
        assert [event.worker for event in only(events, WorkerErased)] == ["w2"] and ledger.verify() == ()

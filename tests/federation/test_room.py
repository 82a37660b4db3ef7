"""A disk that is full, or a run at its cap: nothing is lost, nothing new is given out, and all goes on by itself."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.federation.facts import FACTS, SETTINGS
from tests.federation.test_take_up import _cut
from tests.federation.world import assert_counted_once, crowd, only, run_world
from tinylora.errors import DiskFull
from tinylora.federation.campaign import fold
from tinylora.federation.events import BlobsPruned, Event, UnitLeased, UpdateAccepted, UpdateRejected
from tinylora.federation.ledger_memory import MemoryLedger
from tinylora.federation.loop import FULL_S, run_campaign
from tinylora.federation.ports import Reply
from tinylora.federation.record import MIB
from tinylora.federation.retention import Stored, named, reachable
from tinylora.numerics import TorchNumerics
from tinylora.protocol.documents import sha256
from tinylora.release import make_bundle
from tinylora.simulate import SimulatedTransport, VirtualClock


class FullLedger(MemoryLedger):
    """A disk on which the writes with these numbers fail."""

    def __init__(self, fails: Sequence[int] = ()) -> None:
        super().__init__()
        self.fails, self.n_writes = set(fails), 0

    def _write(self) -> None:
        self.n_writes += 1
        if self.n_writes in self.fails:
            raise DiskFull("no space left on device")

    def append(self, events: Sequence[Event], now_s: float) -> None:
        self._write()
        super().append(events, now_s)

    def put_blob(self, data: bytes, *, sha256: str = "") -> str:
        self._write()
        return super().put_blob(data, sha256=sha256)

    def save_snapshot(self, n_events: int, text: str) -> None:
        self._write()
        super().save_snapshot(n_events, text)


def _run(ledger: MemoryLedger, n: int = 4, transport_of=SimulatedTransport, **changes: Any):
    settings = SETTINGS.model_copy(update={"depth": 2, "min_workers": n, "probes": 2, "leaf_steps": 10, **changes})
    workers, clock, said = crowd(n), VirtualClock(), []
    transport = transport_of(workers, [worker.runner for worker in workers if worker.runner], clock)
    campaign = run_campaign(
        ledger, transport, clock, run="test", settings=settings, base=FACTS, numerics=TorchNumerics(),
        warn=said.append, poll_s=1e9, patience_s=200.0,
    )  # fmt: skip
    return campaign, said


def test_no_single_write_that_fails_loses_anything():
    calm = FullLedger()
    expected, _ = _run(calm)
    tree = {top: node.blob for top, node in expected.nodes.items()}
    for number in range(2, calm.n_writes + 1, 17):
        ledger = FullLedger([number])
        campaign, said = _run(ledger)
        assert {top: node.blob for top, node in campaign.nodes.items()} == tree, number
        assert not only(ledger.events(), UpdateRejected)
        assert len(said) in (0, 2)  # a snapshot that finds no room is no trouble


def test_while_the_disk_is_full_nothing_is_given_out_and_then_all_goes_on():
    ledger = FullLedger(range(20, 60))
    campaign, said = _run(ledger)
    assert campaign.finished == "every leaf has had its steps"
    assert_counted_once(campaign, ledger)
    assert said == [
        "no unit is given out until there is room: no space left on device",
        "there is room again, the run goes on",
    ]
    times = sorted({lease.at_s for lease in only(ledger.events(), UnitLeased)})
    assert max(b - a for a, b in itertools.pairwise(times)) >= 30 * FULL_S


def test_replies_are_not_fetched_while_there_is_no_room():
    class Counting(SimulatedTransport):
        def poll(self):
            found = super().poll()
            polls.append(len(found))
            return found

    polls: list[int] = []
    ledger = FullLedger(range(12, 40))
    _run(ledger, transport_of=Counting)
    campaign = fold(ledger.events())
    assert campaign is not None and campaign.finished == "every leaf has had its steps"
    assert sum(polls) == len(only(ledger.events(), UpdateAccepted))


# --- the cap ---------------------------------------------------------------------------------------------------------


class _Watched(MemoryLedger):
    """Remembers how much was ever stored."""

    most = 0

    def put_blob(self, data: bytes, *, sha256: str = "") -> str:
        name = super().put_blob(data, sha256=sha256)
        self.most = max(self.most, self.stored_bytes())
        return name


def test_a_long_run_stays_under_its_cap_and_a_pruned_one_is_taken_up():
    long: dict[str, Any] = {"leaf_steps": 300, "unit_steps": 5, "depth": 1, "min_workers": 2}
    calm, events, kept = run_world(crowd(2), **long)
    cap = 12_000
    ledger = _Watched()
    campaign, _, _ = run_world(crowd(2), ledger=ledger, disk_cap_mib=cap / MIB, **long)
    assert kept.stored_bytes() > 3 * cap > 3 * ledger.most
    pruned = only(ledger.events(), BlobsPruned)
    assert pruned and all(event.blobs for event in pruned)
    assert {top: node.blob for top, node in campaign.nodes.items()} == {t: n.blob for t, n in calm.nodes.items()}
    assert ledger._blobs.keys() == Stored(ledger.events()).names
    assert make_bundle(campaign, ledger).nodes.keys() == {"0", "1"}
    n = ledger.events().index(pruned[len(pruned) // 2]) + 1
    half = MemoryLedger()
    half.append(ledger.events()[:n], 0.0)
    for blob in Stored(half.events()).names:  # what was pruned by then is not there
        half.put_blob(kept.get_blob(blob))
    again, _, _ = run_world(crowd(2), ledger=half, disk_cap_mib=cap / MIB, **long)
    assert {top: node.blob for top, node in again.nodes.items()} == {t: n.blob for t, n in calm.nodes.items()}
    assert len(events) < len(ledger.events())


def test_a_cap_that_is_too_small_is_told_and_loses_nothing():
    ledger = MemoryLedger()
    polls = iter(range(10**6))

    def run(cap_mib: float, n_looks: int):
        said: list[str] = []
        workers, clock = crowd(2), VirtualClock()
        transport = SimulatedTransport(workers, [worker.runner for worker in workers if worker.runner], clock)
        looks = iter(range(n_looks))
        campaign = run_campaign(
            ledger, transport, clock, run="test", settings=SETTINGS.model_copy(update={"disk_cap_mib": cap_mib}),
            base=FACTS, numerics=TorchNumerics(), warn=said.append, stop=lambda: next(looks, None) is None, poll_s=1e9,
        )  # fmt: skip
        return campaign, said

    campaign, said = run(0.001, 50)
    assert not campaign.finished and "raise it in run.toml" in said[0]
    assert next(polls) == 0
    campaign, said = run(1.0, 100_000)  # the cap may change, it says nothing about the run itself
    assert campaign.finished == "every leaf has had its steps"
    assert_counted_once(campaign, ledger)


def test_everything_reachable_is_enough_to_go_on():
    """At every point of a run all other blobs can be deleted, and it ends as it would have."""
    few: dict[str, Any] = {"depth": 1, "min_workers": 3, "leaf_steps": 10, "probes": 2, "where": "path"}
    calm, events, ledger = run_world(crowd(3), **few)
    assert isinstance(ledger, MemoryLedger)
    for n in range(2, len(events), 9):
        half = _cut(events, ledger, n)
        state = fold(events[:n])
        assert state is not None
        half.drop_blobs(sorted(half._blobs.keys() - reachable(state)))
        campaign, _, _ = run_world(crowd(3), ledger=half, **few)
        assert {top: node.blob for top, node in campaign.nodes.items()} == {t: k.blob for t, k in calm.nodes.items()}, n


def test_names_are_those_of_the_ledger():
    _, events, ledger = run_world(crowd(3), depth=1, min_workers=3, outer_momentum=0.5, outer_lr=0.7)
    assert isinstance(ledger, MemoryLedger)
    assert {blob for event in events for blob in named(event)} == ledger._blobs.keys()


# --- spooled payloads ------------------------------------------------------------------------------------------------


class _Spooling(SimulatedTransport):
    """Payloads come as files, as over the network."""

    folder: Path

    def poll(self):
        return [self._spooled(reply) for reply in super().poll()]

    def _spooled(self, reply: Reply) -> Reply:
        file = self.folder / f"{reply.worker}-{reply.unit_id}"
        file.write_bytes(reply.payload)
        return Reply(reply.worker, reply.unit_id, reply.update_json, file=file, error=reply.error)


class _Adopting(MemoryLedger):
    adopted = 0

    def adopt_blob(self, file: Path, sha256: str) -> str:
        self.adopted += 1
        return super().adopt_blob(file, sha256)


@pytest.mark.parametrize("is_spoiled", [False, True])
def test_spooled_payloads_are_taken_over_or_deleted(tmp_path, is_spoiled):
    _Spooling.folder = tmp_path
    expected, _ = _run(MemoryLedger())

    class Spoiling(_Spooling):
        def _spooled(self, reply: Reply) -> Reply:
            spooled = super()._spooled(reply)
            if is_spoiled and reply.unit_id == "u00000004" and spooled.file:
                spooled.file.write_bytes(b"something else")
            return spooled

    ledger = _Adopting()
    campaign, _ = _run(ledger, transport_of=Spoiling)
    assert list(tmp_path.iterdir()) == []
    assert ledger.adopted == len(only(ledger.events(), UpdateAccepted))
    rejected = only(ledger.events(), UpdateRejected)
    assert [event.code for event in rejected] == (["bad_hash"] if is_spoiled else [])
    if not is_spoiled:
        assert campaign.nodes == expected.nodes
    for event in only(ledger.events(), UpdateAccepted):
        assert sha256(ledger.get_blob(event.blob)) == event.blob


def test_a_spooled_payload_waits_on_the_disk_while_there_is_no_room(tmp_path):
    class Full(_Adopting):
        left = 3

        def adopt_blob(self, file: Path, sha256: str) -> str:
            assert file.exists()
            self.left -= 1
            if self.left in (0, 1):
                raise DiskFull("no space left on device")
            return super().adopt_blob(file, sha256)

    _Spooling.folder = tmp_path
    campaign, said = _run(Full(), transport_of=_Spooling)
    assert campaign.finished == "every leaf has had its steps"
    assert len(said) == 2
    assert list(tmp_path.iterdir()) == []

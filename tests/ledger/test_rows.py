"""The derived tables say what the events say, however they came to be written."""

from tempfile import TemporaryDirectory

from hypothesis import given, settings

from tests.ledger.histories import CONTENTS, EVENTS, HISTORIES, alive, write
from tinylora.federation.events import (
    Event,
    GatesSolved,
    LeaseExpired,
    UnitLeased,
    UpdateAccepted,
    UpdateProbed,
    UpdateRejected,
    WorkerErased,
    WorkerJoined,
    WorkerQuarantined,
    WorkerRevoked,
)
from tinylora.ledger.rows import Tables, fold_rows, key_of
from tinylora.ledger.sqlite import SqliteLedger
from tinylora.ledger.tables import DERIVED

SIZES = {name: len(data) for name, data in CONTENTS.items()}


def tables_of(ledger: SqliteLedger) -> Tables:
    return {name: {key_of(name, row): row for row in ledger.rows(name)} for name in DERIVED}


@settings(max_examples=8)
@given(HISTORIES)
def test_incremental_is_rebuilt_is_folded(history: list[list[Event]]) -> None:
    with TemporaryDirectory() as folder, SqliteLedger(folder) as ledger:
        events = write(ledger, history)
        incremental = tables_of(ledger)
        assert incremental == fold_rows(enumerate(events, 1), SIZES)
        ledger.rebuild()
        assert tables_of(ledger) == incremental
        assert ledger.verify() == ()


@settings(max_examples=8)
@given(HISTORIES)
def test_what_is_kept_is_what_lives(history: list[list[Event]]) -> None:
    """Reopened, the folder holds exactly the blobs that the events need, and knows their size."""
    with TemporaryDirectory() as folder:
        with SqliteLedger(folder) as ledger:
            events = write(ledger, history)
            live = alive(events)
            assert {row["sha256"] for row in ledger.rows("blob", state="live")} == live
        with SqliteLedger(folder) as again:
            assert again.stored_bytes() == sum(SIZES[name] for name in live)
            assert all(again.get_blob(name) == CONTENTS[name] for name in live)
            assert list(again.events()) == events


@given(EVENTS)
def test_a_history_changes_nothing_but_itself(event: Event) -> None:
    """Any event may come first: no mapping relies on a row that another event should have made."""
    fold_rows([(1, event)], SIZES)


# --- single facts ----------------------------------------------------------------------------------------------------


def leased(unit_id: str = "u0", worker: str = "w0") -> UnitLeased:
    return UnitLeased(
        unit_id=unit_id,
        worker=worker,
        kind="train",
        node="0",
        nonce="n",
        topology_version=1,
        router_version=1,
        node_version=0,
        n_steps=5,
        at_s=1.0,
        deadline_s=9.0,
    )


def accepted(unit_id: str = "u0", worker: str = "w0", *, is_pending: bool = False) -> UpdateAccepted:
    return UpdateAccepted(
        unit_id=unit_id,
        worker=worker,
        kind="train",
        node="0",
        node_version=0,
        router_version=1,
        shard_version="d" * 64,
        shard_tokens=100,
        tokens=40,
        n_steps=5,
        seconds=2.0,
        base_loads=1,
        is_pending=is_pending,
        blob=sorted(CONTENTS)[0],
        bytes_received=10,
        at_s=3.0,
    )


JOINED = WorkerJoined(worker="w0", name="ann", token="t")


def unit_after(*events: Event) -> dict:
    return fold_rows(enumerate([JOINED, leased(), *events], 1), SIZES)["unit"]["u0",]


def test_the_way_of_a_unit() -> None:
    probed = UpdateProbed(unit_id="u0", worker="w0", node="0", is_kept=True, n_votes=3)
    assert unit_after()["state"] == "leased"
    assert unit_after(accepted())["state"] == "accepted"
    assert unit_after(accepted())["accepted_event"] == 3
    assert unit_after(accepted(is_pending=True))["state"] == "pending"
    assert unit_after(accepted(is_pending=True), probed)["state"] == "accepted"
    assert unit_after(accepted(is_pending=True), probed.model_copy(update={"is_kept": False}))["state"] == "dropped"


def test_late_and_rejected() -> None:
    expired = LeaseExpired(unit_id="u0", reason="late", at_s=9.0)
    refused = UpdateRejected(unit_id="u0", worker="w0", code="bad_norm", reason="too far", at_s=2.0)
    assert (unit_after(expired)["state"], unit_after(expired)["reason"]) == ("expired", "late")
    assert (unit_after(expired, accepted())["state"], unit_after(expired, accepted())["reason"]) == ("accepted", "")
    assert (unit_after(refused)["state"], unit_after(refused)["code"]) == ("rejected", "bad_norm")


def test_strangers_and_repetitions_change_no_unit() -> None:
    stranger = UpdateRejected(unit_id="u0", worker="w1", code="foreign", reason="not yours", at_s=2.0)
    again = UpdateRejected(unit_id="u0", worker="w0", code="duplicate", reason="twice", at_s=4.0)
    forged = again.model_copy(update={"is_proven": False})
    assert unit_after(stranger) == unit_after(forged) == unit_after()
    assert unit_after(accepted(), again) == unit_after(accepted())


def test_a_dismissed_worker_lets_go_of_its_unit() -> None:
    quarantined = WorkerQuarantined(worker="w0", code="forgery", reason="signed by another key", at_s=4.0)
    revoked, erased = WorkerRevoked(worker="w0", reason="left", at_s=5.0), WorkerErased(worker="w0", at_s=6.0)
    worker = fold_rows(enumerate([JOINED, leased(), accepted(), quarantined], 1), SIZES)["worker"]["w0",]
    assert (worker["standing"], worker["code"], worker["n_accepted"], worker["tokens"]) == (
        "quarantined",
        "forgery",
        1,
        40,
    )
    assert unit_after(quarantined)["state"] == unit_after(revoked)["state"] == "expired"
    folded = fold_rows(enumerate([JOINED, revoked, erased], 1), SIZES)
    assert folded["worker"]["w0",]["standing"] == "erased"


def test_a_blob_named_again_keeps_its_first_event() -> None:
    name = sorted(CONTENTS)[0]
    solved = GatesSolved(version=1, contributors=(), drift=1.0, blob=name)
    row = fold_rows(enumerate([JOINED, accepted(), solved], 1), SIZES)["blob"][name,]
    assert (row["first_event"], row["last_event"], row["bytes"]) == (2, 3, SIZES[name])

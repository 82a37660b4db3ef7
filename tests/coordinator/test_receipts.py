"""Receipts: one for each accepted update of one's own, the same each time, believed only with the run's signature."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message
from tinylora_coordinator.receipts import ReceiptOffice, receipt_routes

from tests.federation.facts import FACTS, SETTINGS
from tests.flower.helpers import make_unit, make_update
from tinylora.errors import ProtocolError, StorageError, TinyLoraError
from tinylora.federation.events import (
    Event,
    LeaseExpired,
    RunStarted,
    UnitLeased,
    UpdateAccepted,
    UpdateRejected,
    WorkerJoined,
)
from tinylora.flower.enrolment import RECEIPTS_PATH
from tinylora.flower.identity import Identity, new_identity
from tinylora.flower.outbox import FolderOutbox
from tinylora.flower.receipts import (
    FILE,
    NoReceipt,
    ReceiptBook,
    ReceiptCollector,
    ReceiptDesk,
    ReceiptsAnswer,
    read_receipts,
)
from tinylora.ledger.sqlite import SqliteLedger
from tinylora.protocol.documents import Receipt
from tinylora.protocol.envelope import sign_receipt, verify_receipt

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw().hex()
MINE, OTHER = new_identity(), new_identity()


def unit(number: int, worker: str, blob: str | None) -> list[Event]:
    """A leased unit, accepted if there is a blob."""
    unit_id = f"u{number}"
    leased = UnitLeased(
        unit_id=unit_id, worker=worker, kind="train", node="", nonce="n", topology_version=0, router_version=0,
        node_version=0, at_s=0.0, deadline_s=1.0,
    )  # fmt: skip
    if blob is None:
        return [leased]
    accepted = UpdateAccepted(
        unit_id=unit_id, worker=worker, kind="train", node="", node_version=0, router_version=0,
        shard_version="d" * 64, shard_tokens=1, tokens=100 + number, n_steps=5, seconds=1.0, base_loads=1, blob=blob,
        bytes_received=1, at_s=0.5,
    )  # fmt: skip
    return [leased, accepted]


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> ReceiptOffice:
    root = tmp_path_factory.mktemp("run")
    with SqliteLedger(root) as ledger:
        blob = ledger.put_blob(b"payload")
        joined = [WorkerJoined(worker=who.worker, name="") for who in (MINE, OTHER)]
        parts = [unit(1, MINE.worker, blob), unit(2, OTHER.worker, blob), unit(3, MINE.worker, None)]
        ledger.append([RunStarted(run="a-run", settings=SETTINGS, base=FACTS), *joined, *parts[0]], 0.0)
        ledger.append([event for part in [*parts[1:], unit(4, MINE.worker, blob)] for event in part], 0.0)
    return ReceiptOffice(root, "a-run", KEY)


@pytest.fixture
def closing(tmp_path: Path) -> ReceiptOffice:
    """A run in which something else became of each unit than an accepted update."""
    start = RunStarted(run="a-run", settings=SETTINGS, base=FACTS)
    with SqliteLedger(tmp_path) as ledger:
        ledger.append([start, WorkerJoined(worker=MINE.worker, name="")], 0.0)
        ledger.append([event for number in range(4) for event in unit(number, MINE.worker, None)], 0.0)
        ledger.append([rejected("u1", "not_finite"), expired("u2"), expired("u3"), rejected("u3", "lease_closed")], 0.0)
    return ReceiptOffice(tmp_path, "a-run", KEY)


def rejected(unit_id: str, code: str) -> UpdateRejected:
    return UpdateRejected(unit_id=unit_id, worker=MINE.worker, code=code, reason=f"because of {code}", at_s=2.0)


def expired(unit_id: str) -> LeaseExpired:
    return LeaseExpired(unit_id=unit_id, reason="the deadline passed", at_s=2.0)


def units_of(receipts: Sequence[Receipt]) -> list[str]:
    return [receipt.unit_id for receipt in receipts]


# --- making -----------------------------------------------------------------------------------------------------------


def test_each_accepted_update_of_ones_own_has_a_receipt(office: ReceiptOffice) -> None:
    assert units_of(office.receipts(MINE.worker, ())) == ["u1", "u4"]
    assert units_of(office.receipts(MINE.worker, ["u4", "u1", "u2", "u3", "u9", "u4"])) == ["u1", "u4"]
    assert units_of(office.receipts(OTHER.worker, ["u1", "u2"])) == ["u2"]
    assert office.receipts("w-nobody", ()) == ()


def test_a_receipt_says_what_the_log_says(office: ReceiptOffice) -> None:
    (receipt,) = office.receipts(MINE.worker, ["u1"])
    with SqliteLedger.open_readonly(office.root) as ledger:
        event = ledger.events()[receipt.event - 1]
        assert isinstance(event, UpdateAccepted) and ledger.chain_at(receipt.event) == receipt.log_sha256
    assert (receipt.unit_id, receipt.payload_sha256, receipt.tokens) == (event.unit_id, event.blob, event.tokens)
    assert (receipt.run, receipt.worker, receipt.n_steps) == ("a-run", MINE.worker, event.n_steps)


def test_the_same_update_has_the_same_receipt_each_time(office: ReceiptOffice) -> None:
    again = ReceiptOffice(office.root, office.run, office.key)
    assert office.receipts(MINE.worker, ()) == again.receipts(MINE.worker, ())


def test_a_run_that_has_not_begun_has_none(tmp_path: Path) -> None:
    assert ReceiptOffice(tmp_path, "r", KEY).receipts(MINE.worker, ()) == ()


def test_a_unit_that_will_have_no_receipt_is_told_with_its_code(office: ReceiptOffice, closing: ReceiptOffice) -> None:
    """Open units and accepted ones are not among them; what is another worker's is as unknown as what never was."""
    found = closing.refused(MINE.worker, ["u0", "u1", "u2", "u3", "u9", "u1"])
    assert [(told.unit_id, told.code) for told in found] == [
        ("u1", "not_finite"), ("u2", "expired"), ("u3", "lease_closed"), ("u9", "unknown")
    ]  # fmt: skip
    assert found[0].reason == "because of not_finite"
    others = office.refused(MINE.worker, ["u1", "u2", "u3"])
    assert [(told.unit_id, told.code) for told in others] == [("u2", "unknown")]
    assert closing.refused(MINE.worker, ()) == ReceiptOffice(closing.root / "none", "r", KEY).refused("w", ["u"]) == ()


# --- signatures -------------------------------------------------------------------------------------------------------


RECEIPT = sign_receipt(
    Receipt(run="r", unit_id="u", worker="w", kind="train", payload_sha256="a" * 64, event=1, log_sha256="b" * 64), KEY
)


@given(st.sampled_from(sorted(Receipt.model_fields.keys() - {"protocol", "signature"})))
def test_a_receipt_that_was_changed_is_no_receipt(name: str) -> None:
    verify_receipt(RECEIPT, PUBLIC)
    other = {"kind": "sketch", "node": "01", "payload_sha256": "c" * 64, "log_sha256": "c" * 64}.get(name)
    value = other or (9 if isinstance(getattr(RECEIPT, name), int) else "other")
    with pytest.raises(ProtocolError, match="was not made by the run's key"):
        verify_receipt(RECEIPT.model_copy(update={name: value}), PUBLIC)


@pytest.mark.parametrize(
    ("signature", "reason"), [("", "is missing"), ("zz", "was not made"), (RECEIPT.signature[:-2], "was not made")]
)
def test_a_signature_that_is_none_is_refused(signature: str, reason: str) -> None:
    with pytest.raises(ProtocolError, match=f"receipt of unit u: its signature {reason}"):
        verify_receipt(RECEIPT.model_copy(update={"signature": signature}), PUBLIC)


@pytest.mark.parametrize("key", ["", "00", "f" * 64, "x" * 64])
def test_another_run_key_believes_nothing(key: str) -> None:
    with pytest.raises(ProtocolError):
        verify_receipt(RECEIPT, key)


# --- the route --------------------------------------------------------------------------------------------------------


def post(office: ReceiptOffice, who: Identity | None, body: bytes) -> tuple[int, dict[str, Any]]:
    """What the route answers to a request that the door found signed by `who`."""
    sent: list[Message] = []

    async def admit(headers: object) -> bytes | None:
        return None if who is None else who.public_pem

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    async def ask() -> None:
        app = receipt_routes(office, admit)["POST", RECEIPTS_PATH]
        await app({"type": "http", "method": "POST", "headers": []}, receive, send)

    asyncio.run(ask())
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent))


def test_the_route_answers_each_worker_about_itself(office: ReceiptOffice) -> None:
    status, found = post(office, MINE, b'{"units": ["u1", "u2"]}')
    assert status == 200 and [receipt["unit_id"] for receipt in found["receipts"]] == ["u1"]
    assert [told["unit_id"] for told in found["refused"]] == ["u2"]
    assert post(office, None, b"{}")[0] == 401


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"units": 1}', b'{"units": ["../x"]}', b'{"more": 1}', json.dumps({"units": ["u"] * 257})],
)
def test_a_body_that_is_no_request_is_told_what_is_wrong(office: ReceiptOffice, body: bytes | str) -> None:
    status, found = post(office, MINE, body.encode() if isinstance(body, str) else body)
    assert status == 400 and found["error"] == "malformed" and "receipts request: field" in found["reason"]


# --- keeping ----------------------------------------------------------------------------------------------------------


def receipts(*units: str) -> list[Receipt]:
    return [sign_receipt(RECEIPT.model_copy(update={"unit_id": unit}), KEY) for unit in units]


def test_receipts_are_kept_once_and_in_order(tmp_path: Path) -> None:
    book = ReceiptBook(tmp_path / "home")
    assert book.keep(receipts("a", "b")) == 2 and book.keep(receipts("b", "c")) == 1 and book.keep([]) == 0
    again = ReceiptBook(tmp_path / "home")
    assert units_of(read_receipts(tmp_path / "home")) == ["a", "b", "c"] and again.has("r", "c")
    assert again.keep(receipts("a", "d")) == 1


def test_half_a_line_of_a_crash_is_forgotten(tmp_path: Path) -> None:
    ReceiptBook(tmp_path).keep(receipts("a", "b"))
    whole = (tmp_path / FILE).read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / FILE).write_bytes(whole[:length])
        n_kept = whole[:length].count(b"\n")
        assert len(read_receipts(tmp_path)) == n_kept
    (tmp_path / FILE).write_bytes(whole[:-1])
    ReceiptBook(tmp_path).keep(receipts("c"))
    assert units_of(read_receipts(tmp_path)) == ["a", "c"]


def test_a_spoiled_line_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{}\n")
    with pytest.raises(StorageError, match=r"receipts\.jsonl: not readable"):
        read_receipts(tmp_path)


class Office(ReceiptDesk):
    """A desk within the process, which may be out of reach."""

    def __init__(self, known: dict[str, Receipt]) -> None:
        object.__setattr__(self, "known", known)
        object.__setattr__(self, "asked", [])

    def ask(self, units: Sequence[str] = (), *, timeout_s: float = 5.0) -> ReceiptsAnswer:
        known, asked = vars(self)["known"], vars(self)["asked"]
        asked.append(tuple(units))
        if known is None:
            raise TinyLoraError("out of reach")
        closed = vars(self).get("closed", {})
        return ReceiptsAnswer(
            receipts=tuple(known[unit] for unit in units or known if unit in known),
            refused=tuple(NoReceipt(unit_id=unit, code=closed[unit]) for unit in units if unit in closed),
        )


def test_what_is_missing_is_asked_for_at_the_start_and_at_the_end(tmp_path: Path) -> None:
    known = {receipt.unit_id: receipt for receipt in receipts("old")}
    desk, log = Office(known), []
    with ReceiptCollector(desk, ReceiptBook(tmp_path), log=log.append, period_s=3600.0) as collector:
        assert units_of(read_receipts(tmp_path)) == ["old"]  # of a process before
        collector.expect("new")
        known |= {receipt.unit_id: receipt for receipt in receipts("new")}
    assert units_of(read_receipts(tmp_path)) == ["old", "new"] and log == []
    assert vars(desk)["asked"] == [(), ("new",)]


def test_a_desk_out_of_reach_is_told_once_and_stops_no_work(tmp_path: Path) -> None:
    desk, log = Office({}), []
    object.__setattr__(desk, "known", None)
    with ReceiptCollector(desk, ReceiptBook(tmp_path), log=log.append, period_s=3600.0) as collector:
        collector.expect("u")
    assert log == ["no receipts now: out of reach"]


# --- the outbox -------------------------------------------------------------------------------------------------------


def filled(home: Path, *, done: str = "", sent: str = "", under_way: str = "") -> FolderOutbox:
    """An outbox with these units."""
    outbox = FolderOutbox(home)
    for unit_id in (*done.split(), *sent.split(), *under_way.split()):
        unit = make_unit(unit_id, b"")
        outbox.take(unit, b"", b"")
        if unit_id not in under_way.split():
            outbox.finish(unit_id, make_update(unit, "w", b""), b"")
        if unit_id in sent.split():
            outbox.mark_sent(unit_id)
    return outbox


def left(outbox: FolderOutbox) -> list[str]:
    return sorted(kept.unit.unit_id for kept in outbox.kept())


def test_the_outbox_is_emptied_by_receipts_and_refusals_and_by_nothing_else(tmp_path: Path) -> None:
    outbox = filled(tmp_path, done="late unsent", sent="accepted refused open expired", under_way="busy lost")
    desk, log = Office({receipt.unit_id: receipt for receipt in receipts("accepted")}), []
    closed = {"refused": "not_finite", "late": "expired", "expired": "expired", "lost": "unknown"}
    object.__setattr__(desk, "closed", closed)
    book = ReceiptBook(tmp_path)
    with ReceiptCollector(desk, book, log=log.append, outbox=outbox, period_s=3600.0, patience=4) as collector:
        assert left(outbox) == ["busy", "expired", "late", "open", "unsent"]
        assert units_of(read_receipts(tmp_path)) == ["accepted"]
        for _ in range(5):
            collector._look_for_missing()
    assert left(outbox) == ["busy", "late", "open", "unsent"], "what is not sent yet may still count"
    assert sorted(line.split()[1] for line in log) == ["expired", "lost", "refused"]


def test_what_is_in_the_outbox_is_asked_for_without_an_end(tmp_path: Path) -> None:
    desk, outbox = Office({}), filled(tmp_path, sent="u")
    book = ReceiptBook(tmp_path)
    with ReceiptCollector(desk, book, log=print, outbox=outbox, period_s=3600.0, patience=2) as collector:
        for _ in range(9):
            collector._look_for_missing()
    assert vars(desk)["asked"][1:] == [("u",)] * 11 and left(outbox) == ["u"]


def test_a_unit_under_way_is_dropped_at_the_start_alone(tmp_path: Path) -> None:
    """Later somebody is at work in its folder."""
    desk, outbox = Office({}), filled(tmp_path, under_way="u")
    with ReceiptCollector(desk, ReceiptBook(tmp_path), log=print, outbox=outbox, period_s=3600.0) as collector:
        object.__setattr__(desk, "closed", {"u": "expired"})
        collector._look_for_missing()
    assert left(outbox) == ["u"]


def test_while_the_desk_is_out_of_reach_everything_stays(tmp_path: Path) -> None:
    desk, log, outbox = Office({}), [], filled(tmp_path, sent="u", under_way="v")
    object.__setattr__(desk, "known", None)
    with ReceiptCollector(desk, ReceiptBook(tmp_path), log=log.append, outbox=outbox, period_s=3600.0):
        assert left(outbox) == ["u", "v"]
    assert left(outbox) == ["u", "v"] and log == ["no receipts now: out of reach"]

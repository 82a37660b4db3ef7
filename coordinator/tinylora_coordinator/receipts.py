"""Receipts: the run's signed word that an update was accepted, made from the ledger whenever its worker asks.

Nothing is stored: the same event gives the same receipt, signature included, as often as it is asked for.
"""

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from tinylora.errors import StorageError
from tinylora.flower.enrolment import RECEIPTS_PATH
from tinylora.flower.identity import worker_of
from tinylora.flower.link import PublicRoutes
from tinylora.flower.receipts import MAX_UNITS, NoReceipt, ReceiptsAnswer, ReceiptsRequest
from tinylora.ledger.sqlite import FILE, SqliteLedger
from tinylora.protocol.documents import Receipt
from tinylora.protocol.envelope import sign_receipt

Admit: TypeAlias = Callable[[Collection[tuple[bytes, bytes]]], Awaitable[bytes | None]]
"""Headers to the public key (PEM) of the worker who signed them, or None for a stranger."""


@dataclass(frozen=True)
class ReceiptOffice:
    """Makes receipts for one run.

    Attributes:
        root: The run's folder; its ledger is only read.
        run: The run's name in documents.
        key: The run's.
    """

    root: Path
    run: str
    key: Ed25519PrivateKey

    def receipts(self, worker: str, units: Sequence[str]) -> tuple[Receipt, ...]:
        """Receipts of a worker's accepted updates, in the order of the log; of its latest where no units are named.

        Raises:
            StorageError: The ledger cannot be read.
        """
        if not (self.root / FILE).exists():
            return ()
        with SqliteLedger.open_readonly(self.root) as ledger:
            if units:
                rows = [
                    row for unit in dict.fromkeys(units) for row in ledger.rows("unit", unit_id=unit, worker=worker)
                ]
            else:
                rows = ledger.rows("unit", worker=worker)
            accepted = [row for row in rows if row["accepted_event"] is not None]
            accepted.sort(key=lambda row: int(row["accepted_event"] or 0))
            return tuple(self._receipt(row, ledger.chain_at) for row in accepted[-MAX_UNITS:])

    def refused(self, worker: str, units: Sequence[str]) -> tuple[NoReceipt, ...]:
        """Those of a worker's units that are closed without a receipt, and why.

        Raises:
            StorageError: The ledger cannot be read.
        """
        if not units or not (self.root / FILE).exists():
            return ()
        with SqliteLedger.open_readonly(self.root) as ledger:
            rows = {unit: ledger.rows("unit", unit_id=unit, worker=worker) for unit in units}
        found = {unit: next(iter(row), None) for unit, row in rows.items()}
        return tuple(told for unit, row in found.items() if (told := _why_not(unit, row)) is not None)

    def _receipt(self, row: Any, chain_at: Callable[[int], str]) -> Receipt:
        event = int(row["accepted_event"])
        receipt = Receipt(
            run=self.run,
            unit_id=row["unit_id"],
            worker=row["worker"],
            kind=row["kind"],
            node=row["node"],
            n_steps=row["n_steps"],
            tokens=row["tokens"],
            payload_sha256=row["blob"],
            event=event,
            log_sha256=chain_at(event),
        )
        return sign_receipt(receipt, self.key)


def _why_not(unit: str, row: Any | None) -> NoReceipt | None:
    """Why a unit will have no receipt; None where it has one, or may come to have one."""
    if row is None:
        return NoReceipt(unit_id=unit, code="unknown", reason="the run does not know this unit as yours")
    if row["accepted_event"] is not None or row["state"] == "leased":
        return None
    code = row["code"] if row["state"] == "rejected" else row["state"]
    return NoReceipt(unit_id=unit, code=code[:128], reason=row["reason"][:1000])


def receipt_routes(office: ReceiptOffice, admit: Admit) -> PublicRoutes:
    """The receipts route for the front door; it answers only to workers, each about its own updates."""

    async def tinylora_receipts(scope: Scope, receive: Receive, send: Send) -> None:
        public_pem = await admit(scope["headers"])
        if public_pem is None:
            refusal = {"error": "signature", "reason": "no worker of this run signed this request, or not now"}
            await JSONResponse(refusal, 401)(scope, receive, send)
            return
        body = await Request(scope, receive).body()
        status, document = await run_in_threadpool(_answer, office, worker_of(public_pem), body)
        await JSONResponse(document, status)(scope, receive, send)

    return {("POST", RECEIPTS_PATH): tinylora_receipts}


def _answer(office: ReceiptOffice, worker: str, body: bytes) -> tuple[int, dict[str, Any]]:
    try:
        units = ReceiptsRequest.model_validate_json(body).units
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"receipts request: field {'.'.join(map(str, first['loc']))}: {first['msg']}"
        return 400, {"error": "malformed", "reason": reason}
    try:
        found = ReceiptsAnswer(receipts=office.receipts(worker, units), refused=office.refused(worker, units))
    except StorageError:
        return 503, {"error": "storage", "reason": "the ledger cannot be read now; try again"}
    return 200, found.model_dump(mode="json")

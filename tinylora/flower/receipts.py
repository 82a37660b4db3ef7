"""Receipts, worker's side: the run's signed word for each accepted update, asked for and kept.

    home/receipts.jsonl    one receipt a line, on disk before it counts as kept

An update is accepted some time after it was sent, so receipts are asked for beside the work, and once more at the end.
What is missing after a crash is asked for at the next start: a question without units means the latest ones.
"""

import os
import threading
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tinylora.errors import Explanation, NetworkError, ProtocolError, RefusedError, StorageError, TinyLoraError
from tinylora.failpoints import around, reach
from tinylora.flower.compat.fleet import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    now,
)
from tinylora.flower.enrolment import RECEIPTS_PATH
from tinylora.flower.identity import Identity
from tinylora.flower.meter import Meter, unmetered
from tinylora.flower.outbox import Kept, Outbox
from tinylora.flower.reach import Address, Trust, ask, verify_by
from tinylora.flower.texts import printable
from tinylora.protocol.documents import Name, Receipt
from tinylora.protocol.envelope import verify_receipt

FILE = "receipts.jsonl"
MAX_UNITS = 256
"""In one question, and in one answer."""
around("worker.receipts.append")


class ReceiptsRequest(BaseModel):
    """Which units a worker asks for; none named means its latest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    units: tuple[Name, ...] = Field(default=(), max_length=MAX_UNITS)


class NoReceipt(BaseModel):
    """A unit that was asked for, and why there is no receipt for it."""

    model_config = ConfigDict(frozen=True)

    unit_id: Name
    code: Annotated[str, Field(max_length=128)]
    """Why the update was refused; `expired`: the unit was taken back, and its update has not come or was of no use any
    more; `unknown`: no such unit was ever given to this worker."""
    reason: Annotated[str, Field(max_length=1000)] = ""


NO_RECEIPT: Mapping[str, Explanation] = {
    "unknown": Explanation(
        "The run never gave this unit to this worker.",
        "Nothing to do: the worker drops it. It comes of a run that was set up anew, or of a home that was copied.",
    ),
    "expired": Explanation(
        "The unit was taken back: its deadline passed, the worker left, or the operator released it.",
        "Nothing to do. An update that is on its way may count yet, so the worker asks some more times before it "
        "drops it.",
    ),
}
"""Why a unit has no receipt, besides the codes of refused updates."""


class ReceiptsAnswer(BaseModel):
    """Receipts of those units that were accepted, in the order of the run's log."""

    model_config = ConfigDict(frozen=True)

    receipts: tuple[Receipt, ...] = Field(max_length=MAX_UNITS)
    refused: tuple[NoReceipt, ...] = Field(default=(), max_length=MAX_UNITS)
    """Of the units that were asked for by name, those that will never have one, as far as the run knows. What is in
    neither list is under way."""


# --- asking ---------------------------------------------------------------------------------------------------------


def signed_headers(identity: Identity, clock_offset_s: float) -> dict[str, str]:
    """The three headers by which the coordinator knows a worker: its key, the time, a signature over it."""
    timestamp = (now() + timedelta(seconds=clock_offset_s)).isoformat()
    return {
        FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(identity.public_pem).decode("ascii"),
        TIMESTAMP_HEADER: timestamp,
        FLEET_HTTP_SIGNATURE_HEADER: b64encode(identity.sign(timestamp.encode("ascii"))).decode("ascii"),
    }


@dataclass(frozen=True)
class ReceiptDesk:
    """Where a worker asks for its receipts."""

    address: Address
    trust: Trust
    identity: Identity
    run_key: str
    """As pinned when the worker joined."""
    clock_offset_s: float = 0.0
    meter: Meter = unmetered

    def ask(self, units: Sequence[str] = (), *, timeout_s: float = 5.0) -> ReceiptsAnswer:
        """What the coordinator says of these units; each receipt is checked against the run's key.

        Raises:
            NetworkError: Nobody answers, or not as a coordinator.
            RefusedError: It does not know this worker.
            ProtocolError: A receipt is not signed by the run, or is another worker's.
        """
        request = ReceiptsRequest(units=tuple(units)[:MAX_UNITS])
        response = ask(
            self.address,
            "POST",
            RECEIPTS_PATH,
            verify=verify_by(self.address, self.trust),
            content=request.model_dump_json(),
            headers=signed_headers(self.identity, self.clock_offset_s),
            timeout_s=timeout_s,
            meter=self.meter,
        )
        if response.status_code == httpx.codes.UNAUTHORIZED:
            raise RefusedError(f"{self.address.url()}: the coordinator does not know this worker")
        try:
            found = ReceiptsAnswer.model_validate_json(response.content)
        except ValidationError:
            raise NetworkError(f"{self.address.url()}: gives no receipts (HTTP {response.status_code})") from None
        for receipt in found.receipts:
            verify_receipt(receipt, self.run_key)
            if receipt.worker != self.identity.worker:
                raise ProtocolError(f"receipt of unit {receipt.unit_id}: is made out to {receipt.worker}")
        return found


# --- keeping --------------------------------------------------------------------------------------------------------


@dataclass
class ReceiptBook:
    """Receipts on disk, each once.

    A coordinator that was restored from a backup has forgotten some units, and gives their numbers out again. Then a
    unit has two receipts, and the later one holds.
    """

    home: Path
    _known: dict[tuple[str, str], Receipt] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read what is there."""
        for receipt in read_receipts(self.home):
            self._known[receipt.run, receipt.unit_id] = receipt

    def has(self, run: str, unit_id: str) -> bool:
        """Whether this unit's receipt is here."""
        return (run, unit_id) in self._known

    def keep(self, receipts: Sequence[Receipt]) -> int:
        """Write those that are new, on disk when the call returns; tells how many.

        Raises:
            StorageError: The file cannot be written; what was there stays.
        """
        fresh = {(receipt.run, receipt.unit_id): receipt for receipt in receipts}
        fresh = {key: receipt for key, receipt in fresh.items() if self._known.get(key) != receipt}
        if not fresh:
            return 0
        file = self.home / FILE
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            _append(file, "".join(f"{receipt.to_json()}\n" for receipt in fresh.values()).encode())
        except OSError as error:
            raise StorageError(
                f"{file}: {error.strerror or error}; free some space, or choose another --home"
            ) from None
        self._known |= fresh
        return len(fresh)


def _append(file: Path, lines: bytes) -> None:
    """Add whole lines, on disk when the call returns; what a crash left of a line goes first."""
    reach("worker.receipts.append.before")
    with file.open("ab") as out:
        out.truncate(_whole(file.read_bytes()))
        out.write(lines)
        out.flush()
        os.fsync(out.fileno())
    reach("worker.receipts.append.after")


def _whole(data: bytes) -> int:
    """Length of the complete lines."""
    return data.rfind(b"\n") + 1


def read_receipts(home: Path) -> list[Receipt]:
    """The receipts kept in `home`, oldest first; half a line at the end, of a crash, does not count.

    Raises:
        StorageError: The file is not readable, or a line of it is no receipt.
    """
    file = home / FILE
    if not file.exists():
        return []
    try:
        data = file.read_bytes()
        return [Receipt.from_json(line) for line in data[: _whole(data)].decode().splitlines()]
    except (OSError, UnicodeDecodeError, ProtocolError) as error:
        raise StorageError(f"{file}: not readable: {error}; move it away") from None


class ReceiptCollector:
    """Asks for the receipts of finished units beside the work, and empties the outbox of those that are settled.

    Args:
        desk: Where.
        book: Keeps them.
        log: Takes one line for people.
        outbox: Units that are here until their receipt is in the book, or none will come.
        period_s: Seconds between two questions while something is missing.
        patience: Questions after which a unit's receipt is not expected any more. An update in the outbox is asked for
            until the coordinator says what became of it; so often it may say that the unit was taken back.
    """

    def __init__(
        self,
        desk: ReceiptDesk,
        book: ReceiptBook,
        *,
        log: Callable[[str], None],
        outbox: Outbox | None = None,
        period_s: float = 5.0,
        patience: int = 120,
    ) -> None:
        self._desk, self._book, self._log, self._outbox = desk, book, log, outbox
        self._period_s, self._patience = period_s, patience
        self._missing: dict[str, int] = {}
        self._taken_back: Counter[str] = Counter()
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._said = ""
        self._thread = threading.Thread(target=self._collect, name="receipts", daemon=True)

    def expect(self, unit_id: str) -> None:
        """An update of this unit goes out now. What is in the outbox need not be told."""
        with self._lock:
            self._missing[unit_id] = 0

    def __enter__(self) -> "ReceiptCollector":
        """Begin, with what an earlier process may have missed, and forget units under way that nobody wants any more.

        Do so before anybody works on them.
        """
        self._look(())
        kept = self._kept()
        if kept:
            self._look(kept, is_start=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ask once more, and end."""
        self._stop.set()
        self._thread.join(6.0)
        self._look_for_missing()

    def _collect(self) -> None:
        while not self._stop.wait(self._period_s):
            self._look_for_missing()

    def _look_for_missing(self) -> None:
        with self._lock:
            self._missing = {unit: n + 1 for unit, n in self._missing.items() if n < self._patience}
            units = list(self._missing)
        done = [unit_id for unit_id, kept in self._kept().items() if kept.update is not None]
        units = list(dict.fromkeys([*done, *units]))[:MAX_UNITS]
        if units:
            self._look(units)

    def _kept(self) -> dict[str, Kept]:
        if self._outbox is None:
            return {}
        with self._told():
            return {kept.unit.unit_id: kept for kept in self._outbox.kept()}
        return {}

    def _look(self, units: Collection[str], *, is_start: bool = False) -> None:
        with self._told():  # receipts are no reason to stop working
            found = self._desk.ask(tuple(units))
            self._book.keep(found.receipts)
            with self._lock:
                for receipt in found.receipts:
                    self._missing.pop(receipt.unit_id, None)
            self._empty(found, is_start=is_start)

    def _empty(self, found: ReceiptsAnswer, *, is_start: bool) -> None:
        """The receipt is on disk by now: what it is for need not be."""
        if self._outbox is None:
            return
        kept = self._kept()
        for receipt in found.receipts:
            if receipt.unit_id in kept:
                self._outbox.settle(receipt.unit_id)
        for told in found.refused:
            if told.unit_id in kept and self._is_lost(told, kept[told.unit_id], is_start=is_start):
                self._outbox.drop(told.unit_id)
                self._log(f"unit {told.unit_id} does not count: {printable(told.reason or told.code, at_most=300)}")

    def _is_lost(self, told: NoReceipt, kept: Kept, *, is_start: bool) -> bool:
        """Whether nothing more will come of a unit.

        One that was taken back is not gone on with. But if it is done, its update may count yet, and be on its way.
        """
        if kept.update is None:
            return is_start
        if told.code not in ("expired", "unknown"):
            return True
        self._taken_back[told.unit_id] += kept.is_sent
        return self._taken_back[told.unit_id] >= self._patience

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What goes wrong is told, once."""
        try:
            yield
        except TinyLoraError as error:
            if str(error) != self._said:
                self._log(f"no receipts now: {error}")
            self._said = str(error)

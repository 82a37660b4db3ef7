"""A coordinator's loop on a real ledger in a folder, two workers with keys, and what is in the folder."""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.federation.facts import FACTS, SETTINGS
from tests.federation.world import FakeRunner
from tinylora.federation.events import Event, RunStarted
from tinylora.federation.loop import Rounds
from tinylora.federation.ports import Reply, WorkerInfo
from tinylora.ledger.sqlite import SqliteLedger
from tinylora.numerics import TorchNumerics
from tinylora.protocol.documents import Update, WorkUnit
from tinylora.protocol.envelope import sign

KEYS = {name: ec.derive_private_key(number, ec.SECP384R1()) for number, name in enumerate(("w0", "w1"), start=7)}

TIMES = {"since_s": 0.0, "patience_s": 1e9, "rejoin_s": 0.0}


def public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form)


@dataclass
class Desk:
    """The loop without time; `sent` is the latest unit of each worker."""

    folder: Path
    changes: dict[str, Any] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    sent: dict[str, tuple[WorkUnit, bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ledger = SqliteLedger(self.folder)
        self.rounds = Rounds(self.ledger, self, self, TorchNumerics(), on_event=self.events.append)
        settings = SETTINGS.model_copy(update=self.changes)
        self.rounds.open(RunStarted(run="test", settings=settings, base=FACTS))
        self.settle()

    def now(self) -> float:
        return 0.0

    def wait(self, seconds: float) -> None:
        raise AssertionError(f"nothing to do for {seconds} s")

    def workers(self) -> list[WorkerInfo]:
        return [WorkerInfo(name, name, public_pem(KEYS[name])) for name in sorted(KEYS)]

    def send(self, worker: str, unit: WorkUnit, payload: bytes) -> None:
        self.sent[worker] = unit, payload

    def poll(self) -> list[Reply]:
        return []

    def settle(self) -> None:
        """Do all that can be done now."""
        while not self.rounds.step(self, TIMES, lambda: False):
            pass

    def go_on(self) -> None:
        """All workers answer honestly, and get their next units."""
        self.rounds.take_in([self.reply(name, *self.honest(name)) for name in sorted(KEYS)])
        self.settle()

    def honest(self, worker: str) -> tuple[Update, bytes]:
        unit, payload = self.sent[worker]
        return FakeRunner(worker, (float(worker[1:]), 0, 0, 0), has_histograms=True).run(unit, payload)

    def reply(self, worker: str, update: Update, payload: bytes, *, key: str = "") -> Reply:
        return Reply(worker, update.unit_id, sign(update, KEYS[key or worker]).to_json(), payload)

    def take(self, reply: Reply) -> list[Event]:
        """The events that a reply leads to."""
        n_before = len(self.events)
        self.rounds.take_in([reply])
        return self.events[n_before:]


def rows(folder: Path) -> dict[str, set[tuple[Any, ...]]]:
    """All rows of all tables of the ledger."""
    database = sqlite3.connect(f"file:{folder / 'ledger.sqlite'}?mode=ro", uri=True)
    try:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {table: set(database.execute(f'SELECT * FROM "{table}"')) for table in tables}
    finally:
        database.close()


def files(folder: Path) -> dict[str, int]:
    """Every file beside the ledger's own, with its length."""
    found = (file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("ledger."))
    return {str(file.relative_to(folder)): file.stat().st_size for file in found}


Maker = Callable[[Desk], Reply]

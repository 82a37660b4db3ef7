"""Finds what was altered: in the events, in the rows derived from them, in the blobs that they name."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from tinylora.errors import StorageError
from tinylora.federation.events import Event
from tinylora.ledger.blobs import BlobFolder
from tinylora.ledger.chain import START, find_faults
from tinylora.ledger.derived import read_rows
from tinylora.ledger.log import parse, raw_rows
from tinylora.ledger.rows import Key, Row, Tables, fold_rows, key_of
from tinylora.ledger.tables import DERIVED

CHUNK = 1 << 20
_UNREADABLE = (SQLAlchemyError, UnicodeDecodeError)
_EVENT_COLUMNS = ("accepted_event", "event", "last_event", "leased_event", "joined_event")


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong."""

    number: int
    """Of the event that it concerns; 0 where it is none in particular."""
    what: str

    def __str__(self) -> str:
        return f"event {self.number}: {self.what}" if self.number else self.what


@dataclass(frozen=True)
class LogCheck:
    """What a walk over the database has found."""

    faults: tuple[Fault, ...]
    blobs: Mapping[str, int]
    """Blobs that must be there, and the event that named each first."""


def check_log(connection: Connection) -> LogCheck:
    """Walk over the whole database, as it is in this transaction."""
    events, faults = _check_events(connection)
    faults = [*_check_pages(connection), *faults]
    if None in events.values():
        faults.append(Fault(0, "tables and blobs were not compared, because not every event can be read"))
        return LogCheck(tuple(faults), {})
    known = [(number, event) for number, event in events.items() if event is not None]
    try:
        stored: Tables = {name: {key_of(name, row): row for row in read_rows(connection, name)} for name in DERIVED}
    except _UNREADABLE as error:
        faults.append(Fault(0, f"tables cannot be read ({_said(error)}); rebuild them"))
        stored = fold_rows(known, {})
    sizes = {str(name): int(row["bytes"] or 0) for (name,), row in stored["blob"].items()}
    expected = fold_rows(known, sizes)
    faults.extend(fault for name in DERIVED for fault in _compare(name, expected[name], stored[name]))
    live = {key: row for key, row in expected["blob"].items() if row["state"] == "live"}
    return LogCheck(tuple(faults), {str(name): int(row["first_event"] or 0) for (name,), row in live.items()})


def check_blobs(blobs: BlobFolder, expected: Mapping[str, int]) -> Iterator[tuple[str, Fault]]:
    """Blobs that are missing or altered, by name."""
    for name, number in expected.items():
        file = blobs.file(name)
        try:
            found = _hash(file)
        except FileNotFoundError:
            yield name, Fault(number, f"its blob {name} is missing: restore {file} from a backup")
            continue
        if found != name:
            yield name, Fault(number, f"its blob {name} was altered, the sha256 of {file} is {found}")


def _check_pages(connection: Connection) -> Iterator[Fault]:
    """What SQLite says of its own file."""
    try:
        for line in connection.exec_driver_sql("PRAGMA integrity_check").scalars():
            if line != "ok":
                yield Fault(0, f"the database file is damaged: {line}")
    except _UNREADABLE as error:
        yield Fault(0, f"the database file is damaged: {_said(error)}")


def _check_events(connection: Connection) -> tuple[dict[int, Event | None], list[Fault]]:
    """Events by number, nothing for those that cannot be read, and all that is wrong with them."""
    events: dict[int, Event | None] = {}
    faults: list[Fault] = []
    number = 0
    try:
        for number, body, fault in find_faults(raw_rows(connection, 0), START, 1):
            if fault:
                faults.append(Fault(number, fault))
            try:
                events[number] = parse(number, body)
            except StorageError as error:
                events[number] = None
                faults.append(Fault(number, str(error)))
    except _UNREADABLE as error:
        events[number + 1] = None
        faults.append(Fault(number + 1, f"cannot be read, nor can those behind it ({_said(error)}); restore a backup"))
    return events, faults


def _compare(name: str, expected: Mapping[Key, Row], stored: Mapping[Key, Row]) -> Iterator[Fault]:
    for key in sorted(expected.keys() | stored.keys(), key=str):
        mine, theirs = expected.get(key), stored.get(key)
        if mine == theirs:
            continue
        where = f"table {name}, row {', '.join(map(str, key))}"
        if theirs is None or mine is None:
            what = "is missing" if theirs is None else "follows from no event"
        else:
            what = "; ".join(
                f"{column} is {theirs[column]!r}, the events say {mine[column]!r}"
                for column in mine
                if mine[column] != theirs[column]
            )
        yield Fault(_event_of(mine or theirs or {}), f"{where}: {what}")


def _event_of(row: Row) -> int:
    numbers = (row.get(column) for column in _EVENT_COLUMNS)
    return next((number for number in numbers if isinstance(number, int)), 0)


def _said(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error)


def _hash(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as source:
        while chunk := source.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()

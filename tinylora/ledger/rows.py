"""Which rows an event changes: a pure function, run for each event in the transaction that appends it.

No event is ever refused here: what a row says of an event that fits nothing is nothing. The same changes can be made in
dicts (`fold_rows`), which is how the tables are rebuilt and checked. Who changes this mapping adds a migration, because
tables are computed anew at each.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from tinylora.federation.events import (
    BlobsPruned,
    Event,
    GatesSolved,
    LeafSplit,
    LeaseExpired,
    LeavesMerged,
    NodeAveraged,
    UnitLeased,
    UpdateAccepted,
    UpdateProbed,
    UpdateRejected,
    WorkerErased,
    WorkerJoined,
    WorkerLost,
    WorkerQuarantined,
    WorkerReturned,
    WorkerRevoked,
)
from tinylora.ledger.tables import DERIVED, TableName

Value: TypeAlias = str | int | float | None
Row: TypeAlias = dict[str, Value]
Key: TypeAlias = tuple[Value, ...]
Tables: TypeAlias = dict[TableName, dict[Key, Row]]

_OPEN = ("leased", "expired")
"""States of a unit whose update may still come."""


@dataclass(frozen=True)
class Put:
    """A row is there with these values; where its key was taken, all but the columns in `keep` are overwritten."""

    table: TableName
    row: Mapping[str, Value]
    keep: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Change:
    """In all rows whose columns hold one of the values in `where`: columns are set, and counts added to."""

    table: TableName
    where: Mapping[str, tuple[Value, ...]]
    values: Mapping[str, Value] = field(default_factory=dict)
    add: Mapping[str, int] = field(default_factory=dict)


def named_blobs(event: Event) -> tuple[str, ...]:
    """Blobs that must be in the ledger before this event is."""
    match event:
        case NodeAveraged():
            return (event.blob, event.momentum) if event.momentum else (event.blob,)
        case UpdateAccepted() | GatesSolved() | LeafSplit() | LeavesMerged():
            return (event.blob,)
        case _:
            return ()


def dropped_blobs(event: Event) -> tuple[str, ...]:
    """Blobs that this event declares gone."""
    return event.blobs if isinstance(event, BlobsPruned | WorkerErased) else ()


def changes(number: int, event: Event, sizes: Mapping[str, int]) -> tuple[Put | Change, ...]:
    """What the event with this number does to the derived tables, in order.

    Args:
        number: Its place in the ledger, from 1.
        event: What happened.
        sizes: Bytes of the blobs that it names: the one thing that no event says. One that is not there has 0.
    """
    named = tuple(_blob(number, name, sizes.get(name, 0)) for name in named_blobs(event))
    return (*_of(number, event), *named)


def fold_rows(numbered: Iterable[tuple[int, Event]], sizes: Mapping[str, int]) -> Tables:
    """The derived tables after all these events, by primary key."""
    tables: Tables = {name: {} for name in DERIVED}
    for number, event in numbered:
        for change in changes(number, event, sizes):
            if isinstance(change, Put):
                _put(tables, change)
            else:
                _change(tables, change)
    return tables


def key_of(table: TableName, row: Mapping[str, Value]) -> Key:
    """Values of a row's primary key."""
    return tuple(row[name] for name in _KEYS[table])


_KEYS: dict[TableName, tuple[str, ...]] = {
    name: tuple(column.name for column in table.primary_key) for name, table in DERIVED.items()
}


def _of(number: int, event: Event) -> tuple[Put | Change, ...]:
    match event:
        case WorkerJoined():
            return (_joined(number, event),)
        case WorkerLost():
            return (
                _worker(event.worker, {"is_online": 0}),
                _release(event.worker, "the worker went offline", event.at_s),
            )
        case WorkerReturned():
            return (_worker(event.worker, {"is_online": 1}),)
        case WorkerQuarantined():
            return _dismissed(event.worker, "quarantined", event.code, event.reason, event.at_s)
        case WorkerRevoked():
            return _dismissed(event.worker, "revoked", "revoked", event.reason, event.at_s)
        case WorkerErased():
            return (_worker(event.worker, {"standing": "erased"}), *_gone(number, event.blobs, "erased"))
        case BlobsPruned():
            return _gone(number, event.blobs, "pruned")
        case UnitLeased():
            return (_leased(number, event),)
        case LeaseExpired():
            return (_unit(event.unit_id, ("leased",), state="expired", reason=event.reason, closed_at_s=event.at_s),)
        case UpdateAccepted():
            return _accepted(number, event)
        case UpdateProbed():
            state = "accepted" if event.is_kept else "dropped"
            return (_unit(event.unit_id, ("pending",), state=state, reason=event.reason),)
        case UpdateRejected():
            return _rejected(event)
        case NodeAveraged():
            return (_node(number, event, event.version, event.momentum, event.contributors),)
        case LeavesMerged():
            return (_node(number, event, event.node_version, "", ()),)
        case GatesSolved():
            return (_router(number, event),)
        case _:
            return ()


def _joined(number: int, event: WorkerJoined) -> Put:
    row = {
        "worker": event.worker,
        "name": event.name,
        "token": event.token,
        "joined_event": number,
        "joined_at_s": event.at_s,
        "is_online": 1,
        "standing": "good",
        "code": "",
        "reason": "",
        "n_accepted": 0,
        "n_rejected": 0,
        "tokens": 0,
    }
    return Put("worker", row)


def _leased(number: int, event: UnitLeased) -> Put:
    row = {
        "unit_id": event.unit_id,
        "worker": event.worker,
        "kind": event.kind,
        "node": event.node,
        "subject": event.subject,
        "leased_event": number,
        "leased_at_s": event.at_s,
        "deadline_s": event.deadline_s,
        "n_steps": event.n_steps,
        "state": "leased",
        "code": "",
        "reason": "",
        "accepted_event": None,
        "closed_at_s": None,
        "tokens": 0,
        "blob": "",
    }
    return Put("unit", row)


def _accepted(number: int, event: UpdateAccepted) -> tuple[Put | Change, ...]:
    return (
        _unit(
            event.unit_id,
            _OPEN,
            state="pending" if event.is_pending else "accepted",
            code="",
            reason="",
            accepted_event=number,
            closed_at_s=event.at_s,
            n_steps=event.n_steps,
            tokens=event.tokens,
            blob=event.blob,
        ),
        Change("worker", {"worker": (event.worker,)}, add={"n_accepted": 1, "tokens": event.tokens}),
    )


def _rejected(event: UpdateRejected) -> tuple[Put | Change, ...]:
    """What its own worker sent while it was open closes a unit; a stranger's update, or a second one, does not."""
    if not event.is_proven:
        return ()
    where = {"unit_id": (event.unit_id,), "worker": (event.worker,), "state": _OPEN}
    values = {"state": "rejected", "code": event.code, "reason": event.reason, "closed_at_s": event.at_s}
    return (
        Change("unit", where, values),
        Change("worker", {"worker": (event.worker,)}, add={"n_rejected": 1}),
    )


def _dismissed(worker: str, standing: str, code: str, reason: str, at_s: float) -> tuple[Put | Change, ...]:
    return (
        _worker(worker, {"standing": standing, "code": code, "reason": reason}),
        _release(worker, f"the worker was {standing}", at_s),
    )


def _node(
    number: int, event: NodeAveraged | LeavesMerged, version: int, momentum: str, contributors: tuple[str, ...]
) -> Put:
    row = {
        "node": event.node,
        "version": version,
        "event": number,
        "blob": event.blob,
        "momentum": momentum,
        "n_steps": event.n_steps,
        "contributors": _names(contributors),
    }
    return Put("node_version", row)


def _router(number: int, event: GatesSolved) -> Put:
    row = {
        "version": event.version,
        "event": number,
        "blob": event.blob,
        "drift": event.drift,
        "contributors": _names(event.contributors),
        "reason": event.reason,
    }
    return Put("router_version", row)


def _blob(number: int, name: str, n_bytes: int) -> Put:
    """A blob that is named again after it was dropped lives again."""
    row = {"sha256": name, "bytes": n_bytes, "first_event": number, "last_event": number, "state": "live"}
    return Put("blob", row, keep=frozenset({"first_event"}))


def _gone(number: int, names: Iterable[str], state: str) -> tuple[Change, ...]:
    return tuple(Change("blob", {"sha256": (name,)}, {"state": state, "last_event": number}) for name in names)


def _worker(worker: str, values: Mapping[str, Value]) -> Change:
    return Change("worker", {"worker": (worker,)}, values)


def _release(worker: str, reason: str, at_s: float) -> Change:
    """What the worker was at is free again."""
    values = {"state": "expired", "reason": reason, "closed_at_s": at_s}
    return Change("unit", {"worker": (worker,), "state": ("leased",)}, values)


def _unit(unit_id: str, states: tuple[str, ...], **values: Value) -> Change:
    return Change("unit", {"unit_id": (unit_id,), "state": states}, values)


def _names(names: Iterable[str]) -> str:
    return json.dumps(list(names), separators=(",", ":"))


# --- the same in dicts -----------------------------------------------------------------------------------------------


def _put(tables: Tables, put: Put) -> None:
    rows, key = tables[put.table], key_of(put.table, put.row)
    kept = {name: rows[key][name] for name in put.keep} if key in rows else {}
    rows[key] = {**put.row, **kept}


def _change(tables: Tables, change: Change) -> None:
    for row in _candidates(tables[change.table], change):
        if all(row[name] in allowed for name, allowed in change.where.items()):
            row.update(change.values)
            for name, amount in change.add.items():
                row[name] = (row[name] or 0) + amount  # type: ignore[operator]  (only counts are added to)


def _candidates(rows: dict[Key, Row], change: Change) -> Iterable[Row]:
    """The row with the key, where `where` names it, or all rows."""
    names = _KEYS[change.table]
    if all(len(change.where.get(name, ())) == 1 for name in names):
        row = rows.get(tuple(change.where[name][0] for name in names))
        return [] if row is None else [row]
    return rows.values()

"""The events in SQLite, as they lie there and as they are meant."""

from collections.abc import Collection, Iterator
from itertools import tee

from pydantic import ValidationError
from sqlalchemy import Connection, LargeBinary, cast, func, select

from tinylora.errors import StorageError
from tinylora.federation.events import Event, event_from_json
from tinylora.ledger import tables
from tinylora.ledger.chain import START, RawRow, find_faults

_columns = tables.event.c


def raw_rows(connection: Connection, after: int, at_most: int | None = None) -> Iterator[RawRow]:
    """Rows of events behind the first `after`, with texts as the bytes that lie on disk."""
    type_, body, chain = (cast(column, LargeBinary) for column in (_columns.type, _columns.body, _columns.chain))
    query = select(_columns.number, type_, body, _columns.at_s, chain).where(_columns.number > after)
    return (RawRow(*row) for row in connection.execute(query.order_by(_columns.number).limit(at_most)))


def read_events(connection: Connection, after: int) -> Iterator[Event]:
    """Events behind the first `after`, each compared with its hash.

    Raises:
        StorageError: One was altered, or cannot be read; those before it were given.
    """
    for _, _, event in read_timed(connection, after):
        yield event


def read_timed(connection: Connection, after: int, at_most: int | None = None) -> Iterator[tuple[int, float, Event]]:
    """The same with their numbers and the times of their rows, at most so many."""
    if after >= last_number(connection):
        return
    rows, again = tee(raw_rows(connection, after, at_most))
    faults = find_faults(again, chain_at(connection, after), after + 1)
    for row, (number, body, fault) in zip(rows, faults, strict=True):
        if fault or not isinstance(row.at_s, float):
            raise StorageError(f"event {number}: {fault}; see all of it with verify-log, then restore a backup")
        yield number, row.at_s, parse(number, body)


def read_types(
    connection: Connection, types: Collection[str], after: int, at_most: int
) -> tuple[int, tuple[tuple[int, Event], ...]]:
    """Numbered events of these types among the `at_most` rows behind the first `after`, and the last number looked at.

    They are not compared with their hashes.

    Raises:
        StorageError: One cannot be read.
    """
    until = min(after + at_most, last_number(connection))
    query = select(_columns.number, cast(_columns.body, LargeBinary)).where(
        _columns.number > after, _columns.number <= until, _columns.type.in_(sorted(types))
    )
    rows = connection.execute(query.order_by(_columns.number))
    return max(after, until), tuple((number, parse(number, body)) for number, body in rows)


def read_unchained(connection: Connection, after: int) -> Iterator[Event]:
    """The same of a file of format 1, which has no hashes."""
    query = select(_columns.number, cast(_columns.body, LargeBinary)).where(_columns.number > after)
    return (parse(number, body) for number, body in connection.execute(query.order_by(_columns.number)))


def parse(number: int, body: bytes) -> Event:
    """The event in a row.

    Raises:
        StorageError: There is none that this program knows.
    """
    try:
        return event_from_json(body.decode())
    except ValidationError as error:
        what = error.errors()[0]["msg"][:100]
    except UnicodeDecodeError as error:
        what = str(error)
    raise StorageError(f"event {number} cannot be read ({what}); it was altered, or needs a newer TinyLoRA")


def last_number(connection: Connection) -> int:
    """Number of the last event; 0 where there is none."""
    return connection.execute(select(func.max(_columns.number))).scalar_one() or 0


def chain_at(connection: Connection, number: int) -> str:
    """Hash over the first `number` events, hex.

    Raises:
        StorageError: There are fewer.
    """
    if number == 0:
        return START
    found = connection.execute(select(_columns.chain).where(_columns.number == number)).scalar_one_or_none()
    if found is None:
        raise StorageError(f"there is no event {number} in this ledger")
    return found

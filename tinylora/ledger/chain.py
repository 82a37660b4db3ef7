"""The hash chain: an event's hash covers the event and the hash before it, so no past can be rewritten unseen."""

import hashlib
import re
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_HASH = re.compile("[0-9a-f]{64}")

START = hashlib.sha256(b"tinylora ledger").hexdigest()
"""What the first event is chained to."""


class EventRow(NamedTuple):
    """One event as it lies on disk."""

    number: int
    """From 1, without gaps."""
    type: str
    body: str
    """Canonical JSON."""
    at_s: float
    chain: str
    """Hex sha256 of all up to and including this event."""


def link(previous: str, number: int, type: bytes, body: bytes, at_s: float) -> str:
    """Hash of an event, hex: sha256 of the hash before it, then the row with the length of each text before the text.

    Lengths make it unambiguous: no two rows have the same encoding.
    """
    fixed = struct.pack(">qdqq", number, at_s, len(type), len(body))
    return hashlib.sha256(bytes.fromhex(previous) + fixed + type + body).hexdigest()


def linked(previous: str, number: int, type: str, body: str, at_s: float) -> EventRow:
    """A row with its hash, behind the event whose hash is `previous`."""
    return EventRow(number, type, body, at_s, link(previous, number, type.encode(), body.encode(), at_s))


class RawRow(NamedTuple):
    """A row as SQLite gives it, which after damage may be anything; texts as bytes, because they need not be UTF-8."""

    number: object
    type: object
    body: object
    at_s: object
    chain: object


def find_faults(rows: Iterable[RawRow], previous: str, first: int) -> Iterator[tuple[int, bytes, str]]:
    """What is wrong with each of these rows, which follow the one whose hash is `previous`.

    A row that was altered does not make those behind it wrong: they are chained to what it said of itself.

    Args:
        rows: In the order of their numbers.
        previous: Hash before the first of them.
        first: Number that the first of them should have.

    Yields:
        Its number, its body, and what is wrong with it, or nothing.
    """
    believable, expected = {previous}, first
    for row in rows:
        number = row.number if isinstance(row.number, int) else expected
        computed = {_link(earlier, row) for earlier in believable}
        stored = _bytes(row.chain).decode("ascii", "replace")
        fault = ""
        if number != expected:
            fault = f"expected event {expected} here: the rows between are missing"
        elif stored not in computed:
            fault = "altered: its hash is not that of its contents and of the events before it"
        yield number, _bytes(row.body), fault
        believable = {link for link in (*computed, stored) if _HASH.fullmatch(link)}
        expected = number + 1


def _link(previous: str, row: RawRow) -> str:
    """The hash that this row should have; nothing where its columns are of the wrong kind."""
    if not isinstance(row.number, int) or not isinstance(row.at_s, float):
        return ""
    return link(previous, row.number, _bytes(row.type), _bytes(row.body), row.at_s)


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else b""

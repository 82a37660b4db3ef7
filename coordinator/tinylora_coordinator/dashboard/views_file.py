"""The projection's file, `views.sqlite`: what the fold remembers, by the number of its last change, and what is asked.

It can be deleted at any time: all but what workers said of themselves is in the ledger. So nothing is flushed to the
disk (`synchronous = OFF`), and whatever seems wrong with it (another format, damage) has one cure, a new file.
"""

import contextlib
import json
import secrets
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from pydantic import TypeAdapter

from tinylora_coordinator.dashboard.details import statements
from tinylora_coordinator.dashboard.documents import FeedItem
from tinylora_coordinator.dashboard.fold import Changes, RunFold
from tinylora_coordinator.dashboard.records import Head, Measured, Part, Trial, Unit, Worker

FILE = "views.sqlite"
FORMAT = 1
FEED_KEPT = 500
"""Items of the feed that are kept."""

AnyRecord = TypeVar("AnyRecord")

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE entity (kind TEXT, key TEXT, seq INTEGER NOT NULL, body TEXT NOT NULL, PRIMARY KEY (kind, key))
    WITHOUT ROWID;
CREATE TABLE feed (number INTEGER PRIMARY KEY, seq INTEGER NOT NULL, body TEXT NOT NULL)
"""

_ADAPTERS: dict[str, TypeAdapter[Any]] = {
    "part": TypeAdapter(Part),
    "worker": TypeAdapter(Worker),
    "unit": TypeAdapter(Unit),
    "measured": TypeAdapter(Measured),
    "trial": TypeAdapter(Trial),
    "head": TypeAdapter(Head),
    "mass": TypeAdapter(dict[str, float]),
}
_TREE = {"leaves", "lanes", "accuracy"}
"""Of the head: what is large and seldom other."""


class Misfit(Exception):
    """The file is not one of ours, or is damaged."""


@dataclass
class Kept:
    """What a file holds to go on from."""

    epoch: str
    seq: int
    chain: str
    fold: RunFold
    nodes: dict[str, int]
    """Number of the last change by path; of nodes that are gone, that of their going."""
    gone: set[str]
    workers: dict[str, int]
    feed: list[tuple[int, FeedItem]]
    raw_from_s: float


class ViewsFile:
    """One writer, any number of readers; every batch is one transaction.

    Args:
        file: Made if it is not there; None: a file that goes when this is closed.

    Raises:
        Misfit: It is not one of ours, or damaged.
        OSError: It cannot be made.
    """

    def __init__(self, file: Path | None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tinylora-views-") if file is None else None
        self.file = Path(self._folder.name) / FILE if self._folder is not None else file or Path(FILE)
        self._idle: SimpleQueue[sqlite3.Connection] = SimpleQueue()
        self._writer = _connect(self.file)
        try:
            with _as_misfit():
                self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self._writer.execute("PRAGMA journal_mode = WAL")
        self._writer.execute("PRAGMA synchronous = OFF")
        (version,) = self._writer.execute("PRAGMA user_version").fetchone()
        if version == 0:
            with self.writing() as database:
                for statement in (*_TABLES.strip().split(";\n"), *statements()):
                    database.execute(statement)
                database.execute("INSERT INTO meta VALUES ('epoch', ?)", (secrets.token_hex(4),))
                database.execute(f"PRAGMA user_version = {FORMAT}")
        elif version != FORMAT:
            raise Misfit(f"format {version}")
        for table in ("meta", "entity", "feed"):  # of the rest, a query finds out; it is too large to read it all
            if self._writer.execute(f"PRAGMA quick_check({table})").fetchone() != ("ok",):
                raise Misfit("damaged")

    def close(self) -> None:
        """Let go of the file."""
        with contextlib.suppress(sqlite3.Error):
            self._writer.close()
        with contextlib.suppress(Empty):
            while True:
                self._idle.get_nowait().close()
        if self._folder is not None:
            self._folder.cleanup()

    # --- transactions ------------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """All of it or nothing."""
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            yield self._writer
        except BaseException:
            self._writer.execute("ROLLBACK")
            raise
        self._writer.execute("COMMIT")

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One unchanging view, whatever is written meanwhile."""
        try:
            database = self._idle.get_nowait()
        except Empty:
            database = _connect(self.file, "?mode=rw")
            database.execute("PRAGMA query_only = ON")
        try:
            database.execute("BEGIN")
            yield database
        except BaseException:
            database.close()
            raise
        database.execute("ROLLBACK")
        self._idle.put(database)

    # --- what the fold remembers -------------------------------------------------------------------------------------

    def read(self) -> Kept:
        """All that is needed to go on.

        Raises:
            Misfit: It makes no sense.
        """
        with _as_misfit(), self.reading() as database:
            return _read(database)

    def write(
        self,
        fold: RunFold,
        changes: Changes,
        *,
        seq: int,
        chain: str,
        nodes: Sequence[str],
        gone: Sequence[str],
        more: Callable[[sqlite3.Connection], None] = lambda _: None,
    ) -> None:
        """Write a batch down.

        Args:
            fold: After it.
            changes: What it changed.
            seq: Number of this change.
            chain: Hash of the ledger up to its last event.
            nodes: Paths of which something else is shown since.
            gone: Paths that are no longer part of the tree.
            more: Writes further tables, in the same transaction.
        """
        with self.writing() as database:
            _write_entities(database, fold, changes, seq)
            marks = [(path, "") for path in nodes] + [(path, "gone") for path in gone]
            database.executemany(
                "INSERT OR REPLACE INTO entity VALUES ('node', ?, ?, ?)", [(path, seq, body) for path, body in marks]
            )
            database.executemany(
                "INSERT OR REPLACE INTO feed VALUES (?, ?, ?)",
                [(item.number, seq, item.model_dump_json()) for item in changes.feed[-FEED_KEPT:]],
            )
            if changes.feed:
                database.execute(
                    "DELETE FROM feed WHERE number < (SELECT number FROM feed ORDER BY number DESC LIMIT 1 OFFSET ?)",
                    (FEED_KEPT - 1,),
                )
            more(database)
            database.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", [("seq", seq), ("chain", chain)])


def _connect(file: Path, how: str = "") -> sqlite3.Connection:
    return sqlite3.connect(
        file.absolute().as_uri() + how, uri=True, timeout=10.0, isolation_level=None, check_same_thread=False
    )


@contextmanager
def _as_misfit() -> Iterator[None]:
    try:
        yield
    except (sqlite3.DatabaseError, ValueError, KeyError, TypeError) as error:  # pydantic's is a ValueError
        raise Misfit(str(error)[:200]) from error


# --- records in rows -------------------------------------------------------------------------------------------------


def _write_entities(database: sqlite3.Connection, fold: RunFold, changes: Changes, seq: int) -> None:
    head = _ADAPTERS["head"].dump_json(fold.head, exclude=_TREE).decode()
    kept: list[tuple[str, str, int, str]] = [("head", "", seq, head)]
    if changes.is_tree_new:
        kept.append(("tree", "", seq, _ADAPTERS["head"].dump_json(fold.head, include=_TREE).decode()))
    dropped: list[tuple[str, str]] = []
    for kind, names, records in (
        ("part", changes.parts, fold.parts),
        ("worker", changes.workers, fold.workers),
        ("unit", changes.units, fold.units),
        ("measured", changes.measured, fold.measured),
    ):
        kept += [(kind, name, seq, _dumped(kind, records[name])) for name in names if name in records]
        dropped += [(kind, name) for name in names if name not in records]
    if changes.is_mass_new:
        kept.append(("mass", "", seq, json.dumps(fold.mass)))
    database.executemany("INSERT OR REPLACE INTO entity VALUES (?, ?, ?, ?)", kept)
    database.executemany("DELETE FROM entity WHERE kind = ? AND key = ?", dropped)
    if changes.are_trials_new:
        database.execute("DELETE FROM entity WHERE kind = 'trial'")
        trials = [("trial", name, seq, _dumped("trial", trial)) for name, trial in fold.trials.items()]
        database.executemany("INSERT INTO entity VALUES (?, ?, ?, ?)", trials)


def _dumped(kind: str, record: object) -> str:
    return _ADAPTERS[kind].dump_json(record).decode()


def _read(database: sqlite3.Connection) -> Kept:
    meta = dict(database.execute("SELECT key, value FROM meta"))
    found: dict[str, dict[str, Any]] = {kind: {} for kind in _ADAPTERS}
    numbers: dict[str, dict[str, int]] = {"node": {}, "worker": {}}
    gone, tree = set(), "{}"
    for kind, key, seq, body in database.execute("SELECT kind, key, seq, body FROM entity"):
        if kind in numbers:
            numbers[kind][key] = seq
        if kind == "tree":
            tree = body
        elif kind == "node":
            gone |= {key} if body else set()
        else:
            found[kind][key] = _ADAPTERS[kind].validate_json(body)
    head = replace(found["head"].get("", Head()), **json.loads(tree))
    head.leaves, head.lanes = tuple(head.leaves), tuple(head.lanes)
    fold = RunFold(
        head,
        dict(sorted(found["part"].items(), key=lambda item: (len(item[0]), item[0]))),
        found["worker"],
        found["unit"],
        found["measured"],
        found["trial"],
        found["mass"].get("", {}),
    )
    rows = database.execute("SELECT seq, body FROM feed ORDER BY number").fetchall()
    return Kept(
        str(meta["epoch"]),
        int(meta.get("seq", 0)),
        str(meta.get("chain", "")),
        fold,
        numbers["node"],
        gone,
        numbers["worker"],
        [(seq, FeedItem.model_validate_json(body)) for seq, body in rows],
        float(meta.get("raw_from_s", 0.0)),
    )

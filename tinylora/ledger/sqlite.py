"""The ledger on disk: the contract of `federation.ports.Ledger`, and what only a durable one can promise.

A blob is on disk before the event that names it, so a ledger never knows of bytes that it does not have. Events and the
rows derived from them are one transaction. One process writes; any number read meanwhile (`open_readonly`).
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from sqlalchemy import Connection, LargeBinary, cast, create_engine, func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from tinylora.errors import StorageError
from tinylora.failpoints import around, reach
from tinylora.federation.events import Event, event_from_json, event_to_json
from tinylora.ledger import tables
from tinylora.ledger.blobs import BlobFolder
from tinylora.ledger.chain import START, EventRow, RawRow, find_faults, linked
from tinylora.ledger.derived import apply_changes, read_rows, write_rows
from tinylora.ledger.faults import BrokenDisk, as_storage_error
from tinylora.ledger.lock import FolderLock
from tinylora.ledger.rows import Row, Value, changes, fold_rows, named_blobs
from tinylora.ledger.schema import FIRST, HEAD, revision_of
from tinylora.ledger.snapshots import read_snapshot, write_snapshot
from tinylora.ledger.tables import TableName
from tinylora.protocol.documents import sha256 as sha256_of

FILE = "ledger.sqlite"
LOCK = "ledger.lock"
BUSY_S = 10.0

around(
    "ledger.open.file",
    "ledger.open.wal",
    "ledger.migrate.begin",
    "ledger.migrate.steps",
    "ledger.migrate.rows",
    "ledger.migrate.commit",
    "ledger.append.begin",
    "ledger.append.events",
    "ledger.append.rows",
    "ledger.append.commit",
    "ledger.rebuild.begin",
    "ledger.rebuild.rows",
    "ledger.rebuild.commit",
    "ledger.close.checkpoint",
)

AnySelf = TypeVar("AnySelf", bound="SqliteLedger")


class SqliteLedger:
    """The contract of `ports.Ledger` on disk.

    Args:
        directory: Made if it is not there.

    Raises:
        StorageError: The directory cannot be written, another process writes to it, or a newer program wrote it.
    """

    def __init__(self, directory: Path | str) -> None:
        self._directory = Path(directory)
        self._file = self._directory / FILE
        self._blobs = BlobFolder(self._directory)
        self._broken = ""
        self._lock: FolderLock | None = None
        with as_storage_error(self._directory, self._file):
            self._directory.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(self._directory / LOCK, holder="writer of the ledger")
            try:
                self._open()
            except BaseException:
                self._lock.close()
                raise

    @classmethod
    def open_readonly(cls, directory: Path | str) -> "SqliteLedger":
        """The ledger of a run that another process may be writing; whatever would change it is refused.

        It may be of an older format, and may be brought to the present one while it is open here.

        Raises:
            StorageError: There is no ledger, or a newer program wrote it.
        """
        ledger = cls.__new__(cls)
        ledger._directory = Path(directory)
        ledger._file = ledger._directory / FILE
        ledger._blobs = BlobFolder(ledger._directory)
        ledger._broken = ""
        ledger._lock = None
        if not ledger._file.exists():
            raise StorageError(f"{directory}: no ledger here; expected the file {FILE}")
        with as_storage_error(ledger._directory, ledger._file):
            ledger._connection = _connect(ledger._file, is_readonly=True)
            with ledger._reading():
                pass
        return ledger

    @property
    def spool(self) -> Path:
        """Folder for bodies on their way in; what lies there when a writer opens the ledger is removed."""
        return self._blobs.spool

    # --- events ------------------------------------------------------------------------------------------------------

    def append(self, events: Sequence[Event], now_s: float) -> None:
        """Add events in order, all or none, with the rows that follow from them.

        Raises:
            DiskFull: Nothing was added; the same call may succeed later.
            StorageError: The disk is not writable, or an event names a blob that was never stored; nothing was added.
        """
        with self._writing():
            rows = self._chained(events, now_s)
            with self._transaction("ledger.append"):
                reach("ledger.append.events.before")
                if rows:
                    self._connection.execute(tables.event.insert(), [row._asdict() for row in rows])
                reach("ledger.append.events.after")
                reach("ledger.append.rows.before")
                for row, event in zip(rows, events, strict=True):
                    apply_changes(self._connection, changes(row.number, event, self._blobs.sizes()))
                reach("ledger.append.rows.after")
            if rows:
                self._head = (rows[-1].number, rows[-1].chain)
            reach("ledger.append.commit.after")

    def events(self, after: int = 0) -> Sequence[Event]:
        """Events in order, without the first `after` ones; each was compared with its hash.

        Raises:
            StorageError: The file cannot be read, or an event was altered.
        """
        with self._reading() as connection:
            revision = revision_of(connection, self._file)
            if not revision:
                return ()
            if revision == FIRST:
                rows = connection.exec_driver_sql(
                    "SELECT number, body FROM event WHERE number > ? ORDER BY number", (after,)
                )
                return tuple(self._parse(number, body) for number, body in rows)
            return tuple(self._checked_events(connection, after))

    def head(self) -> tuple[int, str]:
        """Number of events, and the hash over all of them."""
        if self._lock is not None:
            return self._head
        return self._last()

    def chain_at(self, number: int) -> str:
        """Hash over the first `number` events, hex.

        Raises:
            StorageError: There are fewer.
        """
        with self._reading() as connection:
            return self._chain_at(connection, number)

    # --- what the events say -----------------------------------------------------------------------------------------

    def rows(self, table: TableName, **where: Value) -> list[Row]:
        """Rows of a derived table whose columns have these values, in the order of their keys.

        Raises:
            StorageError: The file cannot be read.
        """
        with self._reading() as connection:
            return read_rows(connection, table, **where)

    def rebuild(self) -> None:
        """Compute the derived tables anew, from the events alone."""
        with self._writing(), self._transaction("ledger.rebuild"):
            reach("ledger.rebuild.rows.before")
            self._derive()
            reach("ledger.rebuild.rows.after")
        reach("ledger.rebuild.commit.after")

    # --- blobs -------------------------------------------------------------------------------------------------------

    def put_blob(self, data: bytes, *, sha256: str = "") -> str:
        """Store bytes under their hex sha256, durable before the call returns.

        Raises:
            DiskFull: Nothing is left behind; the same call may succeed later.
            StorageError: The disk is not writable.
        """
        name = sha256 or sha256_of(data)
        with self._writing():
            self._blobs.put(data, name)
        return name

    def adopt_blob(self, file: Path, sha256: str) -> str:
        """Store a flushed file by moving it here; nothing of it is read.

        Raises:
            DiskFull: The file is where it was; the same call may succeed later.
            StorageError: The disk is not writable, or the file is on another one.
        """
        with self._writing():
            self._blobs.adopt(file, sha256)
        return sha256

    def get_blob(self, sha256: str) -> bytes:
        """Bytes stored under this name.

        Raises:
            StorageError: No such blob, or its bytes no longer match the name.
        """
        with as_storage_error(self._directory, self._file):
            return self._blobs.get(sha256)

    def drop_blobs(self, names: Sequence[str]) -> None:
        """Delete blobs that an event has just declared pruned or erased; those not there are no error.

        Raises:
            StorageError: An event still needs one of them; nothing was deleted.
        """
        with self._writing():
            needed = sorted(set(names) & self._live_blobs())
            if needed:
                raise StorageError(
                    f"blob {needed[0]}: an event names it and none says that it is gone; prune it by event"
                )
            self._blobs.drop(names)

    def stored_bytes(self) -> int:
        """Size of all blobs together."""
        if self._lock is not None:
            return self._blobs.stored_bytes()
        with as_storage_error(self._directory, self._file):
            return self._blobs.measure()

    # --- snapshots ---------------------------------------------------------------------------------------------------

    def save_snapshot(self, n_events: int, text: str) -> None:
        """Keep the state after the first `n_events` events, in place of the last one.

        Raises:
            DiskFull: The last one is still there.
            StorageError: There are not so many events, or the disk is not writable.
        """
        with self._writing():
            write_snapshot(self._directory, n_events, self.chain_at(n_events), text)

    def load_snapshot(self) -> tuple[int, str] | None:
        """The last snapshot, if it is whole, of this code and of this very log."""
        found = read_snapshot(self._directory)
        if found is None:
            return None
        with self._reading() as connection:
            chain = select(tables.event.c.chain).where(tables.event.c.number == found.n_events)
            if connection.execute(chain).scalar_one_or_none() != found.chain:
                return None
        return found.n_events, found.text

    # --- life --------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the files; the ledger can be opened again."""
        with as_storage_error(self._directory, self._file):
            try:
                reach("ledger.close.checkpoint.before")
            finally:
                self._connection.close()
                if self._lock is not None:
                    self._lock.close()
            reach("ledger.close.checkpoint.after")

    def __enter__(self: AnySelf) -> AnySelf:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> None:
        reach("ledger.open.file.before")
        os.close(os.open(self._file, os.O_RDWR | os.O_CREAT, 0o600))
        reach("ledger.open.file.after")
        self._connection = _connect(self._file, is_readonly=False)
        try:
            self._blobs.prepare()
            self._upgrade()
            self._head = self._last()
            self._blobs.keep_only(self._live_blobs())
        except BaseException:
            self._connection.close()
            raise

    def _upgrade(self) -> None:
        """Bring the file to the present format, rows and all, in one transaction: readers see the one or the other."""
        with self._reading() as connection:
            revision = revision_of(connection, self._file)
        if revision == HEAD:
            return
        # Alembic takes a quarter of a second to load, and most openings have no use for it.
        from tinylora.ledger.migrate import upgrade

        with self._transaction("ledger.migrate"):
            reach("ledger.migrate.steps.before")
            upgrade(self._connection, revision)
            reach("ledger.migrate.steps.after")
            reach("ledger.migrate.rows.before")
            self._derive()
            reach("ledger.migrate.rows.after")
        reach("ledger.migrate.commit.after")

    # --- transactions ------------------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """What is done within may write; after an I/O error nothing may any more.

        A flush that failed is never tried again: the system may have thrown the bytes away and say yes the next time
        (https://wiki.postgresql.org/wiki/Fsync_Errors).
        """
        if self._lock is None:
            raise StorageError(f"{self._directory}: opened for reading only")
        if self._broken:
            raise StorageError(f"{self._directory}: not written to any more after an error of the disk: {self._broken}")
        try:
            with as_storage_error(self._directory, self._file):
                yield
        except BrokenDisk as error:
            self._broken = str(error)
            raise

    @contextmanager
    def _transaction(self, name: str) -> Iterator[None]:
        """All of it or nothing; the failpoint behind the commit is the caller's, once it has noted what it wrote."""
        reach(f"{name}.begin.before")
        try:
            self._connection.exec_driver_sql("BEGIN IMMEDIATE")
            reach(f"{name}.begin.after")
            yield
            reach(f"{name}.commit.before")
            self._connection.commit()
        except BaseException:
            _roll_back(self._connection)
            raise

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        """One unchanging view of the file, whatever is written meanwhile."""
        with as_storage_error(self._directory, self._file):
            try:
                self._connection.exec_driver_sql("BEGIN")
                yield self._connection
            finally:
                _roll_back(self._connection)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _chained(self, events: Sequence[Event], now_s: float) -> list[EventRow]:
        """The rows of these events, behind the last one there is."""
        number, chain = self._head
        rows = []
        for event in events:
            self._check_named(event)
            # Minus zero would come back from SQLite as zero, and with another hash.
            row = linked(chain, number + 1, event.type, event_to_json(event), now_s + 0.0)
            rows.append(row)
            number, chain = row.number, row.chain
        return rows

    def _check_named(self, event: Event) -> None:
        missing = [name for name in named_blobs(event) if name not in self._blobs.sizes()]
        if missing:
            raise StorageError(
                f"{event.type}: names blob {missing[0]}, which is not in {self._directory}; store it first"
            )

    def _checked_events(self, connection: Connection, after: int) -> Iterator[Event]:
        rows = raw_rows(connection, after)
        for number, body, fault in find_faults(rows, self._chain_at(connection, after), after + 1):
            if fault:
                raise StorageError(
                    f"{self._file}: event {number}: {fault}; see all of it with verify-log, then restore a backup"
                )
            yield self._parse(number, body)

    def _parse(self, number: int, body: bytes | str) -> Event:
        try:
            return event_from_json(body if isinstance(body, str) else body.decode())
        except (ValidationError, UnicodeDecodeError) as error:
            what = str(error).splitlines()[0]
            raise StorageError(f"{self._file}: event {number} cannot be read ({what}); restore a backup") from None

    def _chain_at(self, connection: Connection, number: int) -> str:
        if number == 0:
            return START
        chain = select(tables.event.c.chain).where(tables.event.c.number == number)
        found = connection.execute(chain).scalar_one_or_none()
        if found is None:
            raise StorageError(f"{self._file}: there is no event {number}")
        return found

    def _last(self) -> tuple[int, str]:
        with self._reading() as connection:
            number = connection.execute(select(func.max(tables.event.c.number))).scalar_one() or 0
            return number, self._chain_at(connection, number)

    def _derive(self) -> None:
        numbered = enumerate(self._checked_events(self._connection, 0), 1)
        write_rows(self._connection, fold_rows(numbered, self._blobs.sizes()))

    def _live_blobs(self) -> set[str]:
        return {str(row["sha256"]) for row in self.rows("blob", state="live")}


def raw_rows(connection: Connection, after: int) -> Iterator[RawRow]:
    """Rows of events behind the first `after`, with texts as the bytes that lie on disk."""
    columns = tables.event.c
    text = (cast(column, LargeBinary) for column in (columns.type, columns.body, columns.chain))
    type_, body, chain = text
    query = select(columns.number, type_, body, columns.at_s, chain).where(columns.number > after)
    return (RawRow(*row) for row in connection.execute(query.order_by(columns.number)))


def _connect(file: Path, *, is_readonly: bool) -> Connection:
    """A connection that begins and commits only when told to; threads may hand it to each other, one at a time."""
    engine = create_engine("sqlite://", creator=lambda: _open(file, is_readonly), poolclass=NullPool)
    return engine.connect()


def _open(file: Path, is_readonly: bool) -> sqlite3.Connection:
    is_fixed = is_readonly and not os.access(file.parent, os.W_OK)
    # Where nothing can be written, SQLite cannot make its shared memory, and there is no writer to share it with.
    where = f"{file.absolute().as_uri()}?immutable=1" if is_fixed else f"{file.absolute().as_uri()}"
    database = sqlite3.connect(where, uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        if is_readonly:
            database.execute("PRAGMA query_only = ON")
            return database
        reach("ledger.open.wal.before")
        database.execute("PRAGMA journal_mode = WAL")
        reach("ledger.open.wal.after")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        database.close()
        raise
    return database


def _roll_back(connection: Connection) -> None:
    """Nothing is under way any more, whatever state a failed commit has left."""
    raw = connection.connection.dbapi_connection
    with contextlib.suppress(SQLAlchemyError, sqlite3.Error):
        connection.rollback()
        if raw is not None and raw.in_transaction:
            raw.rollback()

"""The ledger on disk: the contract of `federation.ports.Ledger`, and what only a durable one can promise.

A blob is on disk before the event that names it, so a ledger never knows of bytes that it does not have. Events and the
rows derived from them are one transaction. One process writes; any number read meanwhile (`open_readonly`).
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection

from tinylora.durable import make_folder
from tinylora.errors import StorageError
from tinylora.failpoints import reach
from tinylora.federation.events import Event, event_to_json
from tinylora.ledger import tables
from tinylora.ledger.blobs import BlobFolder
from tinylora.ledger.chain import EventRow, linked
from tinylora.ledger.database import Database, register_transaction
from tinylora.ledger.derived import apply_changes, read_rows, write_rows
from tinylora.ledger.faults import BrokenDisk, as_storage_error
from tinylora.ledger.lock import FolderLock
from tinylora.ledger.log import chain_at, last_number, read_events, read_timed, read_types, read_unchained
from tinylora.ledger.rows import Row, Value, changes, fold_rows, named_blobs
from tinylora.ledger.schema import FIRST, HEAD, revision_of
from tinylora.ledger.snapshots import read_snapshot, write_snapshot
from tinylora.ledger.tables import TableName
from tinylora.ledger.verify import Fault, LogCheck, check_blobs, check_log
from tinylora.protocol.documents import sha256 as sha256_of

FILE = "ledger.sqlite"
LOCK = "ledger.lock"

register_transaction("ledger.migrate", "steps", "rows")
register_transaction("ledger.append", "events", "rows")
register_transaction("ledger.rebuild", "rows")


class SqliteLedger:
    """The contract of `ports.Ledger` on disk.

    Opening it to write brings an older format to the present one, and clears away what a process that was killed left:
    the spool, and files that no event names or that one declared gone.

    Args:
        directory: Made if it is not there.
        is_readonly: As `open_readonly` says.

    Raises:
        StorageError: The directory cannot be written, another process writes to it, or a newer program wrote it.
    """

    def __init__(self, directory: Path | str, *, is_readonly: bool = False) -> None:
        self._directory = Path(directory)
        self._file = self._directory / FILE
        self._blobs = BlobFolder(self._directory)
        self._broken = ""
        self._lock: FolderLock | None = None
        self._head = (0, "")
        with self._speaking():
            if is_readonly:
                self._open_to_read()
            else:
                self._open_to_write()

    @classmethod
    def open_readonly(cls, directory: Path | str) -> "SqliteLedger":
        """The ledger of a run that another process may be writing; whatever would change it is refused.

        It may be of an older format, and may be brought to the present one while it is open here.

        Raises:
            StorageError: There is no ledger, or a newer program wrote it.
        """
        return cls(directory, is_readonly=True)

    @property
    def spool(self) -> Path:
        """Folder for bodies on their way in, from which `adopt_blob` takes them by renaming."""
        return self._blobs.spool

    # --- events ------------------------------------------------------------------------------------------------------

    def append(self, events: Sequence[Event], now_s: float) -> None:
        """Add events in order, all or none, with the rows that follow from them.

        Raises:
            DiskFull: Nothing was added; the same call may succeed later.
            StorageError: The disk is not writable, or an event names a blob that was never stored; nothing was added.
        """
        with self._changing():
            rows = self._chained(events, now_s)
            if not rows:
                return
            with self._database.writing("ledger.append") as connection:
                reach("ledger.append.events.before")
                connection.execute(tables.event.insert(), [row._asdict() for row in rows])
                reach("ledger.append.events.after")
                reach("ledger.append.rows.before")
                for row, event in zip(rows, events, strict=True):
                    apply_changes(connection, changes(row.number, event, self._blobs.sizes()))
                reach("ledger.append.rows.after")
            self._head = (rows[-1].number, rows[-1].chain)
            reach("ledger.append.commit.after")

    def events(self, after: int = 0) -> Sequence[Event]:
        """Events in order, without the first `after` ones; each was compared with its hash.

        Raises:
            StorageError: The file cannot be read, or an event was altered.
        """
        with self._reading() as (connection, revision):
            if not revision:
                return ()
            return tuple((read_unchained if revision == FIRST else read_events)(connection, after))

    def timed_events(self, after: int = 0, at_most: int | None = None) -> Sequence[tuple[int, float, Event]]:
        """Events behind the first `after` ones, each with its number and the time of its row, seconds of the run.

        Raises:
            StorageError: The file cannot be read, an event was altered, or the format is one without times.
        """
        with self._reading_tables() as connection:
            return tuple(read_timed(connection, after, at_most))

    def events_of(self, types: Collection[str], after: int, at_most: int) -> tuple[int, tuple[tuple[int, Event], ...]]:
        """Numbered events of these types among the `at_most` behind the first `after`, and how far was looked.

        For those who look again and again for something rare; the hashes are not compared.

        Raises:
            StorageError: The file cannot be read.
        """
        with self._reading_tables() as connection:
            return read_types(connection, types, after, at_most)

    def head(self) -> tuple[int, str]:
        """Number of events, and the hash over all of them, hex."""
        if self._lock is not None:
            return self._head
        with self._reading_tables() as connection:
            number = last_number(connection)
            return number, chain_at(connection, number)

    def chain_at(self, number: int) -> str:
        """Hash over the first `number` events, hex.

        Raises:
            StorageError: There are fewer.
        """
        with self._reading_tables() as connection:
            return chain_at(connection, number)

    # --- what the events say -----------------------------------------------------------------------------------------

    def rows(self, table: TableName, **where: Value) -> list[Row]:
        """Rows of a derived table whose columns have these values, in the order of their keys.

        Raises:
            StorageError: The file cannot be read.
        """
        with self._reading_tables() as connection:
            return read_rows(connection, table, **where)

    def rebuild(self) -> None:
        """Compute the derived tables anew, from the events alone.

        Raises:
            DiskFull: They are as they were.
            StorageError: An event was altered, or the disk is not writable.
        """
        with self._changing():
            with self._database.writing("ledger.rebuild") as connection:
                reach("ledger.rebuild.rows.before")
                self._derive(connection)
                reach("ledger.rebuild.rows.after")
            reach("ledger.rebuild.commit.after")

    def check(self) -> LogCheck:
        """What is wrong with events, tables and pages, and which blobs must be there; blobs are not looked at.

        Raises:
            StorageError: The file cannot be opened at all, or is of a format without hashes.
        """
        with self._reading_tables() as connection:
            return check_log(connection)

    def verify(self) -> tuple[Fault, ...]:
        """Everything that is wrong: altered or missing events, rows that say something else, blobs lost or altered.

        It reads all there is, blobs too; another process may write meanwhile.

        Raises:
            StorageError: The file cannot be opened at all, or is of a format without hashes.
        """
        log = self.check()
        with self._speaking():
            suspects = dict(check_blobs(self._blobs, log.blobs))
        # What was pruned by event while we looked is not missing.
        gone = {str(row["sha256"]) for row in self.rows("blob") if row["state"] != "live"} if suspects else set()
        return (*log.faults, *(fault for name, fault in suspects.items() if name not in gone))

    # --- blobs -------------------------------------------------------------------------------------------------------

    def put_blob(self, data: bytes, *, sha256: str = "") -> str:
        """Store bytes under their hex sha256, durable before the call returns.

        Raises:
            DiskFull: Nothing is left behind; the same call may succeed later.
            StorageError: The disk is not writable.
        """
        name = sha256 or sha256_of(data)
        with self._changing():
            self._blobs.put(data, name)
        return name

    def adopt_blob(self, file: Path, sha256: str) -> str:
        """Store a flushed file by moving it here; nothing of it is read.

        Raises:
            DiskFull: The file is where it was; the same call may succeed later.
            StorageError: The disk is not writable, or the file is on another one.
        """
        with self._changing():
            self._blobs.adopt(file, sha256)
        return sha256

    def get_blob(self, sha256: str) -> bytes:
        """Bytes stored under this name.

        Raises:
            StorageError: No such blob, or its bytes no longer match the name.
        """
        with self._speaking():
            return self._blobs.get(sha256)

    def drop_blobs(self, names: Sequence[str]) -> None:
        """Delete blobs that an event has just declared pruned or erased; those not there are no error.

        Raises:
            StorageError: An event still needs one of them; nothing was deleted.
        """
        with self._changing():
            needed = [name for name in names if self.rows("blob", sha256=name, state="live")]
            if needed:
                raise StorageError(
                    f"blob {needed[0]}: an event names it and none says that it is gone; nothing deleted"
                )
            self._blobs.drop(names)

    def stored_bytes(self) -> int:
        """Size of all blobs together."""
        if self._lock is not None:
            return self._blobs.stored_bytes()
        with self._speaking():
            return self._blobs.measure()

    # --- snapshots ---------------------------------------------------------------------------------------------------

    def save_snapshot(self, n_events: int, text: str) -> None:
        """Keep the state after the first `n_events` events, in place of the last one.

        Raises:
            DiskFull: The last one is still there.
            StorageError: There are not so many events, or the disk is not writable.
        """
        with self._changing():
            write_snapshot(self._directory, n_events, self.chain_at(n_events), text)

    def load_snapshot(self) -> tuple[int, str] | None:
        """The last snapshot, if it is whole, of this code and of this very log."""
        found = read_snapshot(self._directory)
        if found is None:
            return None
        with self._reading() as (connection, revision):
            if revision != HEAD or found.n_events > last_number(connection):
                return None
            is_of_this_log = chain_at(connection, found.n_events) == found.chain
        return (found.n_events, found.text) if is_of_this_log else None

    # --- life --------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the files; the ledger can be opened again."""
        with self._speaking():
            try:
                self._database.close()
            finally:
                if self._lock is not None:
                    self._lock.close()

    def __enter__(self) -> "SqliteLedger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_to_read(self) -> None:
        if not self._file.exists():
            raise StorageError(f"{self._directory}: no ledger here; expected the file {FILE}")
        self._database = Database(self._file, is_readonly=True)
        with self._reading():
            return

    def _open_to_write(self) -> None:
        make_folder(self._directory, name="ledger.folder")
        self._lock = FolderLock(self._directory / LOCK, holder="writer of the ledger")
        try:
            self._database = Database(self._file, is_readonly=False)
        except BaseException:
            self._lock.close()
            raise
        try:
            self._blobs.prepare()
            self._upgrade()
            with self._reading() as (connection, _):
                number = last_number(connection)
                self._head = (number, chain_at(connection, number))
            self._blobs.keep_only({str(row["sha256"]) for row in self.rows("blob", state="live")})
        except BaseException:
            self.close()
            raise

    def _upgrade(self) -> None:
        """Bring the file to the present format, rows and all, in one transaction: readers see the one or the other."""
        with self._reading() as (_, revision):
            if revision == HEAD:
                return
        # Alembic takes a quarter of a second to load, and most openings have no use for it.
        from tinylora.ledger.migrate import upgrade

        with self._database.writing("ledger.migrate") as connection:
            reach("ledger.migrate.steps.before")
            upgrade(connection, revision)
            reach("ledger.migrate.steps.after")
            reach("ledger.migrate.rows.before")
            self._derive(connection)
            reach("ledger.migrate.rows.after")
        reach("ledger.migrate.commit.after")

    # --- inside ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """What goes wrong within is told in our words."""
        with as_storage_error(self._directory, self._file):
            yield

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """What is done within may write; after an I/O error nothing may any more.

        A flush that failed is never tried again: the system may have thrown the bytes away and say yes the next time
        (https://wiki.postgresql.org/wiki/Fsync_Errors).
        """
        if self._lock is None:
            raise StorageError(f"{self._directory}: opened for reading only")
        if self._broken:
            raise StorageError(
                f"{self._directory}: not written to any more, because of an earlier error: {self._broken}"
            )
        try:
            with self._speaking():
                yield
        except BrokenDisk as error:
            self._broken = str(error)
            raise

    @contextmanager
    def _reading(self) -> Iterator[tuple[Connection, str]]:
        """One view of the file, with its format: another process may bring it to a newer one at any time."""
        with self._speaking(), self._database.reading() as connection:
            yield connection, revision_of(connection, self._file)

    @contextmanager
    def _reading_tables(self) -> Iterator[Connection]:
        """The same, of a file in the present format."""
        with self._reading() as (connection, revision):
            if revision != HEAD:
                raise StorageError(
                    f"{self._file}: of an older format, without hashes; serve the run once to bring it up to date"
                )
            yield connection

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

    def _derive(self, connection: Connection) -> None:
        before = {str(row["sha256"]): int(row["bytes"] or 0) for row in read_rows(connection, "blob")}
        numbered = enumerate(read_events(connection, 0), 1)
        write_rows(connection, fold_rows(numbered, before | dict(self._blobs.sizes())))

"""A durable ledger: events in one SQLite file, blobs in files named by their hash.

    DIR/ledger.sqlite     events in order (WAL, synchronous=FULL, STRICT)
    DIR/blobs/ab/ab12…    payloads; written beside, flushed to disk, then renamed

A blob is on disk before the event that names it, so a ledger never knows of bytes that it does not have. One process
writes; any number read at the same time through `open_readonly`.
"""

import errno
import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tinylora.errors import StorageError
from tinylora.federation.events import Event, event_from_json, event_to_json
from tinylora.protocol.documents import sha256 as sha256_of

FILE = "ledger.sqlite"
FORMAT = 1
BUSY_S = 10.0

_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE event (
    number INTEGER PRIMARY KEY,
    type TEXT NOT NULL,
    body TEXT NOT NULL,
    at_s REAL NOT NULL
) STRICT;
PRAGMA user_version = {FORMAT};
COMMIT;
"""


class SqliteLedger:
    """The contract of `ports.Ledger` on disk.

    Args:
        directory: Made if it is not there.

    Raises:
        StorageError: The directory cannot be written, or holds a ledger of another format.
    """

    def __init__(self, directory: Path | str) -> None:
        self._directory = Path(directory)
        with _as_storage_error(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
            self._database = _connect(self._directory / FILE)
            self._n_events = _prepare(self._database, self._directory)
        self._checked: dict[
            str, tuple[int, int]
        ] = {}  # blobs by time of writing and length: hashed once, not each time

    @classmethod
    def open_readonly(cls, directory: Path | str) -> "SqliteLedger":
        """The ledger of a run that another process may be writing; whatever would change it is refused.

        Raises:
            StorageError: There is no ledger, or it is of another format.
        """
        ledger = cls.__new__(cls)
        ledger._directory = Path(directory)
        file = ledger._directory / FILE
        if not file.exists():
            raise StorageError(f"{directory}: no ledger here; expected the file {FILE}")
        with _as_storage_error(ledger._directory):
            ledger._database = _connect(file)
            ledger._database.execute("PRAGMA query_only = ON")
            _check_format(ledger._database, ledger._directory)
        ledger._n_events = None
        ledger._checked = {}
        return ledger

    def append(self, events: Sequence[Event], now_s: float) -> None:
        """Add events in order, all or none.

        Numbers are counted here and unique in the table: a second writer is found out, not mixed in.

        Raises:
            StorageError: The disk is full or not writable, or another process wrote meanwhile; nothing was added.
        """
        if self._n_events is None:
            raise StorageError(f"{self._directory}: opened for reading only")
        first = self._n_events + 1
        rows = [(first + index, event.type, event_to_json(event), now_s) for index, event in enumerate(events)]
        with _as_storage_error(self._directory), self._transaction():
            self._database.executemany("INSERT INTO event (number, type, body, at_s) VALUES (?, ?, ?, ?)", rows)
        self._n_events += len(rows)

    def events(self, after: int = 0) -> Sequence[Event]:
        """Events in order, without the first `after` ones.

        Raises:
            StorageError: The file cannot be read.
        """
        query = "SELECT body FROM event WHERE number > ? ORDER BY number"
        with _as_storage_error(self._directory):
            return tuple(event_from_json(body) for (body,) in self._database.execute(query, (after,)))

    def put_blob(self, data: bytes, *, sha256: str = "") -> str:
        """Store bytes under their hex sha256, durable before the call returns.

        Raises:
            StorageError: The disk is full or not writable; nothing half-written is left.
        """
        if self._n_events is None:
            raise StorageError(f"{self._directory}: opened for reading only")
        name = sha256 or sha256_of(data)
        file = self._blob_file(name)
        with _as_storage_error(self._directory):
            if not _holds(file, data):
                _write_durably(file, data)
        return name

    def get_blob(self, sha256: str) -> bytes:
        """Bytes stored under this name.

        Raises:
            StorageError: No such blob, or its bytes no longer match the name.
        """
        file = self._blob_file(sha256)
        if not file.exists():
            raise StorageError(f"blob {sha256}: not in {self._directory}")
        with _as_storage_error(self._directory):
            written = file.stat().st_mtime_ns
            data = file.read_bytes()
        if self._checked.get(sha256) != (written, len(data)):
            if sha256_of(data) != sha256:
                raise StorageError(
                    f"{file}: altered on disk, its sha256 is {sha256_of(data)}; restore it from a backup"
                )
            self._checked[sha256] = (written, len(data))
        return data

    def adopt_blob(self, file: Path, sha256: str) -> str:
        """Store a flushed file by moving it here."""
        name = self.put_blob(file.read_bytes(), sha256=sha256)
        file.unlink()
        return name

    def drop_blobs(self, names: Sequence[str]) -> None:
        """Delete blobs; those not there are no error."""
        for name in names:
            self._blob_file(name).unlink(missing_ok=True)

    def stored_bytes(self) -> int:
        """Size of all blobs together."""
        return sum(file.stat().st_size for file in (self._directory / "blobs").glob("*/*"))

    def save_snapshot(self, n_events: int, text: str) -> None:
        """None is kept: the events are folded anew."""

    def load_snapshot(self) -> tuple[int, str] | None:
        """There is none."""
        return None

    def close(self) -> None:
        """Let go of the file; the ledger can be opened again."""
        self._database.close()

    def __enter__(self) -> "SqliteLedger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _blob_file(self, name: str) -> Path:
        return self._directory / "blobs" / name[:2] / name

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise


def _connect(file: Path) -> sqlite3.Connection:
    """A connection that commits only when told to; threads may hand it to each other, one at a time."""
    return sqlite3.connect(file, timeout=BUSY_S, isolation_level=None, check_same_thread=False)


def _prepare(database: sqlite3.Connection, directory: Path) -> int:
    """Set the file up, or check what it is; returns how many events it holds."""
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version == 0:
        database.executescript(_SCHEMA)
    _check_format(database, directory)
    (n_events,) = database.execute("SELECT coalesce(max(number), 0) FROM event").fetchone()
    return n_events


def _check_format(database: sqlite3.Connection, directory: Path) -> None:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version != FORMAT:
        raise StorageError(f"{directory / FILE}: format {version}, this program reads format {FORMAT}")


def _holds(file: Path, data: bytes) -> bool:
    """Whether the blob is there already and sound; a damaged one is written anew."""
    return file.exists() and file.stat().st_size == len(data) and file.read_bytes() == data


def _write_durably(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        with fresh.open("xb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(file)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    for directory in (file.parent, file.parent.parent):
        _flush_directory(directory)


def _flush_directory(directory: Path) -> None:
    """Make a rename durable; on systems where a directory cannot be opened the rename is all there is."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _as_storage_error(directory: Path) -> Iterator[None]:
    """Turn what the system says into one sentence."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise StorageError(f"{directory}: another process wrote to this ledger; stop it, and start again") from None
    except sqlite3.Error as error:
        raise StorageError(f"{directory / FILE}: {error}; free space or check permissions, then start again") from None
    except OSError as error:
        hint = "free some space" if error.errno == errno.ENOSPC else "check the folder and its permissions"
        raise StorageError(
            f"{error.filename or directory}: {error.strerror or error}; {hint}, then start again"
        ) from None

"""One connection to the ledger's file: reading in one unchanging view, writing all or nothing."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from tinylora.failpoints import around, reach

BUSY_S = 10.0

around("ledger.open.file", "ledger.open.wal", "ledger.close.checkpoint")


class Database:
    """A file with a ledger, or one in which nothing is yet.

    It begins and commits only when told to; threads may hand it to each other, one at a time.

    Args:
        file: For a writer, made if it is not there.
        is_readonly: Whatever would change the file is refused.

    Raises:
        OSError: The file cannot be made.
        SQLAlchemyError: It cannot be opened, or is no database.
    """

    def __init__(self, file: Path, *, is_readonly: bool) -> None:
        if not is_readonly:
            _touch(file)
        self._open = _open_reader if is_readonly else _open_writer
        self._connection = create_engine("sqlite://", creator=lambda: self._open(file), poolclass=NullPool).connect()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One view of the file, whatever is written meanwhile."""
        try:
            self._connection.exec_driver_sql("BEGIN")
            yield self._connection
        finally:
            self._roll_back()

    @contextmanager
    def writing(self, name: str) -> Iterator[Connection]:
        """All of it or nothing.

        Args:
            name: Of the failpoints, registered by `register_transaction`. The one behind the commit is the caller's to
                reach, once it has noted what it wrote.

        Yields:
            The connection, with an open transaction.
        """
        reach(f"{name}.begin.before")
        try:
            self._connection.exec_driver_sql("BEGIN IMMEDIATE")
            reach(f"{name}.begin.after")
            yield self._connection
            reach(f"{name}.commit.before")
            self._connection.commit()
        except BaseException:
            self._roll_back()
            raise

    def close(self) -> None:
        """Let go of the file. The last to do so moves what was written from the log into the file itself."""
        try:
            reach("ledger.close.checkpoint.before")
        finally:
            self._connection.close()
        reach("ledger.close.checkpoint.after")

    def _roll_back(self) -> None:
        """Nothing is under way any more, whatever a failed commit has left."""
        with contextlib.suppress(SQLAlchemyError, sqlite3.Error):
            self._connection.rollback()
            raw = self._connection.connection.dbapi_connection
            if raw is not None and raw.in_transaction:
                raw.rollback()


def register_transaction(name: str, *steps: str) -> None:
    """Register the failpoints of `Database.writing` under this name, and of the steps in between."""
    around(*(f"{name}.{step}" for step in ("begin", *steps, "commit")))


def _touch(file: Path) -> None:
    reach("ledger.open.file.before")
    os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
    reach("ledger.open.file.after")


def _open_writer(file: Path) -> sqlite3.Connection:
    database = _connect(file.absolute().as_uri())
    try:
        reach("ledger.open.wal.before")
        database.execute("PRAGMA journal_mode = WAL")
        reach("ledger.open.wal.after")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        database.close()
        raise
    return database


def _open_reader(file: Path) -> sqlite3.Connection:
    """Where nothing can be written, SQLite cannot make its shared memory, and there is no writer to share it with."""
    is_fixed = not os.access(file.parent, os.W_OK)
    database = _connect(file.absolute().as_uri() + ("?immutable=1" if is_fixed else ""))
    database.execute("PRAGMA query_only = ON")
    return database


def _connect(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(uri, uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False)

"""Which format a ledger file has, and whether this program can read it."""

from pathlib import Path

from sqlalchemy import Connection

from tinylora.errors import StorageError
from tinylora.failpoints import around

FIRST = "0001"
"""Events alone; such files carry no mark of Alembic's."""
HEAD = "0002"
FORMAT = 2
"""The same as SQLite's user_version, which older programs look at."""

# Of the steps in `migrations/`, which are loaded only when they are needed.
around("ledger.migrate.chain", "ledger.migrate.tables")


def revision_of(connection: Connection, file: Path) -> str:
    """The migration that made this file; nothing for a file in which nothing is yet.

    Raises:
        StorageError: A newer program wrote it.
    """
    names = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").scalars().all()
    number = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    revision = FIRST if "event" in names else ""
    if "alembic_version" in names:
        revision = (
            connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one_or_none() or revision
        )
    if number > FORMAT or revision > HEAD:
        newest = max(number, int(revision) if revision.isdecimal() else 0)
        raise StorageError(
            f"{file}: format {newest}, this program reads up to format {FORMAT}; install the TinyLoRA that wrote it"
        )
    return revision

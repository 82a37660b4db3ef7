"""SQLite files of a run: copied while others write to them, and looked at before anybody believes them."""

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tinylora.errors import StorageError
from tinylora.ledger.schema import FORMAT as LEDGER_FORMAT
from tinylora.ledger.sqlite import SqliteLedger
from tinylora_coordinator.backup.contents import LEDGER, OPERATOR
from tinylora_coordinator.operator_store import BUSY_S, OperatorStore


@dataclass(frozen=True)
class LedgerFacts:
    """What a ledger's copy says, once all of it was found in order."""

    n_events: int = 0
    chain: str = ""
    blobs: frozenset[str] = frozenset()
    """Those that must be there."""
    workers: frozenset[str] = frozenset()


def copy_database(source: Path, target: Path) -> None:
    """Make `target` what `source` is at one moment, whoever writes to it meanwhile; nobody waits for us.

    Pages that hold what was deleted are not copied.

    Raises:
        StorageError: `source` cannot be read, or is damaged; or `target` cannot be written.
    """
    try:
        with closing(_opened(source)) as database:
            database.execute("VACUUM INTO ?", (str(target),))
        target.chmod(0o600)
    except sqlite3.Error as error:
        raise StorageError(f"{source}: {error}; look at it with verify-log, and at the space on the disk") from None


def read_ledger(folder: Path) -> LedgerFacts:
    """Walk over the ledger in `folder`: chain, tables, pages. Of blobs only the names are looked at.

    Raises:
        StorageError: Something is wrong with it, or it is of an older format.
    """
    file = folder / LEDGER
    if not file.exists():
        return LedgerFacts()
    check_plain(file)
    with SqliteLedger.open_readonly(folder) as ledger:
        n_events, chain = ledger.head()
        log = ledger.check()
        if log.faults:
            raise StorageError(f"{LEDGER}: {len(log.faults)} faults, the first one: {log.faults[0]}")
        workers = frozenset(str(row["worker"]) for row in ledger.rows("worker"))
    return LedgerFacts(n_events, chain, frozenset(log.blobs), workers)


def bring_up_to_date(folder: Path) -> None:
    """A ledger of an older format becomes one of the present, as at the first `serve` with this program.

    Raises:
        StorageError: It is damaged, or of a newer format.
    """
    if not (folder / LEDGER).exists():
        return
    check_plain(folder / LEDGER)
    with closing(_opened(folder / LEDGER)) as database:
        version = database.execute("PRAGMA user_version").fetchone()[0]
    if version < LEDGER_FORMAT:
        with SqliteLedger(folder):
            return


def read_operator(folder: Path) -> frozenset[str]:
    """The workers that the operator's file in `folder` knows; it is brought to the present format.

    Raises:
        StorageError: It is damaged, or of a newer format.
    """
    file = folder / OPERATOR
    if not file.exists():
        return frozenset()
    check_plain(file)
    try:
        with OperatorStore(folder) as store:
            for read in (store.jobs, store.access_tokens, lambda: store.tokens(0.0)):
                read()
            return frozenset(worker.worker for worker in store.workers())
    except (ValueError, TypeError) as error:
        raise StorageError(f"{OPERATOR}: {error}") from None


def check_plain(file: Path) -> None:
    """Refuse a file that is damaged, or that holds anything but tables and their indexes.

    Views and triggers would be carried out when we read or write; none of our files has any.

    Raises:
        StorageError: It does.
    """
    try:
        with closing(_opened(file)) as database:
            kinds = "SELECT type, name FROM sqlite_master WHERE type NOT IN ('table', 'index') OR sql LIKE '%VIRTUAL%'"
            odd = database.execute(kinds).fetchone()
            pages = database.execute("PRAGMA integrity_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        raise StorageError(f"{file.name}: {error}") from None
    if odd is not None:
        raise StorageError(f"{file.name}: holds a {odd[0]} {str(odd[1])[:40]!r}; a run's files hold tables alone")
    if pages != "ok":
        raise StorageError(f"{file.name}: the file is damaged: {str(pages)[:100]}")


def _opened(file: Path) -> sqlite3.Connection:
    database = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_S, isolation_level=None)
    database.execute("PRAGMA trusted_schema = OFF")
    return database

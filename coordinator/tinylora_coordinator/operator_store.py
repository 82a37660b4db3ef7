"""What the operator decided, in DIR/operator.sqlite: tokens, who may take part, and orders for the rounds.

    token    who may join: hash of the secret, until when, how many workers; never the secret itself
    access   who may look or steer: the same for people
    worker   who joined with which token and key, and whether he is approved, waits for it, or was revoked
    job      orders, oldest first, with what became of them

Several processes use it at once: the commands write, the link enrols workers, the rounds carry orders out. Every
change is one short transaction that takes the write lock first, so that what it has read still holds when it writes.
Times are arguments, in seconds since 1970, so that the same calls have the same outcome.
"""

import errno
import hmac
import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import sqlalchemy as sql
from sqlalchemy import event, exc

from tinylora.errors import DiskFull, SettingError, StorageError
from tinylora.failpoints import around, reach
from tinylora.federation.ports import Order, OrderKind
from tinylora.flower.join_token import JoinToken, new_secret, new_token_id
from tinylora_coordinator.access_tokens import AccessToken, KnownToken, TokenRole, hash_secret

FILE = "operator.sqlite"
FORMAT = 2
"""1 had no table `access`, and no nodes in orders; it is brought up to date when it is opened."""
DAY_S = 86_400.0
BUSY_S = 10.0
around("operator.commit")

WorkerState: TypeAlias = Literal["pending", "approved", "revoked"]
PlainKind: TypeAlias = Literal["pause", "resume", "finish", "record"]
"""Kinds of orders that are about no worker."""
TokenState: TypeAlias = Literal["open", "used_up", "expired", "revoked"]
EnrolmentCode: TypeAlias = Literal["token", "expired", "token_revoked", "used_up", "banned"]

_META = sql.MetaData()
_TOKENS = sql.Table(
    "token",
    _META,
    sql.Column("token_id", sql.Text, primary_key=True),
    sql.Column("secret_sha256", sql.Text, nullable=False),
    sql.Column("created_s", sql.REAL, nullable=False),
    sql.Column("expires_s", sql.REAL, nullable=False),
    sql.Column("max_workers", sql.Integer, nullable=False),
    sql.Column("tags", sql.Text, nullable=False),
    sql.Column("needs_approval", sql.Integer, nullable=False),
    sql.Column("revoked_s", sql.REAL),
    sqlite_strict=True,
)
_ACCESS = sql.Table(
    "access",
    _META,
    sql.Column("token_id", sql.Text, primary_key=True),
    sql.Column("role", sql.Text, sql.CheckConstraint("role IN ('viewer', 'admin')"), nullable=False),
    sql.Column("secret_sha256", sql.Text, nullable=False),
    sql.Column("created_s", sql.REAL, nullable=False),
    sql.Column("expires_s", sql.REAL, nullable=False),
    sql.Column("revoked_s", sql.REAL),
    sql.Column("note", sql.Text, nullable=False),
    sqlite_strict=True,
)
_WORKERS = sql.Table(
    "worker",
    _META,
    sql.Column("worker", sql.Text, primary_key=True),
    sql.Column("public_key", sql.Text, nullable=False, unique=True),
    sql.Column("token_id", sql.Text, sql.ForeignKey("token.token_id"), nullable=False),
    sql.Column("name", sql.Text, nullable=False),
    sql.Column("state", sql.Text, sql.CheckConstraint("state IN ('pending', 'approved', 'revoked')"), nullable=False),
    sql.Column("first_seen_s", sql.REAL, nullable=False),
    sqlite_strict=True,
)
_JOBS = sql.Table(
    "job",
    _META,
    sql.Column("number", sql.Integer, primary_key=True),
    sql.Column("kind", sql.Text, nullable=False),
    sql.Column("worker", sql.Text, nullable=False),
    sql.Column("reason", sql.Text, nullable=False),
    sql.Column("given_s", sql.REAL, nullable=False),
    sql.Column("outcome", sql.Text),
    sql.Column("node", sql.Text, nullable=False, server_default=""),
    sqlite_strict=True,
)


@dataclass(frozen=True)
class Token:
    """A token as it is remembered: everything but the secret."""

    token_id: str
    created_s: float
    expires_s: float
    max_workers: int
    tags: tuple[str, ...]
    needs_approval: bool
    n_workers: int
    state: TokenState


@dataclass(frozen=True)
class Worker:
    """Somebody who came with a token and proved that he holds his key."""

    worker: str
    token_id: str
    name: str
    state: WorkerState
    first_seen_s: float
    tags: tuple[str, ...] = ()
    """Those of its token."""


@dataclass(frozen=True)
class Job:
    """An order with what became of it; no outcome yet means that it waits."""

    order: Order
    given_s: float
    outcome: str | None


@dataclass(frozen=True)
class Refused:
    """Why somebody may not take part."""

    code: EnrolmentCode
    reason: str


class OperatorStore:
    """The operator's file of one run. Implements `ports.Desk`.

    Args:
        root: The run's folder; the file is made if it is not there.

    Raises:
        StorageError: The folder cannot be written, or the file is of another format.
    """

    def __init__(self, root: Path) -> None:
        self._file = root / FILE
        self._engine = _engine(self._file)
        with self._read() as database:
            version = _version(database)
        if version in (0, 1):
            self._bring_up_to_date()
        elif version != FORMAT:
            raise StorageError(f"{self._file}: format {version}, this program reads format {FORMAT}")

    def _bring_up_to_date(self) -> None:
        """A new file gets all tables, one of format 1 what it lacks; if another process is quicker, nothing."""
        with self._write() as database:
            _META.create_all(database)
            if _version(database) == 1:
                database.exec_driver_sql("ALTER TABLE job ADD COLUMN node TEXT NOT NULL DEFAULT ''")
            database.exec_driver_sql(f"PRAGMA user_version = {FORMAT}")
        self._file.chmod(0o600)

    def close(self) -> None:
        """Let go of the file."""
        self._engine.dispose()

    def __enter__(self) -> "OperatorStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- tokens ---------------------------------------------------------------------------------------------------

    def create_token(
        self,
        pin: str,
        *,
        now_s: float,
        expires_in_s: float = DAY_S,
        max_workers: int = 1,
        tags: Sequence[str] = (),
        needs_approval: bool = False,
    ) -> JoinToken:
        """Make a token; this is the only time that anybody sees its secret.

        Args:
            pin: What a worker is to check the coordinator by, see `keys.pin_of`.
            now_s: The time.
            expires_in_s: Seconds for which new workers are let in; those that came stay.
            max_workers: How many different workers it lets in.
            tags: Shown beside the workers that came with it.
            needs_approval: Whether each waits until the operator approves it.

        Raises:
            SettingError: A number is not positive.
            StorageError: The file cannot be written.
        """
        if max_workers < 1 or expires_in_s <= 0:
            raise SettingError("token: expected at least one worker and a time in the future")
        token = JoinToken(pin, new_token_id(), new_secret())
        row = {
            "token_id": token.token_id,
            "secret_sha256": hash_secret(token.secret),
            "created_s": now_s,
            "expires_s": now_s + expires_in_s,
            "max_workers": max_workers,
            "tags": json.dumps(list(tags)),
            "needs_approval": int(needs_approval),
        }
        with self._write() as database:
            database.execute(sql.insert(_TOKENS).values(row))
        return token

    def tokens(self, now_s: float) -> list[Token]:
        """All tokens, oldest first.

        Raises:
            StorageError: The file cannot be read.
        """
        used = sql.select(_WORKERS.c.token_id, sql.func.count().label("n")).group_by(_WORKERS.c.token_id).subquery()
        query = (
            sql.select(_TOKENS, sql.func.coalesce(used.c.n, 0).label("n_workers"))
            .outerjoin(used, used.c.token_id == _TOKENS.c.token_id)
            .order_by(_TOKENS.c.created_s, _TOKENS.c.token_id)
        )
        with self._read() as database:
            return [_token(row, now_s) for row in database.execute(query)]

    def revoke_token(self, token_id: str, now_s: float) -> None:
        """Let nobody in by this token any more, be it a worker's or for people; workers that came with it stay.

        Raises:
            SettingError: There is no such token.
            StorageError: The file cannot be written.
        """
        with self._write() as database:
            if sum(database.execute(_revoke(table, token_id, now_s)).rowcount for table in (_TOKENS, _ACCESS)) == 0:
                raise SettingError(f"token {token_id}: no such token; `tinylora-coordinator token list` shows them")

    # --- tokens for people ------------------------------------------------------------------------------------------

    def create_access(
        self, role: TokenRole, mark: str, *, now_s: float, expires_in_s: float = DAY_S, note: str = ""
    ) -> AccessToken:
        """Make a viewer's or an admin's token; this is the only time that anybody sees its secret.

        Args:
            role: What its holder may do.
            mark: Of the run, see `access_tokens.mark_of`.
            now_s: The time.
            expires_in_s: Seconds for which it is good.
            note: For whom it is.

        Raises:
            SettingError: The time is not positive.
            StorageError: The file cannot be written.
        """
        if expires_in_s <= 0:
            raise SettingError("token: expected a time in the future")
        token = AccessToken(role, mark, new_token_id(), new_secret())
        row = {
            "token_id": token.token_id,
            "role": role,
            "secret_sha256": hash_secret(token.secret),
            "created_s": now_s,
            "expires_s": now_s + expires_in_s,
            "note": note,
        }
        with self._write() as database:
            database.execute(sql.insert(_ACCESS).values(row))
        return token

    def access_tokens(self) -> list[KnownToken]:
        """All tokens for people, oldest first.

        Raises:
            StorageError: The file cannot be read.
        """
        with self._read() as database:
            rows = database.execute(sql.select(_ACCESS).order_by(_ACCESS.c.created_s, _ACCESS.c.token_id))
            return [KnownToken(**row._mapping) for row in rows]

    def find_access(self, token_id: str) -> KnownToken | None:
        """One token for people, if it is known.

        Raises:
            StorageError: The file cannot be read.
        """
        with self._read() as database:
            row = database.execute(sql.select(_ACCESS).where(_ACCESS.c.token_id == token_id)).one_or_none()
            return None if row is None else KnownToken(**row._mapping)

    # --- workers --------------------------------------------------------------------------------------------------

    def enrol(
        self,
        worker: str,
        public_key: str,
        *,
        name: str,
        token_id: str,
        secret: str,
        now_s: float,
        check: Callable[[], None] = lambda: None,
        is_trial: bool = False,
    ) -> Worker | Refused:
        """Let somebody in who has proved that he holds `public_key`, or say why not.

        Whoever is known stays so and needs no token. A stranger takes one of his token's places; that they are counted
        and taken in one transaction keeps the cap, however many come at once. An unknown token and a wrong secret have
        the same answer, after the same comparison.

        Args:
            worker: His name, from the key.
            public_key: PEM.
            name: What he calls himself.
            token_id: Of the token that he shows; may be empty if he is known.
            secret: Of that token.
            now_s: The time.
            check: Called before a stranger with a good token is written down; if it raises, he never was here.
            is_trial: Write nothing down, and take no place of the token.

        Raises:
            StorageError: The file cannot be written.
        """
        with self._write() as database:
            if (known := _find_worker(database, worker)) is not None:
                return Refused("banned", _BANNED) if known.state == "revoked" else known
            token = database.execute(sql.select(_TOKENS).where(_TOKENS.c.token_id == token_id)).one_or_none()
            expected = token.secret_sha256 if token is not None else hash_secret("")
            is_right = hmac.compare_digest(hash_secret(secret), expected)
            if token is None or not is_right:
                return Refused("token", _UNKNOWN)
            taken = sql.select(sql.func.count()).where(_WORKERS.c.token_id == token_id)
            if refused := _judge(token, database.execute(taken).scalar_one(), now_s):
                return refused
            check()
            state: WorkerState = "pending" if token.needs_approval else "approved"
            row = {"worker": worker, "public_key": public_key, "token_id": token_id, "name": name, "state": state}
            if not is_trial:
                database.execute(sql.insert(_WORKERS).values(row | {"first_seen_s": now_s}))
            return Worker(worker, token_id, name, state, now_s, tuple(json.loads(token.tags)))

    def workers(self) -> list[Worker]:
        """All workers, first come first.

        Raises:
            StorageError: The file cannot be read.
        """
        with self._read() as database:
            rows = database.execute(_select_workers().order_by(_WORKERS.c.first_seen_s, _WORKERS.c.worker))
            return [_worker(row) for row in rows]

    def find(self, worker: str) -> Worker | None:
        """One worker, if he is known.

        Raises:
            StorageError: The file cannot be read.
        """
        with self._read() as database:
            return _find_worker(database, worker)

    def is_approved(self, worker: str) -> bool:
        """Whether the door may let this worker through now.

        Raises:
            StorageError: The file cannot be read.
        """
        found = self.find(worker)
        return found is not None and found.state == "approved"

    def approve(self, worker: str) -> None:
        """Let a waiting worker in.

        Raises:
            SettingError: He is unknown, or was revoked.
            StorageError: The file cannot be written.
        """
        with self._write() as database:
            known = _known(database, worker)
            if known.state == "revoked":
                raise SettingError(f"worker {worker}: was revoked; it may come back with a new key and a new token")
            database.execute(sql.update(_WORKERS).where(_WORKERS.c.worker == worker).values(state="approved"))

    def revoke(self, worker: str, *, reason: str, now_s: float) -> Order:
        """Shut the door on a worker at once, and order that his share is taken out of the run.

        Raises:
            SettingError: He is unknown.
            StorageError: The file cannot be written.
        """
        return self._remove("revoke", worker, reason, now_s)

    def erase(self, worker: str, *, reason: str, now_s: float) -> Order:
        """As `revoke`, and order that no blob of his stays.

        Raises:
            SettingError: He is unknown.
            StorageError: The file cannot be written.
        """
        return self._remove("erase", worker, reason, now_s)

    def _remove(self, kind: OrderKind, worker: str, reason: str, now_s: float) -> Order:
        with self._write() as database:
            _known(database, worker)
            database.execute(sql.update(_WORKERS).where(_WORKERS.c.worker == worker).values(state="revoked"))
            return _add_job(database, kind, worker, reason, now_s)

    # --- orders ---------------------------------------------------------------------------------------------------

    def order(self, kind: PlainKind, *, reason: str = "", now_s: float) -> Order:
        """Leave an order for the rounds.

        Raises:
            StorageError: The file cannot be written.
        """
        with self._write() as database:
            return _add_job(database, kind, "", reason, now_s)

    def steer(
        self, kind: Literal["release", "reassign"], worker: str, *, node: str = "", reason: str = "", now_s: float
    ) -> Order:
        """Leave an order about a worker that stays in the run.

        Raises:
            SettingError: He is unknown.
            StorageError: The file cannot be written.
        """
        with self._write() as database:
            _known(database, worker)
            return _add_job(database, kind, worker, reason, now_s, node)

    def orders(self) -> Sequence[Order]:
        """Orders that were not carried out yet, oldest first.

        Raises:
            StorageError: The file cannot be read.
        """
        return [job.order for job in self.jobs() if job.outcome is None]

    def jobs(self) -> list[Job]:
        """All orders, oldest first.

        Raises:
            StorageError: The file cannot be read.
        """
        with self._read() as database:
            return [_job(row) for row in database.execute(sql.select(_JOBS).order_by(_JOBS.c.number))]

    def done(self, order: Order, outcome: str) -> None:
        """Note what became of an order; the first note stays.

        Raises:
            StorageError: The file cannot be written.
        """
        change = sql.update(_JOBS).where(_JOBS.c.number == int(order.order_id), _JOBS.c.outcome.is_(None))
        with self._write() as database:
            database.execute(change.values(outcome=outcome))

    # --- transactions ---------------------------------------------------------------------------------------------

    @contextmanager
    def _read(self) -> Iterator[sql.Connection]:
        with _told(self._file), self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as database:
            yield database

    @contextmanager
    def _write(self) -> Iterator[sql.Connection]:
        """One transaction: after it, all that was changed is on disk, or nothing was changed."""
        with _told(self._file):
            with self._engine.begin() as database:
                yield database
                reach("operator.commit.before")
            reach("operator.commit.after")


_BANNED = "this worker has been removed from the run"
_UNKNOWN = "the join token is unknown or its secret is wrong; copy all of it, or ask the operator for a new one"


def _version(database: sql.Connection) -> int:
    return database.exec_driver_sql("PRAGMA user_version").scalar_one()


def _judge(token: Any, n_taken: int, now_s: float) -> Refused | None:
    """Why a token whose secret was right lets nobody in, if so."""
    if token.revoked_s is not None:
        return Refused("token_revoked", "the join token was revoked; ask the operator for a new one")
    if token.expires_s <= now_s:
        return Refused("expired", "the join token has expired; ask the operator for a new one")
    if n_taken >= token.max_workers:
        return Refused(
            "used_up",
            f"the join token was for {token.max_workers} worker{'s' if token.max_workers > 1 else ''} and has been "
            "used; join with the --home that used it, or ask the operator for a new one",
        )
    return None


def _revoke(table: sql.Table, token_id: str, now_s: float) -> sql.Update:
    """The first time stays."""
    revoked_s = sql.func.coalesce(table.c.revoked_s, now_s)
    return sql.update(table).where(table.c.token_id == token_id).values(revoked_s=revoked_s)


def _token(row: Any, now_s: float) -> Token:
    refused = _judge(row, row.n_workers, now_s)
    states: dict[str, TokenState] = {"token_revoked": "revoked", "expired": "expired", "used_up": "used_up"}
    return Token(
        token_id=row.token_id,
        created_s=row.created_s,
        expires_s=row.expires_s,
        max_workers=row.max_workers,
        tags=tuple(json.loads(row.tags)),
        needs_approval=bool(row.needs_approval),
        n_workers=row.n_workers,
        state="open" if refused is None else states[refused.code],
    )


def _select_workers() -> sql.Select[Any]:
    return sql.select(_WORKERS, _TOKENS.c.tags).join(_TOKENS, _TOKENS.c.token_id == _WORKERS.c.token_id)


def _find_worker(database: sql.Connection, worker: str) -> Worker | None:
    row = database.execute(_select_workers().where(_WORKERS.c.worker == worker)).one_or_none()
    return None if row is None else _worker(row)


def _known(database: sql.Connection, worker: str) -> Worker:
    found = _find_worker(database, worker)
    if found is None:
        raise SettingError(f"worker {worker}: no such worker; `tinylora-coordinator workers` shows them")
    return found


def _worker(row: Any) -> Worker:
    return Worker(row.worker, row.token_id, row.name, row.state, row.first_seen_s, tuple(json.loads(row.tags)))


def _add_job(
    database: sql.Connection, kind: OrderKind, worker: str, reason: str, now_s: float, node: str = ""
) -> Order:
    row = {"kind": kind, "worker": worker, "reason": reason, "given_s": now_s, "node": node}
    (number,) = database.execute(sql.insert(_JOBS).values(row)).inserted_primary_key or (0,)
    return Order(str(number), kind, worker, reason, node)


def _job(row: Any) -> Job:
    kind = row.kind
    if kind not in get_args(OrderKind):
        raise StorageError(f"{FILE}: an order of kind {kind!r}, which this program does not know")
    return Job(Order(str(row.number), kind, row.worker, row.reason, row.node), row.given_s, row.outcome)


def _engine(file: Path) -> sql.Engine:
    """Transactions begin with the write lock; pysqlite's own habits are switched off."""
    engine = sql.create_engine(
        sql.URL.create("sqlite", database=str(file)),
        connect_args={"timeout": BUSY_S, "check_same_thread": False},
        poolclass=sql.pool.QueuePool,
    )

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        _use_wal(connection)
        for pragma in ("synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def began(connection: sql.Connection) -> None:
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _use_wal(connection: sqlite3.Connection) -> None:
    """Readers beside a writer. SQLite does not wait when this changes, so we do: two may open a new file at once."""
    end = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
        time.sleep(0.02)


@contextmanager
def _told(file: Path) -> Iterator[None]:
    """Turn what the database says into one sentence."""
    try:
        yield
    except exc.SQLAlchemyError as error:
        cause = error.orig if isinstance(error, exc.DBAPIError) else None
        if isinstance(cause, sqlite3.Error) and cause.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise DiskFull(f"{file}: no space left; free some, then try again") from None
        raise StorageError(f"{file}: {cause or error}; check the folder and its permissions") from None
    except OSError as error:
        kind = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
        raise kind(f"{file}: {error.strerror or error}; check the folder, then try again") from None

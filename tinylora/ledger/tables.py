"""The schema as it is now. How it came to be stands in `migrations/`; a test holds the two against each other.

`event` is the truth. All others say again what the events say, in a form that can be asked; `rows` fills them in the
same transaction, `verify` compares them. Times are seconds on the coordinator's clock since the run began.
"""

from typing import Literal, TypeAlias

from sqlalchemy import (
    REAL,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
)

metadata = MetaData()

event = Table(
    "event",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("type", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("at_s", REAL, nullable=False),
    Column("chain", Text, nullable=False),
    sqlite_strict=True,
)

worker = Table(
    "worker",
    metadata,
    Column("worker", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("token", Text, nullable=False),
    Column("joined_event", Integer, ForeignKey("event.number"), nullable=False),
    Column("joined_at_s", REAL, nullable=False),
    Column("is_online", Integer, nullable=False),
    Column("standing", Text, nullable=False),
    Column("code", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("n_accepted", Integer, nullable=False),
    Column("n_rejected", Integer, nullable=False),
    Column("tokens", Integer, nullable=False),
    CheckConstraint("standing IN ('good', 'quarantined', 'revoked', 'erased')", name="standing"),
    sqlite_strict=True,
)

unit = Table(
    "unit",
    metadata,
    Column("unit_id", Text, primary_key=True),
    Column("worker", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("node", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("leased_event", Integer, ForeignKey("event.number"), nullable=False),
    Column("leased_at_s", REAL, nullable=False),
    Column("deadline_s", REAL, nullable=False),
    Column("n_steps", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("code", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("accepted_event", Integer, ForeignKey("event.number")),
    Column("closed_at_s", REAL),
    Column("tokens", Integer, nullable=False),
    Column("blob", Text, nullable=False),
    CheckConstraint("state IN ('leased', 'expired', 'pending', 'accepted', 'dropped', 'rejected')", name="state"),
    sqlite_strict=True,
)
Index("unit_by_worker", unit.c.worker, unit.c.state)

node_version = Table(
    "node_version",
    metadata,
    Column("node", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("event", Integer, ForeignKey("event.number"), nullable=False),
    Column("blob", Text, nullable=False),
    Column("momentum", Text, nullable=False),
    Column("n_steps", Integer, nullable=False),
    Column("contributors", Text, nullable=False),
    PrimaryKeyConstraint("node", "version"),
    sqlite_strict=True,
)

router_version = Table(
    "router_version",
    metadata,
    Column("version", Integer, primary_key=True),
    Column("event", Integer, ForeignKey("event.number"), nullable=False),
    Column("blob", Text, nullable=False),
    Column("drift", REAL, nullable=False),
    Column("contributors", Text, nullable=False),
    Column("reason", Text, nullable=False),
    sqlite_strict=True,
)

blob = Table(
    "blob",
    metadata,
    Column("sha256", Text, primary_key=True),
    Column("bytes", Integer, nullable=False),
    Column("first_event", Integer, ForeignKey("event.number"), nullable=False),
    Column("last_event", Integer, ForeignKey("event.number"), nullable=False),
    Column("state", Text, nullable=False),
    CheckConstraint("state IN ('live', 'pruned', 'erased')", name="state"),
    sqlite_strict=True,
)

TableName: TypeAlias = Literal["worker", "unit", "node_version", "router_version", "blob"]
DERIVED: dict[TableName, Table] = {
    "worker": worker,
    "unit": unit,
    "node_version": node_version,
    "router_version": router_version,
    "blob": blob,
}

"""Format 2: every event is chained to the one before it, and tables say what events say. Bodies stay as they are."""

import sqlalchemy as sa
from alembic import op

from tinylora.failpoints import reach
from tinylora.ledger.chain import START, linked

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Chain the events, and make the tables that are derived from them."""
    reach("ledger.migrate.chain.before")
    _chain_events()
    reach("ledger.migrate.chain.after")
    reach("ledger.migrate.tables.before")
    _make_tables()
    op.execute("PRAGMA user_version = 2")
    reach("ledger.migrate.tables.after")


def _chain_events() -> None:
    op.rename_table("event", "event_1")
    event = op.create_table(
        "event",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("at_s", sa.REAL, nullable=False),
        sa.Column("chain", sa.Text, nullable=False),
        sqlite_strict=True,
    )
    chain = START
    old = sa.text("SELECT number, type, body, at_s FROM event_1 ORDER BY number")
    for number, type_, body, at_s in op.get_bind().execute(old).fetchall():
        row = linked(chain, number, type_, body, at_s)
        op.get_bind().execute(event.insert().values(row._asdict()))
        chain = row.chain
    op.drop_table("event_1")


def _make_tables() -> None:
    op.create_table(
        "worker",
        sa.Column("worker", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("token", sa.Text, nullable=False),
        sa.Column("joined_event", sa.Integer, sa.ForeignKey("event.number"), nullable=False),
        sa.Column("joined_at_s", sa.REAL, nullable=False),
        sa.Column("is_online", sa.Integer, nullable=False),
        sa.Column("standing", sa.Text, nullable=False),
        sa.Column("code", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("n_accepted", sa.Integer, nullable=False),
        sa.Column("n_rejected", sa.Integer, nullable=False),
        sa.Column("tokens", sa.Integer, nullable=False),
        sa.CheckConstraint("standing IN ('good', 'quarantined', 'revoked', 'erased')", name="standing"),
        sqlite_strict=True,
    )
    op.create_table(
        "unit",
        sa.Column("unit_id", sa.Text, primary_key=True),
        sa.Column("worker", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("node", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("leased_event", sa.Integer, sa.ForeignKey("event.number"), nullable=False),
        sa.Column("leased_at_s", sa.REAL, nullable=False),
        sa.Column("deadline_s", sa.REAL, nullable=False),
        sa.Column("n_steps", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("code", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("accepted_event", sa.Integer, sa.ForeignKey("event.number")),
        sa.Column("closed_at_s", sa.REAL),
        sa.Column("tokens", sa.Integer, nullable=False),
        sa.Column("blob", sa.Text, nullable=False),
        sa.CheckConstraint(
            "state IN ('leased', 'expired', 'pending', 'accepted', 'dropped', 'rejected')", name="state"
        ),
        sqlite_strict=True,
    )
    op.create_index("unit_by_worker", "unit", ["worker", "state"])
    op.create_table(
        "node_version",
        sa.Column("node", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("event", sa.Integer, sa.ForeignKey("event.number"), nullable=False),
        sa.Column("blob", sa.Text, nullable=False),
        sa.Column("momentum", sa.Text, nullable=False),
        sa.Column("n_steps", sa.Integer, nullable=False),
        sa.Column("contributors", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("node", "version"),
        sqlite_strict=True,
    )
    op.create_table(
        "router_version",
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("event", sa.Integer, sa.ForeignKey("event.number"), nullable=False),
        sa.Column("blob", sa.Text, nullable=False),
        sa.Column("drift", sa.REAL, nullable=False),
        sa.Column("contributors", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sqlite_strict=True,
    )
    op.create_table(
        "blob",
        sa.Column("sha256", sa.Text, primary_key=True),
        sa.Column("bytes", sa.Integer, nullable=False),
        sa.Column("first_event", sa.Integer, sa.ForeignKey("event.number"), nullable=False),
        sa.Column("last_event", sa.Integer, sa.ForeignKey("event.number"), nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.CheckConstraint("state IN ('live', 'pruned', 'erased')", name="state"),
        sqlite_strict=True,
    )

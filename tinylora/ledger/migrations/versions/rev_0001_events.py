"""Format 1: events in order, nothing else."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the table of events."""
    op.create_table(
        "event",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("at_s", sa.REAL, nullable=False),
        sqlite_strict=True,
    )
    op.execute("PRAGMA user_version = 1")

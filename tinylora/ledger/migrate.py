"""From whatever format a folder has to the present one, in the caller's transaction: all of it or nothing."""

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

from tinylora.ledger.schema import HEAD


def upgrade(connection: Connection, revision: str) -> None:
    """Carry out every step after `revision`; nothing is committed.

    Args:
        connection: With an open transaction.
        revision: Where the file stands, as `schema.revision_of` says: nothing for an empty file.
    """
    config = Config()
    config.set_main_option("script_location", "tinylora.ledger:migrations")
    config.attributes["connection"] = connection
    if revision:
        command.stamp(config, revision)
    command.upgrade(config, HEAD)

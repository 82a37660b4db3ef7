"""Alembic runs this file to carry out steps, on the connection it was given and inside its open transaction."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()

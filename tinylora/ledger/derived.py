"""The derived tables in SQLite: changes carried out, all rows written, rows asked for."""

from collections.abc import Iterable

from sqlalchemy import Connection, select, update
from sqlalchemy.dialects.sqlite import insert

from tinylora.ledger.rows import Change, Put, Row, Tables, Value
from tinylora.ledger.tables import DERIVED, TableName


def apply_changes(connection: Connection, wanted: Iterable[Put | Change]) -> None:
    """Carry out what an event changes, in order."""
    for change in wanted:
        if isinstance(change, Put):
            _put(connection, change)
        else:
            _change(connection, change)


def write_rows(connection: Connection, tables: Tables) -> None:
    """These rows and no others are in the derived tables."""
    for name, table in DERIVED.items():
        connection.execute(table.delete())
        if tables[name]:
            connection.execute(table.insert(), list(tables[name].values()))


def read_rows(connection: Connection, name: TableName, **where: Value) -> list[Row]:
    """Rows of a table whose columns have these values, in the order of their keys."""
    table = DERIVED[name]
    query = select(table).where(*(table.c[column] == value for column, value in where.items()))
    found = connection.execute(query.order_by(*table.primary_key.columns))
    return [dict(row) for row in found.mappings()]


def _put(connection: Connection, put: Put) -> None:
    table = DERIVED[put.table]
    keys = [column.name for column in table.primary_key]
    statement = insert(table).values(dict(put.row))
    taken = {name: statement.excluded[name] for name in put.row if name not in put.keep and name not in keys}
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=taken))


def _change(connection: Connection, change: Change) -> None:
    table = DERIVED[change.table]
    added = {name: table.c[name] + amount for name, amount in change.add.items()}
    statement = update(table).values({**change.values, **added})
    connection.execute(statement.where(*(table.c[name].in_(allowed) for name, allowed in change.where.items())))

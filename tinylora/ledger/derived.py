"""The derived tables in SQLite: changes carried out, all rows written, rows asked for."""

from collections.abc import Iterable
from functools import cache

from sqlalchemy import Connection, Update, bindparam, or_, select, update
from sqlalchemy.dialects.sqlite import Insert, insert

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
    statement = _put_statement(put.table, tuple(put.row), put.keep)
    connection.execute(statement, dict(put.row))


def _change(connection: Connection, change: Change) -> None:
    allowed = {name: len(values) for name, values in change.where.items()}
    statement = _change_statement(change.table, tuple(allowed.items()), tuple(change.values), tuple(change.add))
    connection.execute(
        statement,
        {
            **{f"set_{name}": value for name, value in change.values.items()},
            **{f"add_{name}": amount for name, amount in change.add.items()},
            **{
                f"is_{name}_{place}": value
                for name, values in change.where.items()
                for place, value in enumerate(values)
            },
        },
    )


# Building a statement takes longer than running it, and there are only a few of them.


@cache
def _put_statement(name: TableName, columns: tuple[str, ...], keep: frozenset[str]) -> Insert:
    table = DERIVED[name]
    keys = [column.name for column in table.primary_key]
    statement = insert(table)
    taken = {column: statement.excluded[column] for column in columns if column not in keep and column not in keys}
    return statement.on_conflict_do_update(index_elements=keys, set_=taken)


@cache
def _change_statement(
    name: TableName, allowed: tuple[tuple[str, int], ...], columns: tuple[str, ...], added: tuple[str, ...]
) -> Update:
    table = DERIVED[name]
    values = {column: bindparam(f"set_{column}") for column in columns}
    sums = {column: table.c[column] + bindparam(f"add_{column}") for column in added}
    conditions = (
        or_(*(table.c[column] == bindparam(f"is_{column}_{place}") for place in range(n))) for column, n in allowed
    )
    return update(table).where(*conditions).values({**values, **sums})

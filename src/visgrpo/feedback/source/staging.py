"""Copy a source into the table `events`, with columns of the schema's types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from visgrpo.errors import UserError
from visgrpo.feedback.source.schemas import Column, Schema, identifier, only_row

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_NUMERIC = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "FLOAT", "DOUBLE", "DECIMAL",
            "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT", "BOOLEAN")  # fmt: skip
DEFAULTS = {"shown": "1::DOUBLE", "tie": "false"}
"""What a column holds where the source has none, so that no query has to ask."""


def stage(
    connection: DuckDBPyConnection,
    name: str,
    relation: str,
    schema: Schema,
    found: Mapping[str, str],
    *,
    skip: int = 0,
) -> None:
    """Create the table `events`: row (from 1), then the schema's columns that the source has.

    Numbers are doubles, times seconds since 1970. One pass: what cannot be read as its type is put
    beside it as text, in columns that stay empty in a good source.

    Args:
        relation: SQL of the source.
        found: {canonical column: the source's column}.
        skip: rows at the beginning that are not the source's own.

    Raises:
        UserError: a value has the wrong type: row, column and value are named.
    """
    described = connection.execute(f"DESCRIBE FROM {relation}").fetchall()
    types = {row[0]: str(row[1]).upper() for row in described}
    columns = [column for column in schema.columns if column.name in found]
    values, unreadable = [], []
    for column in columns:
        source = identifier(found[column.name])
        native = types[found[column.name]]
        value = _value(column, source, native)
        values.append(f"{value} AS {identifier(column.name)}")
        if column.type != "text" and not _is_native(column, native):
            text = _text(source)
            wrong = f"CASE WHEN {value} IS NULL THEN {text} END"
            unreadable.append((column, f"{wrong} AS {_unreadable(column)}"))
    absent = [column for column in schema.columns if column.name not in found]
    defaults = [f"{DEFAULTS[c.name]} AS {c.name}" for c in absent if c.name in DEFAULTS]
    selected = ", ".join([*values, *defaults, *(text for _, text in unreadable)])
    rows = f"(SELECT * FROM {relation} OFFSET {skip})" if skip else relation
    connection.execute(
        f"CREATE TABLE staged AS SELECT row_number() OVER () AS row, {selected} FROM {rows}"
    )
    _refuse_unreadable(connection, name, [column for column, _ in unreadable])
    for column in columns:
        if column.type == "flag":
            _settle_flag(connection, name, column)
    # A view of the same name may have been the source of a query.
    connection.execute("DROP VIEW IF EXISTS events")
    connection.execute("ALTER TABLE staged RENAME TO events")


def _is_native(column: Column, native: str) -> bool:
    if column.type == "time" and native.startswith(("TIMESTAMP", "DATE")):
        return True
    return native.startswith(_NUMERIC)


def _value(column: Column, source: str, native: str) -> str:
    """Return SQL for a column's value in its type, null where it cannot be read as that."""
    if column.type == "text":
        return _text(source)
    if _is_native(column, native):
        is_moment = column.type == "time" and not native.startswith(_NUMERIC)
        return f"epoch({source})" if is_moment else f"CAST({source} AS DOUBLE)"
    text = _text(source)
    number = f"TRY_CAST({text} AS DOUBLE)"
    if column.type == "time":
        return f"coalesce({number}, epoch(TRY_CAST({text} AS TIMESTAMPTZ)))"
    if column.type in ("whole", "flag"):
        return f"coalesce({number}, CAST(TRY_CAST({text} AS BOOLEAN) AS DOUBLE))"
    return number


def _text(source: str) -> str:
    """CSV cannot tell an empty text from none, so nobody does."""
    return f"nullif(CAST({source} AS VARCHAR), '')"


def _unreadable(column: Column) -> str:
    return f"unreadable_{column.name}"


def _refuse_unreadable(connection: DuckDBPyConnection, name: str, columns: list[Column]) -> None:
    for column in columns:
        text = _unreadable(column)
        count, row, value = only_row(
            connection,
            f"SELECT count({text}), min(row) FILTER ({text} IS NOT NULL), arg_min({text}, row) "
            "FROM staged",
        )
        if count:
            raise UserError(_wrong_type(name, row, column, value, count))
        connection.execute(f"ALTER TABLE staged DROP COLUMN {text}")


def _settle_flag(connection: DuckDBPyConnection, name: str, column: Column) -> None:
    flag = identifier(column.name)
    count, row, value = only_row(
        connection,
        f"SELECT count(*), min(row), arg_min({flag}, row) FROM staged WHERE {flag} NOT IN (0, 1)",
    )
    if count:
        raise UserError(_wrong_type(name, row, column, f"{value:g}", count))
    as_flag = f"coalesce({flag}, 0) = 1"
    connection.execute(f"ALTER TABLE staged ALTER {flag} SET DATA TYPE BOOLEAN USING {as_flag}")


def _wrong_type(name: str, row: int, column: Column, value: str, count: int) -> str:
    wanted = {
        "number": "a number",
        "whole": "a whole number, or true or false",
        "flag": "true or false",
        "time": "a number of seconds or a timestamp such as 2026-01-31 12:00:00",
    }[column.type]
    more = f" ({count} rows have such values.)" if count > 1 else ""
    return f'{name}, row {row}: {column.name} is "{value}", it must be {wanted}.{more}'

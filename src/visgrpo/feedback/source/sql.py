"""Small pieces of SQL, and reading a single row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


def literal(text: str) -> str:
    """Quote a text for those parts of SQL that take no parameters."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """Quote the name of a column or table."""
    return '"' + name.replace('"', '""') + '"'


def only_row(
    connection: DuckDBPyConnection, sql: str, parameters: Mapping[str, Any] | None = None
) -> tuple[Any, ...]:
    """Return the row of a query that has exactly one, such as an aggregate over all rows."""
    (row,) = connection.execute(sql, dict(parameters or {})).fetchall()
    return row

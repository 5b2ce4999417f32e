"""What must hold for every row of a table of feedback, checked in the database."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from visgrpo.errors import UserError
from visgrpo.feedback.source.schemas import Column, Schema, identifier, only_row

if TYPE_CHECKING:
    from collections.abc import Collection

    from duckdb import DuckDBPyConnection

DAY = 86_400.0
_ROWS_NAMED = 3


def rows_text(count: int) -> str:
    """Write a number of rows: "1 row", "2,000 rows"."""
    return "1 row" if count == 1 else f"{count:,} rows"


@dataclass(frozen=True)
class Rule:
    """What no row may be.

    Attributes:
        broken: SQL condition; $now is the time of the check.
        says: SQL text of what is wrong with a row.
        mend: what to do about it.
    """

    broken: str
    says: str
    mend: str


def check_events(
    connection: DuckDBPyConnection,
    name: str,
    schema: Schema,
    columns: Collection[str],
    *,
    now: float,
) -> None:
    """Check every row of the table `events`.

    Args:
        columns: canonical columns that the source has.
        now: seconds since 1970.

    Raises:
        UserError: rows break a rule: the first ones are named, with a value and the mend.
    """
    rules = list(_rules(schema, columns))
    counts = ", ".join(f"count(*) FILTER ({rule.broken})" for rule in rules)
    found = only_row(connection, f"SELECT {counts} FROM events", _parameters(counts, now))
    for rule, count in zip(rules, found, strict=True):
        if count:
            raise UserError(_complaint(connection, name, rule, count, now))


def note_clock(connection: DuckDBPyConnection, name: str) -> str | None:
    """Return a remark on times that lie before that of the row above, None if there are none."""
    count, row = only_row(
        connection,
        "SELECT count(*), min(row) FROM "
        "(SELECT row, time < lag(time) OVER () AS back FROM events) WHERE back",
    )
    if not count:
        return None
    return (
        f"the clock of {name} goes backwards {_times(count)}, first at row {row}: rows are not in "
        "order"
    )


def check_duplicates(
    connection: DuckDBPyConnection, name: str, schema: Schema, columns: Collection[str]
) -> None:
    """Refuse rows that repeat another one in every column.

    Only where a row has a value that tells events apart: without a time or a user two people may
    well have done the same.

    Raises:
        UserError: there are duplicates.
    """
    if not set(schema.identifying) & set(columns):
        return
    _mark_duplicates(connection, schema, columns)
    count, row, first = only_row(
        connection, "SELECT count(*), min(row), arg_min(first, row) FROM duplicates"
    )
    if count:
        all_of_them = f" ({rows_text(count)} in all do so)" if count > 1 else ""
        raise UserError(
            f"{name}, row {row} repeats row {first} in every column{all_of_them}. Log every event "
            "once, or drop duplicates with --drop-duplicates."
        )


def drop_duplicates(
    connection: DuckDBPyConnection, schema: Schema, columns: Collection[str]
) -> int:
    """Delete rows that repeat an earlier one, as `check_duplicates` finds them; return how many."""
    if not set(schema.identifying) & set(columns):
        return 0
    _mark_duplicates(connection, schema, columns)
    connection.execute("DELETE FROM events WHERE row IN (SELECT row FROM duplicates)")
    return int(only_row(connection, "SELECT count(*) FROM duplicates")[0])


def _mark_duplicates(
    connection: DuckDBPyConnection, schema: Schema, columns: Collection[str]
) -> None:
    """Create the table `duplicates` of rows that repeat an earlier one, and that one's number.

    Rows are compared only where their hashes are equal: whole rows of a large log would not fit
    into memory.
    """
    names = ", ".join(identifier(c.name) for c in schema.columns if c.name in columns)
    told = [f"{identifier(name)} IS NOT NULL" for name in schema.identifying if name in columns]
    connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE duplicates AS
        WITH hashed AS (
            SELECT hash({names}) AS h, row FROM events WHERE {" OR ".join(told)}
        ),
        repeated AS (SELECT h FROM hashed GROUP BY h HAVING count(*) > 1),
        suspects AS (SELECT row FROM hashed SEMI JOIN repeated USING (h)),
        numbered AS (
            SELECT row, min(row) OVER (PARTITION BY {names}) AS first
            FROM events SEMI JOIN suspects USING (row)
        )
        SELECT row, first FROM numbered WHERE row > first
        """
    )


def _rules(schema: Schema, columns: Collection[str]) -> Iterator[Rule]:
    for column in schema.columns:
        if column.name in columns:
            yield from _column_rules(column)
    if schema.kind == "impressions":
        yield Rule(
            "clicked > shown",
            "format('clicked is {:g} but shown is {:g}', clicked, shown)",
            "A row that counts several clicks needs a column shown that counts as many or more.",
        )
    if schema.kind == "preferences":
        yield Rule(
            "preferred = rejected",
            "format('\"{}\" is preferred to itself', preferred)",
            "Preferred and rejected must be two labels.",
        )


def _column_rules(column: Column) -> Iterator[Rule]:
    quoted = identifier(column.name)
    if not column.nullable:
        mend = "Every row needs one."
        if not column.required:
            mend = "Give one in every row, or leave the column out with --query."
        yield Rule(f"{quoted} IS NULL", f"'{column.name} is missing'", mend)
    if column.type in ("text", "flag"):
        return
    value = f"format('{column.name} is {{:g}}', {quoted})"
    yield Rule(f"NOT isfinite({quoted})", value, "It must be a finite number.")
    if column.type == "whole":
        yield Rule(f"{quoted} <> floor({quoted})", value, "It must be a whole number.")
    if column.name in ("shown", "clicked", "votes", "dwell"):
        yield Rule(f"{quoted} < 0", value, "It cannot be negative.")
    if column.name == "position":
        yield Rule("position < 1", value, "Positions are counted from 1.")
    if column.name == "propensity":
        yield Rule(
            "propensity <= 0 OR propensity > 1",
            value,
            "It is the probability of the label under the policy that was logged: above 0, at "
            "most 1.",
        )
    if column.name == "time":
        yield Rule(
            f"time > $now + {DAY}",
            "format('time {:.0f} lies in the future', time)",
            "Times are seconds since 1970 (not milliseconds) or timestamps.",
        )


def _complaint(
    connection: DuckDBPyConnection, name: str, rule: Rule, count: int, now: float
) -> str:
    query = (
        f"SELECT row, {rule.says} FROM events WHERE {rule.broken} ORDER BY row LIMIT {_ROWS_NAMED}"
    )
    rows = connection.execute(query, _parameters(query, now)).fetchall()
    more = ""
    if count > 1:
        numbers = ", ".join(str(row) for row, _ in rows)
        more = f" ({rows_text(count)}: {numbers}{', …' if count > len(rows) else ''}.)"
    return f"{name}, row {rows[0][0]}: {rows[0][1]}. {rule.mend}{more}"


def _parameters(sql: str, now: float) -> dict[str, float]:
    return {"now": now} if "$now" in sql else {}


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"

"""Find the classes that the labels of a table of feedback mean."""

from __future__ import annotations

from collections.abc import Sequence

from visgrpo.errors import UserError, nearest
from visgrpo.feedback.source.events import Events
from visgrpo.feedback.source.schemas import SCHEMAS
from visgrpo.feedback.source.sql import identifier


def match_labels(events: Events, classes: Sequence[str]) -> None:
    """Create the table labels(label, k), as `matching.match` says.

    Raises:
        UserError: a label is no class.
    """
    import pyarrow as pa

    connection = events.connection
    places = pa.array(range(len(classes)), pa.int32())
    connection.register(
        "given_classes", pa.table({"name": pa.array(classes, pa.string()), "k": places})
    )
    union = " UNION ALL ".join(
        f"SELECT {identifier(column)} AS label, row FROM events"
        for column in SCHEMAS[events.kind].labels
    )
    connection.execute(
        rf"""
        CREATE OR REPLACE TABLE classes AS FROM given_classes;
        CREATE OR REPLACE TEMP TABLE said AS
            SELECT label, min(row) AS row FROM ({union}) GROUP BY label;
        CREATE OR REPLACE TABLE labels AS
        WITH folded AS (
            SELECT lower(name) AS name, min(k) AS k FROM classes
            GROUP BY lower(name) HAVING count(*) = 1
        ),
        ids AS (
            SELECT k FROM classes
            WHERE (SELECT count(*) FROM classes WHERE TRY_CAST(name AS DOUBLE) IS NOT NULL) = 0
        )
        SELECT label, coalesce(exact.k, folded.k, ids.k) AS k, row FROM said
        LEFT JOIN classes AS exact ON exact.name = label
        LEFT JOIN folded ON folded.name = lower(label)
        LEFT JOIN ids
            ON ids.k = CASE WHEN regexp_full_match(label, '\d+') THEN TRY_CAST(label AS BIGINT) END
        """
    )
    connection.unregister("given_classes")
    unknown = connection.execute(
        "SELECT label, row, count(*) OVER () FROM labels WHERE k IS NULL ORDER BY row LIMIT 1"
    ).fetchall()
    for label, row, count in unknown:
        more = f" ({count:,} labels are unknown.)" if count > 1 else ""
        raise UserError(
            f'{events.name}, row {row}: unknown label "{label}". {nearest(label, classes)}{more}'
        )
    connection.execute("ALTER TABLE labels DROP COLUMN row")


def logged_labels(events: Events) -> tuple[str, ...]:
    """Return the labels that a table of feedback speaks of, sorted."""
    columns = SCHEMAS[events.kind].labels
    union = " UNION ".join(f"SELECT DISTINCT {column} FROM events" for column in columns)
    return tuple(sorted(label for (label,) in events.connection.execute(union).fetchall()))

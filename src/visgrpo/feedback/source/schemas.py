"""The four tables of feedback: their columns, and which of them a source holds."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from visgrpo.errors import UserError, nearest

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

Kind = Literal["impressions", "votes", "preferences", "grades"]
Type = Literal["text", "number", "whole", "flag", "time"]

IMAGE_NAMES = ("image", "image_id", "path", "file", "filename")
"""Names that the column of the image may have; the first of them that is there is taken."""
_BESIDE = ("id", "judgement")
"""Columns that number rows, and the judgements of a store of `visgrpo feedback collect`."""


@dataclass(frozen=True)
class Column:
    """One column of a schema.

    Attributes:
        type: text; number; whole (a whole number, or true and false for 1 and 0); flag (true or
            false, null counts as false); time (seconds since 1970, or a timestamp, UTC if it does
            not say).
        nullable: a null means that the value was not recorded.
    """

    name: str
    type: Type
    required: bool = False
    nullable: bool = False


@dataclass(frozen=True)
class Schema:
    """The columns of one kind of feedback.

    Attributes:
        marks: columns that no other kind has: a source with one of them is meant to be this kind.
        labels: columns that name a class.
        identifying: with any of these a row is one event, and a second one like it a duplicate.
    """

    kind: Kind
    columns: tuple[Column, ...]
    marks: tuple[str, ...]
    labels: tuple[str, ...]
    identifying: tuple[str, ...]

    @property
    def required(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns if column.required)


_IMAGE = Column("image", "text", required=True)
_LABEL = Column("label", "text", required=True)
_USER = Column("user", "text", nullable=True)

SCHEMAS: Mapping[Kind, Schema] = {
    "impressions": Schema(
        "impressions",
        (
            _IMAGE,
            _LABEL,
            Column("shown", "whole"),
            Column("clicked", "whole", required=True),
            Column("dwell", "number", nullable=True),
            Column("position", "whole", nullable=True),
            Column("propensity", "number"),
            Column("time", "time"),
            _USER,
        ),
        marks=("clicked",),
        labels=("label",),
        identifying=("time",),
    ),
    "votes": Schema(
        "votes",
        (_IMAGE, _LABEL, Column("votes", "whole", required=True), _USER),
        marks=("votes",),
        labels=("label",),
        identifying=("user",),
    ),
    "preferences": Schema(
        "preferences",
        (
            _IMAGE,
            Column("preferred", "text", required=True),
            Column("rejected", "text", required=True),
            Column("tie", "flag", nullable=True),
            Column("time", "time"),
            _USER,
        ),
        marks=("preferred", "rejected"),
        labels=("preferred", "rejected"),
        identifying=("time", "user"),
    ),
    "grades": Schema(
        "grades",
        (_IMAGE, _LABEL, Column("grade", "number", required=True), Column("time", "time"), _USER),
        marks=("grade",),
        labels=("label",),
        identifying=("time", "user"),
    ),
}


def canonical_columns(names: Iterable[str]) -> dict[str, str]:
    """Return {canonical name: the source's name} of the columns that a schema knows.

    Capitals do not matter. Of several names for the image the first of `IMAGE_NAMES` counts.
    """
    known = {column.name for schema in SCHEMAS.values() for column in schema.columns}
    by_lower: dict[str, str] = {}
    for name in names:
        by_lower.setdefault(name.strip().lower(), name)
    found = {name: by_lower[name] for name in by_lower if name in known}
    for alias in IMAGE_NAMES:
        if alias in by_lower:
            found["image"] = by_lower[alias]
            break
    return found


def kinds_of(names: Collection[str]) -> list[Kind]:
    """Return the kinds whose required columns are all among the canonical names."""
    return [kind for kind, schema in SCHEMAS.items() if set(schema.required) <= set(names)]


def find_schema(source: str, names: Collection[str], kind: Kind | None = None) -> Schema:
    """Return the schema of a source with these columns.

    Args:
        source: what messages call it.
        names: the source's own column names.
        kind: which kind is meant, where the columns suit several; None finds out.

    Raises:
        UserError: the columns suit no kind, several kinds, or not the one that is meant.
    """
    found = canonical_columns(names)
    fitting = kinds_of(found)
    if kind is not None:
        fitting = [kind] if kind in fitting else []
    if len(fitting) == 1:
        return SCHEMAS[fitting[0]]
    if fitting:
        raise UserError(
            f"{source} could be {' or '.join(fitting)}: leave the columns of one of them out "
            "with --query."
        )
    meant = [schema for schema in SCHEMAS.values() if set(schema.marks) & set(found)]
    if kind is not None:
        if not set(SCHEMAS[kind].marks) & set(found) and meant:
            raise UserError(
                f"{source} holds {meant[0].kind}, not {kind}, which need the columns "
                f"{', '.join(SCHEMAS[kind].required)}."
            )
        meant = [SCHEMAS[kind]]
    if len(meant) == 1:
        missing = next(name for name in meant[0].required if name not in found)
        hint = nearest(missing, names) if names else ""
        raise UserError(
            f'{source} has no column "{missing}", which {meant[0].kind} need. {hint}'.rstrip()
        )
    needs = "; ".join(f"{schema.kind}: {', '.join(schema.required)}" for schema in SCHEMAS.values())
    raise UserError(
        f"{source} is no table of feedback: its columns are {_listed(names)}. Needed are, of "
        f"{needs}."
    )


def note_unused(name: str, names: Iterable[str], schema: Schema) -> tuple[str, ...]:
    """Return a remark on a source's columns that nothing asks for: one may be called wrongly."""
    known = {column.name for each in SCHEMAS.values() for column in each.columns}
    known |= {*IMAGE_NAMES, *_BESIDE}
    unused = [each for each in names if each.strip().lower() not in known]
    if not unused:
        return ()
    absent = [c.name for c in schema.columns if c.name not in canonical_columns(names)]
    meant = ((each, difflib.get_close_matches(each.lower(), absent, 1, 0.75)) for each in unused)
    asked = "".join(f'; is "{each}" the {found[0]}?' for each, found in meant if found)
    are = "columns are" if len(unused) > 1 else "column is"
    return (f"of {name} {len(unused)} {are} not used: {_listed(unused)}{asked}",)


def _listed(names: Collection[str], most: int = 12) -> str:
    shown = list(names)[:most]
    return ", ".join(shown) + (", …" if len(names) > most else "") if shown else "none"


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

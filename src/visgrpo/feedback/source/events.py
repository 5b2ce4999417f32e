"""A table of feedback, staged and checked in a DuckDB database on disk."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from visgrpo.errors import UserError, nearest
from visgrpo.feedback.source.checks import check_duplicates, check_events, note_clock, rows_text
from visgrpo.feedback.source.checks import drop_duplicates as drop_duplicate_rows
from visgrpo.feedback.source.exports import Exported, exported
from visgrpo.feedback.source.schemas import (
    Column,
    Kind,
    Schema,
    canonical_columns,
    find_schema,
    identifier,
    kinds_of,
    note_unused,
    only_row,
)
from visgrpo.feedback.source.sources import (
    Address,
    Database,
    file_relation,
    find_files,
    open_database,
    parse_address,
    reading,
)
from visgrpo.locks import FolderLock

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


MEMORY_LIMIT = "512MB"
_FAULTY = {"faulty": "common_subplan"}
_PREFIX = "visgrpo-feedback-"
_SECONDS_TO_LOCK = 60.0  # that a process may take from making a folder to locking it
_THREADS = 4  # each has buffers of its own, beside the limit


@dataclass(frozen=True)
class Events(AbstractContextManager["Events"]):
    """The rows of one table of feedback, in a database of their own that `close` removes.

    Attributes:
        name: what messages call the source.
        kind: which of the four tables it is.
        columns: canonical columns that the source has.
        rows: how many there are.
        notes: remarks on what is unusual but no mistake.
        folder: where its files lie, which paths in it are relative to; here for a server's table.
        connection: has the table `events`: row (from 1), then the canonical columns; numbers are
            doubles, times seconds since 1970, `shown` and `tie` are there in any case.
    """

    name: str
    kind: Kind
    columns: frozenset[str]
    rows: int
    notes: tuple[str, ...]
    folder: Path
    connection: DuckDBPyConnection = field(repr=False)
    _resources: ExitStack = field(repr=False)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close()
        if error is not None:
            with reading(self.name):  # a full disk comes up wherever it will
                raise error

    def close(self) -> None:
        """Close the database and remove its files."""
        self._resources.close()


def open_events(
    spec: str,
    *,
    query: str | None = None,
    kind: Kind | None = None,
    drop_duplicates: bool = False,
) -> Events:
    """Copy a table of feedback into a database on disk and check every row.

    Memory is bounded whatever the size of the source. The database lies below the folder for
    temporary files (TMPDIR) and takes about as much room as the source.

    Args:
        spec: a .csv, .tsv, .jsonl, .json or .parquet file, a folder or glob of such parts, an
            SQLite file or ``sqlite:///file.db?table=NAME``, or ``postgresql://…``.
        query: SQL whose result is the table: run by the database that it is meant for, or on files
            by DuckDB, where the files are called `events`.
        kind: which table is meant, where a source could be several.
        drop_duplicates: leave repeated events out; otherwise they are a mistake.

    Raises:
        UserError: the source cannot be read, is no table of feedback, or a row is wrong.
    """
    with ExitStack() as resources:
        place = _temporary(resources)
        connection = resources.enter_context(closing(_connect(place)))
        export: Exported | None = None
        address = parse_address(spec)
        if address is None:
            files = find_files(spec)
            folder = files[0].parent
            export = exported(files) if query is None else None  # a query finds its own way
            if export is None:
                name, schema, names = _stage_files(connection, spec, files, query, kind)
            else:
                name, schema, names = _stage_export(connection, place, spec, export, kind)
        else:
            folder = Path(address.target).expanduser().parent if address.is_file else Path()
            name, schema, names = _stage_database(connection, address, query, kind)
        columns = frozenset(canonical_columns(names)) & {column.name for column in schema.columns}
        with reading(name):
            notes = _check(connection, name, schema, columns, drop_duplicates)
        notes += note_unused(name, names, schema) + (export.notes() if export else ())
        return Events(
            name,
            schema.kind,
            columns,
            _count(connection),
            notes,
            folder,
            connection,
            resources.pop_all(),
        )


def _temporary(resources: ExitStack) -> Path:
    """Make a folder for a database, and remove those of processes that were killed."""
    try:
        made = tempfile.TemporaryDirectory(prefix=_PREFIX)
    except OSError as error:
        raise UserError(
            f"Feedback is copied into a folder for temporary files, and none can be made: "
            f"{error.strerror}. Set TMPDIR to one with room."
        ) from error
    folder = Path(resources.enter_context(made))
    resources.enter_context(FolderLock(folder, shared=False))
    for other in folder.parent.glob(f"{_PREFIX}*"):
        if other != folder and _is_left(other):
            with suppress(UserError), FolderLock(other, shared=False):
                shutil.rmtree(other, ignore_errors=True)
    return folder


def _is_left(folder: Path) -> bool:
    """Whether a folder is this user's, and so old that it has a lock if anyone uses it."""
    try:
        found = folder.lstat()
    except FileNotFoundError:  # its owner has just removed it
        return False
    is_own = os.name == "posix" and stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return is_own and time.time() - found.st_mtime > _SECONDS_TO_LOCK


def _connect(folder: Path) -> DuckDBPyConnection:
    import duckdb

    connection = duckdb.connect(
        str(folder / "events.duckdb"),
        config={
            "memory_limit": MEMORY_LIMIT,
            "temp_directory": str(folder),
            "threads": min(_THREADS, os.cpu_count() or 1),
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
        },
    )
    connection.execute("SET TimeZone = 'UTC'")
    # In a notebook it cannot even be switched off where what would draw it is missing.
    if only_row(connection, "SELECT current_setting('enable_progress_bar')")[0]:
        connection.execute("SET enable_progress_bar = false")
    # It takes parts of a query that differ in their columns for the same, and answers wrongly, in
    # many versions from 1.5.1 to 2.0.0 (duckdb/duckdb issues 24624, 25819 and others).
    if connection.execute("FROM duckdb_optimizers() WHERE name = $faulty", _FAULTY).fetchall():
        connection.execute("SET disabled_optimizers = $faulty", _FAULTY)
    return connection


def _count(connection: DuckDBPyConnection) -> int:
    return int(only_row(connection, "SELECT count(*) FROM events")[0])


def _check(
    connection: DuckDBPyConnection,
    name: str,
    schema: Schema,
    columns: frozenset[str],
    drop_duplicates: bool,
) -> tuple[str, ...]:
    """Check the staged rows; return remarks on them."""
    if not _count(connection):
        raise UserError(f"{name} has no rows.")
    check_events(connection, name, schema, columns, now=time.time())
    notes = []
    if drop_duplicates:
        dropped = drop_duplicate_rows(connection, schema, columns)
        notes += [f"{rows_text(dropped)} of {name} dropped as duplicates"] if dropped else []
    else:
        check_duplicates(connection, name, schema, columns)
    clock = note_clock(connection, name) if "time" in columns else None
    return (*notes, *([clock] if clock else []))


def _stage_files(
    connection: DuckDBPyConnection,
    spec: str,
    files: Sequence[Path],
    query: str | None,
    kind: Kind | None,
) -> tuple[str, Schema, Sequence[str]]:
    name = Path(spec).name
    with reading(name):
        relation = file_relation(connection, files, typed=query is not None)
        if query is not None:
            connection.execute(f"CREATE VIEW events AS FROM {relation}")
            relation, name = _bracketed(query), f"{name}, query"
        described = connection.execute(f"DESCRIBE FROM {relation}").fetchall()
        names = [row[0] for row in described]
        schema = find_schema(name, names, kind)
        stage(connection, name, relation, schema, canonical_columns(names))
    return name, schema, names


def _stage_export(
    connection: DuckDBPyConnection, folder: Path, spec: str, export: Exported, kind: Kind | None
) -> tuple[str, Schema, Sequence[str]]:
    name, names = Path(spec).name, export.export.columns
    schema, rows = find_schema(name, names, kind), folder / "export.parquet"
    export.write(rows)
    with reading(name):
        relation = file_relation(connection, [rows], typed=False)
        stage(connection, name, relation, schema, canonical_columns(names))
    return name, schema, names


def _stage_database(
    connection: DuckDBPyConnection, address: Address, query: str | None, kind: Kind | None
) -> tuple[str, Schema, Sequence[str]]:
    with open_database(address) as database:
        if query is not None:
            relation, name = _bracketed(query), f"{address.name}, query"
            names = database.columns(relation)
        else:
            table, names = _choose_table(database, kind)
            relation, name = database.relation(table), f"{address.name}, table {table}"
        schema, found = find_schema(name, names, kind), canonical_columns(names)
        wanted = {c.name: found[c.name] for c in schema.columns if c.name in found}
        with database.stream(relation, list(wanted.values())) as reader, reading(name):
            connection.register("stream", reader)
            stage(connection, name, "stream", schema, wanted, skip=1)
            connection.unregister("stream")
    return name, schema, names


def _bracketed(query: str) -> str:
    """A comment at the end must not swallow the bracket."""
    query = query.strip().rstrip("; \n")
    if not query:
        raise UserError(
            "--query is empty: give the SQL whose result is the table, or leave it out."
        )
    return f"({query}\n) AS query"


def _choose_table(database: Database, kind: Kind | None) -> tuple[str, list[str]]:
    """Return the table that is asked for, or the only one that is feedback, and its columns."""
    tables, address = database.tables(), database.address
    if address.table is not None:
        if address.table not in tables:
            hint = nearest(address.table, tables) if tables else "It has no tables."
            raise UserError(f'{address.name} has no table "{address.table}". {hint}')
        return address.table, tables[address.table]
    fitting = [
        table
        for table, names in tables.items()
        if (kinds := kinds_of(canonical_columns(names))) and kind in (None, *kinds)
    ]
    full = [table for table in fitting if not database.is_empty(database.relation(table))]
    chosen = full or fitting
    if len(chosen) == 1:
        return chosen[0], tables[chosen[0]]
    if chosen:
        raise UserError(
            f"{address.name} has several tables of feedback, {', '.join(chosen)}: choose one with "
            f"?table={chosen[0]} or a --query."
        )
    found = ", ".join(tables) or "none"
    raise UserError(
        f"{address.name} has no table of {kind or 'feedback'} (its tables: {found}): give a "
        "--query whose result has the columns."
    )


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

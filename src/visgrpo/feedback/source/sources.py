"""Where feedback is read from: files, which DuckDB reads itself, and databases.

SQLite and Postgres are read through ADBC: Arrow batches that go from one database into another.
"""

from __future__ import annotations

import csv
import errno
import glob
import gzip
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from visgrpo.errors import UserError, nearest
from visgrpo.feedback.source.schemas import identifier, literal

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

FORMATS = {
    ".csv": "CSV",
    ".tsv": "CSV",
    ".json": "JSON",
    ".jsonl": "JSON",
    ".ndjson": "JSON",
    ".parquet": "Parquet",
}
SQLITE_ENDINGS = (".db", ".sqlite", ".sqlite3")
SUPPORTED = "Feedback is a .csv, .tsv, .jsonl, .parquet or .db file, sqlite:///… or postgresql://…"
_DELIMITERS = ",;\t|"
_ADVICE = re.compile(r"Possible |\n\s*LINE \d|\n\s*(?i:query)( was)?:")
_POSTGRES = ("postgresql://", "postgres://")
_BUSY_MILLISECONDS = 2000
_LONGEST_LINE, _LONGEST_HEADER = 400, 2**20
_SQLITE_TABLES = """
    SELECT "table".name, "column".name FROM sqlite_master AS "table"
    JOIN pragma_table_info("table".name) AS "column"
    WHERE "table".type IN ('table', 'view') ORDER BY "table".rowid, "column".cid
"""
_POSTGRES_TABLES = """
    SELECT CASE table_schema WHEN current_schema() THEN '' ELSE table_schema || '.' END
        || table_name, column_name
    FROM information_schema.columns
    WHERE table_schema NOT IN ('pg_catalog', 'information_schema')
    ORDER BY table_schema, table_name, ordinal_position
"""


def find_files(spec: str) -> list[Path]:
    """Return the files of a path, of a folder of parts or of a glob, sorted by name.

    Raises:
        UserError: there are none, or they are not of one format.
    """
    path = Path(spec).expanduser()
    try:
        path.is_file()
    except OSError as error:
        if error.errno in (errno.EACCES, errno.ENAMETOOLONG):
            raise UserError(f'Feedback "{spec[:99]}" cannot be read: {error.strerror}.') from error
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and _format(file))
        if not files:
            raise UserError(f'Folder "{spec}" holds no .parquet, .csv or .jsonl file.')
    elif glob.has_magic(spec):
        files = sorted(map(Path, glob.glob(str(path), recursive=True)))
        if not files:
            raise UserError(f'"{spec}" matches no file.')
    else:
        raise UserError(not_found(path))
    formats = dict.fromkeys(map(_format, files))
    if None in formats:
        wrong = next(file for file in files if _format(file) is None)
        raise UserError(f'"{wrong}" cannot be read. {SUPPORTED}.')
    if len(formats) > 1:
        raise UserError(f'"{spec}" has files of several formats: give those of one.')
    return files


def not_found(path: Path) -> str:
    """Say that a file of feedback is missing, and which one may be meant."""
    if path.is_dir():
        return f'Feedback "{path}" is a folder, not a file.'
    if not path.parent.is_dir():
        return f'Feedback "{path}" not found: there is no folder "{path.parent}".'
    endings = (*FORMATS, *SQLITE_ENDINGS, ".gz")
    similar = sorted(file.name for file in path.parent.iterdir() if file.is_file())
    similar = [name for name in similar if name.lower().endswith(endings)]
    return f'Feedback "{path}" not found. {nearest(path.name, similar) if similar else SUPPORTED}'


def file_relation(connection: DuckDBPyConnection, files: Sequence[Path], *, typed: bool) -> str:
    """Return the SQL of a table function that reads files of one format.

    Args:
        typed: let DuckDB find out the types of text, as a query needs them; else text stays
            text, so that a value of the wrong type can be named.

    Raises:
        UserError: a CSV file has no header, or another one than the first.
    """
    # A file may be called "a[1].csv", which DuckDB would take for a pattern; and a folder
    # "user=x", which is no column.
    paths = ", ".join(literal(glob.escape(str(file))) for file in files)
    several = f"union_by_name = {len(files) > 1}"
    shared = f"[{paths}], hive_partitioning = false"
    form = _format(files[0])
    if form == "Parquet":
        return f"read_parquet({shared}, {several})"
    if form == "JSON":
        detected = f"read_json({shared}, {several}, sample_size = -1)"
        if typed:
            return detected
        names = [row[0] for row in connection.execute(f"DESCRIBE FROM {detected}").fetchall()]
        return f"read_json({shared}, columns = {_all_text(names)})"
    delimiter, line_end, names = _same_header(files)
    # Nothing is sniffed: what the first thousand lines look like need not hold below them.
    dialect = f"delim = {literal(delimiter)}, header = true, quote = '\"', escape = '\"'"
    if line_end == "\r":
        dialect += ", new_line = '\\r'"
    if typed:
        return f"read_csv({shared}, {several}, {dialect})"
    return f"read_csv({shared}, {dialect}, auto_detect = false, columns = {_all_text(names)})"


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn what DuckDB says of a source that it cannot read into `UserError`."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        is_full = os.strerror(errno.ENOSPC) in str(error)
        mend = ". Set TMPDIR to a folder with room" if is_full else ""
        raise UserError(f"{name}: {first_line(str(error))}{mend}") from error


def first_line(message: str) -> str:
    """Return a database's message without its advice, a copy of the query, or all of a long row."""
    told = _ADVICE.split(message, maxsplit=1)[0]
    line = "; ".join(line.strip() for line in told.splitlines() if line.strip())
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}…"


def _format(file: Path) -> str | None:
    return FORMATS.get(Path(file.name.lower().removesuffix(".gz")).suffix)


def _all_text(names: Sequence[str]) -> str:
    return "{" + ", ".join(f"{literal(name)}: 'VARCHAR'" for name in names) + "}"


def _same_header(files: Sequence[Path]) -> tuple[str, str, list[str]]:
    first = _header(files[0])
    for file in files[1:]:
        if _header(file) != first:
            raise UserError(
                f'"{file}" has another header than "{files[0].name}": parts need the same columns '
                "in the same order."
            )
    return first


def _header(file: Path) -> tuple[str, str, list[str]]:
    """Return delimiter, the end of a line and column names, from the first one of a CSV file."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
            text = lines.readline(_LONGEST_HEADER).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f'"{file}" is not UTF-8 text: save it as UTF-8.') from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f'"{file}" cannot be read: {error}.') from error
    line, line_end, _ = text.rstrip("\r\n").partition("\r")
    if not line.strip():
        raise UserError(f'"{file}" is empty: its first line must name the columns.')
    delimiter = max(_DELIMITERS, key=line.count)
    try:
        names = next(csv.reader([line], delimiter=delimiter))
    except csv.Error as error:
        raise UserError(f'"{file}": its first line names no columns: {error}.') from error
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f'"{file}": two columns are called "{twice}": rename one.')
    return delimiter, line_end, names


@dataclass(frozen=True)
class Address:
    """What a SPEC says about a database.

    Attributes:
        system: "SQLite" or "Postgres".
        name: what messages call it; it holds no password.
        target: path, or the address for libpq.
        table: the one that is asked for, if any.
    """

    system: str
    name: str
    target: str
    table: str | None

    @property
    def is_file(self) -> bool:
        return self.system == "SQLite"


def parse_address(spec: str) -> Address | None:
    """Read ``sqlite:///relative.db``, ``file.db`` or ``postgresql://…``; None for other files.

    Raises:
        UserError: it is an address, but none of these, or has an unknown option.
    """
    if spec.startswith(_POSTGRES):
        parts = urlsplit(spec)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        table = options.pop("table", None)
        name = f"postgresql://{parts.netloc.rpartition('@')[2]}{parts.path}"
        # Not urlunsplit: it takes the slashes from postgresql:///app, a server on a socket.
        target = spec.partition("?")[0] + ("?" + urlencode(options) if options else "")
        return Address("Postgres", name, target, table)
    path, _, query = spec.partition("?")
    if path.startswith("sqlite:///"):
        path = path.removeprefix("sqlite:///")
    elif "://" in path or path.startswith("sqlite:"):
        raise UserError(
            f'"{spec}" is no address of feedback: write sqlite:///relative.db, '
            "sqlite:////absolute/path.db or postgresql://…"
        )
    elif not path.lower().endswith(SQLITE_ENDINGS) or Path(path).is_dir():
        return None
    options = dict(parse_qsl(query, keep_blank_values=True))
    for option in options:
        if option != "table":
            raise UserError(f'"{spec}": unknown option "{option}". {nearest(option, ["table"])}')
    return Address("SQLite", Path(path).name, path, options.get("table"))


@dataclass(frozen=True)
class Database:
    """A database that is open for reading."""

    address: Address
    connection: Any

    def tables(self) -> dict[str, list[str]]:
        """Return {table or view: its columns}."""
        is_sqlite = self.address.system == "SQLite"
        found: dict[str, list[str]] = {}
        for table, column in self._rows(_SQLITE_TABLES if is_sqlite else _POSTGRES_TABLES):
            found.setdefault(table, []).append(column)
        return found

    def relation(self, table: str) -> str:
        """Return the quoted name of a table; in Postgres a schema may stand before it."""
        parts = table.split(".", 1) if self.address.system == "Postgres" else [table]
        return ".".join(map(identifier, parts))

    def columns(self, relation: str) -> list[str]:
        """Return the columns of a table or of a query in brackets."""
        with self.connection.cursor() as cursor:
            cursor.execute(f"SELECT * FROM {relation} LIMIT 0")
            return [column[0] for column in cursor.description]

    def is_empty(self, relation: str) -> bool:
        return not self._rows(f"SELECT 1 FROM {relation} LIMIT 1")

    @contextmanager
    def stream(self, relation: str, names: Sequence[str]) -> Iterator[Any]:
        """Yield an Arrow reader of some columns, all of them text.

        The first row, of empty texts, is not the table's. SQLite has no types of columns, and its
        driver guesses them from the first rows: nulls for long, or numbers for long and then a
        word, would end the stream.
        """
        head = ", ".join(f"'' AS {identifier(name)}" for name in names)
        texts = ", ".join(self._text(identifier(name)) for name in names)
        with self.connection.cursor() as cursor:
            cursor.execute(f"SELECT {head} UNION ALL SELECT {texts} FROM {relation}")
            yield cursor.fetch_record_batch()

    def _text(self, column: str) -> str:
        """Return SQL for a column as text that reads back as the very same number."""
        if self.address.system == "Postgres":
            return f"CAST({column} AS TEXT)"
        exact = f"printf('%!.17g', {column})"
        return f"CASE typeof({column}) WHEN 'real' THEN {exact} ELSE CAST({column} AS TEXT) END"

    def _rows(self, sql: str) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall()


@contextmanager
def open_database(address: Address) -> Iterator[Database]:
    """Open a database read-only.

    SQLite's locks belong to a process, and this driver brings an SQLite of its own: a process that
    has the file open for writing through another one must not read it here.

    Raises:
        UserError: it is missing, locked or no database, a query fails, or the driver is missing.
    """
    import adbc_driver_manager

    try:
        with _connect(address) as connection:
            yield Database(address, connection)
    except adbc_driver_manager.Error as error:
        raise UserError(explain(address, str(error))) from error


def explain(address: Address, message: str) -> str:
    """Return one line that says what a database's error message means, and the mend."""
    if "database is locked" in message:
        return (
            f"{address.name} is locked by a program that writes to it: close that, or copy the "
            "file and read the copy."
        )
    if "file is not a database" in message:
        return f'{address.name} is no SQLite database, whatever its name says: "{address.target}".'
    return f"{address.name}: {first_line(message)}"


def _connect(address: Address) -> Any:
    if address.system == "Postgres":
        return _connect_postgres(address)
    from adbc_driver_sqlite import dbapi

    path = Path(address.target).expanduser()
    if not path.is_file():
        raise UserError(not_found(path))
    connection = dbapi.connect(f"file:{quote(str(path))}?mode=ro", autocommit=True)
    with connection.cursor() as cursor:
        cursor.execute(f"PRAGMA busy_timeout = {_BUSY_MILLISECONDS}")
        cursor.fetchall()
    return connection


def _connect_postgres(address: Address) -> Any:
    try:
        from adbc_driver_postgresql import dbapi
    except ModuleNotFoundError as error:
        raise UserError('Reading Postgres needs: pip install "visgrpo[postgres]"') from error
    connection = dbapi.connect(address.target, autocommit=True)
    with connection.cursor() as cursor:
        # Rows come in the order of the table, and times in UTC.
        for setting in (
            "default_transaction_read_only = on",
            "synchronize_seqscans = off",
            "max_parallel_workers_per_gather = 0",
            "timezone = 'UTC'",
            "datestyle = 'ISO'",
        ):
            cursor.execute(f"SET {setting}")
    return connection

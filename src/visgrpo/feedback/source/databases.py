"""SQLite and Postgres, read through ADBC: Arrow batches that go from one database into another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from visgrpo.errors import UserError, nearest
from visgrpo.feedback.source.sources import SQLITE_ENDINGS, first_line, not_found
from visgrpo.feedback.source.sql import identifier

_POSTGRES = ("postgresql://", "postgres://")
_BUSY_MILLISECONDS = 2000
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
        target = urlunsplit(parts._replace(query=urlencode(options)))
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

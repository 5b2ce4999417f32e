"""Files of feedback: CSV, JSON lines and Parquet, which DuckDB reads itself."""

from __future__ import annotations

import csv
import glob
import gzip
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from visgrpo.errors import UserError, nearest
from visgrpo.feedback.source.sql import literal

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


def find_files(spec: str) -> list[Path]:
    """Return the files of a path, of a folder of parts or of a glob, sorted by name.

    Raises:
        UserError: there are none, or they are not of one format.
    """
    path = Path(spec).expanduser()
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
    delimiter, names = _same_header(files)
    # Nothing is sniffed: what the first thousand lines look like need not hold below them.
    dialect = f"delim = {literal(delimiter)}, header = true, quote = '\"', escape = '\"'"
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
        raise UserError(f"{name}: {first_line(str(error))}") from error


def first_line(message: str) -> str:
    """Return a database's message without its advice and without a copy of the query."""
    told = _ADVICE.split(message, maxsplit=1)[0]
    return "; ".join(line.strip() for line in told.splitlines() if line.strip())


def _format(file: Path) -> str | None:
    return FORMATS.get(Path(file.name.lower().removesuffix(".gz")).suffix)


def _all_text(names: Sequence[str]) -> str:
    return "{" + ", ".join(f"{literal(name)}: 'VARCHAR'" for name in names) + "}"


def _same_header(files: Sequence[Path]) -> tuple[str, list[str]]:
    first = _header(files[0])
    for file in files[1:]:
        if _header(file) != first:
            raise UserError(
                f'"{file}" has another header than "{files[0].name}": parts need the same columns '
                "in the same order."
            )
    return first


def _header(file: Path) -> tuple[str, list[str]]:
    """Return delimiter and column names from the first line of a CSV file."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
            line = lines.readline().decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f'"{file}" is not UTF-8 text: save it as UTF-8.') from error
    except (OSError, EOFError) as error:
        raise UserError(f'"{file}" cannot be read: {error}.') from error
    if not line.strip():
        raise UserError(f'"{file}" is empty: its first line must name the columns.')
    delimiter = max(_DELIMITERS, key=line.count)
    names = next(csv.reader([line], delimiter=delimiter))
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f'"{file}": two columns are called "{twice}": rename one.')
    return delimiter, names

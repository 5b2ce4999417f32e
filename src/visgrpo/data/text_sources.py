"""From what a user types (the built-in text, a file, a folder, a Hub name) to documents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visgrpo.data.identity import derived, joined, of_bytes, of_files
from visgrpo.data.table_columns import find_column, value_column
from visgrpo.data.tables import is_hub_name
from visgrpo.data.text import Documents, TextSplits, divide_documents, paragraphs
from visgrpo.data.text_tables import files_by_split, read_text, text_tables
from visgrpo.errors import UserError, nearest

BUILT_IN = ("topics",)
TEXT_COLUMNS = ("text",)


def load_text(
    spec: str, *, validation_fraction: float = 0.05, text_column: str | None = None
) -> TextSplits:
    """Load documents in three splits.

    The documents of .txt files are their paragraphs: what stands between blank lines. Those of a
    table are its rows. Splits that are not stored are the last documents of the text, in its order.

    Args:
        spec: "topics" (the documentation topics that ship with Python); a .txt file or a folder of
            them (train.txt, validation.txt and test.txt are splits); a .jsonl or .parquet file or a
            folder of them; or a data set of the Hub.
        validation_fraction: share of the train documents that makes each missing split.
        text_column: the column of a table that holds the text, when it is not called "text".

    Raises:
        UserError: if there is no such text, it is empty, not UTF-8 or too short to divide.
    """
    if spec in BUILT_IN:
        name, stored = spec, {"all": _topics()}
        identity = of_bytes(spec, (document.encode() for document in stored["all"]))
    else:
        path = Path(spec).expanduser()
        files = _text_files(path)
        if files:
            name = path.stem if path.is_file() else path.resolve().name
            stored = {split: _read_files(paths) for split, paths in files.items()}
            identity = of_files(file for paths in files.values() for file in paths)
        else:
            name, stored, identity = _read_tables(spec, path, text_column)
    return divide_documents(name, stored, fraction=validation_fraction, identity=identity)


def is_text(spec: str) -> bool:
    """Whether `spec` is text by itself: the built-in one, a .txt file or a folder of them."""
    return spec in BUILT_IN or bool(_text_files(Path(spec).expanduser()))


def _topics() -> Documents:
    from pydoc_data.topics import topics

    # Some topics quote others whole: each paragraph once, or the test split would be known.
    return tuple(dict.fromkeys(part for topic in topics.values() for part in paragraphs(topic)))


def _text_files(path: Path) -> dict[str, list[Path]]:
    if path.is_file():
        return {"all": [path]} if path.suffix == ".txt" else {}
    return files_by_split(path, ".txt") if path.is_dir() and not _has_tables(path) else {}


def _has_tables(folder: Path) -> bool:
    return any(any(folder.glob(pattern)) for pattern in ("*.jsonl", "*.parquet", "data/*.parquet"))


def _read_files(paths: Sequence[Path]) -> Documents:
    return tuple(document for path in paths for document in paragraphs(read_text(path)))


def _read_tables(
    spec: str, path: Path, text_column: str | None
) -> tuple[str, dict[str, Documents], str]:
    if path.is_dir() and not _has_tables(path):
        raise UserError(f"{path} holds no .txt, .jsonl or .parquet files; name another folder.")
    if path.is_file() and path.suffix not in (".jsonl", ".parquet"):
        raise UserError(
            f"{path} is no text that can be read: name a .txt, .jsonl or .parquet file."
        )
    if not path.exists() and not is_hub_name(spec) and "/" not in spec and not path.suffix:
        raise UserError(
            f'Unknown text "{spec}". {nearest(spec, BUILT_IN)} '
            "There is no file or folder of that name either."
        )
    tables = text_tables(spec)
    first = next(iter(tables.splits.values()))
    column = find_column(tables.name, first, "text", text_column, TEXT_COLUMNS)
    stored = {
        split: _documents(f"{tables.name}/{split}", column, value_column(table, column))
        for split, table in tables.splits.items()
    }
    identities = [derived(tables.identities[split], f"column {column}") for split in stored]
    return tables.name, stored, joined(identities)


def _documents(where: str, column: str, values: Sequence[Any]) -> Documents:
    for row, value in enumerate(values):
        if not isinstance(value, str) or not value.strip():
            what = "no text" if isinstance(value, str) or value is None else type(value).__name__
            raise UserError(
                f'{where}: row {row} has {what} in column "{column}"; fill it or drop the row.'
            )
    return tuple(values)

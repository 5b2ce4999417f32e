"""Tables of text: jsonl and parquet files, and data sets of the Hub, by split."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets

from visgrpo.data.folders import SPLIT_NAMES
from visgrpo.data.identity import of_files
from visgrpo.data.tables import Tables, hub_tables, is_hub_name, parquet_files, parquet_tables
from visgrpo.errors import UserError


def text_tables(spec: str) -> Tables:
    """Read a .jsonl or .parquet file, a folder of them, or a data set of the Hub.

    A folder's .jsonl files are called train.jsonl, validation.jsonl and test.jsonl, or are parts of
    one undivided table.

    Raises:
        UserError: if there is none, or it cannot be read as a table.
    """
    tables = _tables(spec)
    for split, table in tables.splits.items():
        if not len(table):
            raise UserError(f"{tables.name}/{split} holds no rows; leave it out or fill it.")
    return tables


def files_by_split(folder: Path, suffix: str) -> dict[str, list[Path]]:
    """Return the files of a folder that end in `suffix`, by split, or all as "all".

    Raises:
        UserError: if some are named for splits and others are not, or two for one split.
    """
    found = sorted(path for path in folder.glob(f"*{suffix}") if path.is_file())
    splits: dict[str, list[Path]] = {}
    for path in found:
        splits.setdefault(SPLIT_NAMES.get(path.stem.lower(), "all"), []).append(path)
    for split, paths in splits.items():
        if split != "all" and len(paths) > 1:
            raise UserError(f"{paths[0]} and {paths[1]} are both the {split} split; keep one.")
    if "all" in splits and len(splits) > 1:
        named = next(paths[0] for split, paths in splits.items() if split != "all")
        raise UserError(
            f"{folder}: {named.name} is named for a split but {splits['all'][0].name} is not; "
            f"call the files train{suffix}, validation{suffix} and test{suffix}, or none of them."
        )
    return splits


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, line ends as "\\n".

    Raises:
        UserError: if it cannot be read, is empty or is no text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    if not text.strip():
        raise UserError(f"{path} is empty; name a file with text.")
    if "\0" in text:
        raise UserError(f"{path} is a binary file (it holds zero bytes); name a file of text.")
    return text


def _tables(spec: str) -> Tables:
    path = Path(spec).expanduser()
    if path.is_dir():
        name, lines = path.resolve().name, files_by_split(path, ".jsonl")
        if lines:
            return _jsonl_tables(name, lines)
        files = parquet_files(path)
        if not files:
            raise UserError(f"{path} holds no .jsonl and no .parquet files; name another folder.")
        return parquet_tables(name, files)
    if path.is_file():
        if path.suffix == ".jsonl":
            return _jsonl_tables(path.stem, {"all": [path]})
        if path.suffix == ".parquet":
            return parquet_tables(path.stem, parquet_files(path))
        raise UserError(f"{path} is no table: name a .jsonl or .parquet file.")
    if not is_hub_name(spec) or path.suffix in (".jsonl", ".parquet", ".txt"):
        raise UserError(f"No such file or folder: {spec}; check the path.")
    return hub_tables(spec)


def _jsonl_tables(name: str, files: dict[str, list[Path]]) -> Tables:
    tables = {}
    for split, paths in files.items():
        rows = [row for path in paths for row in _rows(path)]
        columns = dict.fromkeys(column for row in rows for column in row)
        values = {column: [row.get(column) for row in rows] for column in columns}
        try:
            tables[split] = datasets.Dataset.from_dict(values)
        except (OverflowError, TypeError, ValueError) as error:  # pyarrow's are the last two
            reason = str(error).splitlines()[0].rstrip(".")
            raise UserError(
                f"{name}: the rows of its {split} table do not fit together ({reason}); give each "
                "column values of one kind."
            ) from error
    first = next(iter(tables))
    for split, table in tables.items():
        differing = sorted(set(table.column_names) ^ set(tables[first].column_names))
        if differing:
            raise UserError(
                f'{name}: column "{differing[0]}" is in only one of {first} and {split}; '
                "write them again with the same columns."
            )
    return Tables(name, tables, {split: of_files(paths) for split, paths in files.items()})


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the object of each line; a value of another kind than above it in the column fails."""
    kinds: dict[str, tuple[str, int]] = {}
    # splitlines() would also cut at the line separators that JSON allows inside strings.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path} line {number} is not JSON ({error.msg}, column {error.colno}); write one "
                "object per line."
            ) from error
        if not isinstance(row, dict) or not row:
            raise UserError(
                f'{path} line {number} is no JSON object with columns, such as {{"prompt": "…"}}.'
            )
        for column, value in row.items():
            kind = _kind(value)
            first, line_of_first = kinds.setdefault(column, (kind, number)) if kind else ("", 0)
            if kind and kind != first:
                raise UserError(
                    f'{path} line {number}: "{column}" is {kind}, but {first} in line '
                    f"{line_of_first}; give every row the same kind."
                )
        yield row


def _kind(value: Any) -> str:
    """Return what a JSON value is, in words; "" for null, which any column may hold."""
    names: Sequence[tuple[type | tuple[type, ...], str]] = (
        (bool, "true or false"),
        ((int, float), "a number"),
        (str, "text"),
        (list, "a list"),
        (dict, "an object"),
    )
    return next((name for kind, name in names if isinstance(value, kind)), "")

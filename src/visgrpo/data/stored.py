"""Tables as they are stored: parquet and jsonl files and data sets of the Hub, by split."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq

from visgrpo.data.names import split_of
from visgrpo.data.strings import Strings
from visgrpo.data.table import LazySequence, of_files
from visgrpo.errors import UserError, nearest
from visgrpo.files import parse_json
from visgrpo.texts import csv_rows, read_text

ALIASES = {
    "beans": "AI-Lab-Makerere/beans",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "food101": "ethz/food101",
    "imagenet-1k": "ILSVRC/imagenet-1k",
    "mnist": "ylecun/mnist",
    "oxford-pets": "timm/oxford-iiit-pet",
    "stl10": "tanganke/stl10",
    "tiny-imagenet": "zh-plus/tiny-imagenet",
}
TEXTS = ("string", "large_string")
_HUB_NAME = re.compile(r"[\w][\w.-]*/[\w.-]+")
_DIGITS = re.compile(r"\d+")
_WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})")
_NUMBER = re.compile(r"-?\d+(\.\d*)?([eE][+-]?\d+)?")
_KINDS: Sequence[tuple[type | tuple[type, ...], str]] = (
    (bool, "true or false"),
    ((int, float), "a number"),
    (str, "text"),
    (list, "a list"),
    (dict, "an object"),
)


@dataclass
class Stored:
    """The tables of a data set by split: "train", "validation", "test", or "all" when undivided.

    Attributes:
        name: what messages call the data set.
        tables: the table of each split.
        identities: names the content of each split, as in `visgrpo.data.table`.
        places: folders to which paths in a table may be relative, by split; none if in no folder.
        missing_ok: leave a missing file of a picture to be an error when it is used.
        classes: class names, once they are known.
        rows: of each split, those that can be used; all where it is not there.
        notes: what was decided on the way, by split; "" for the whole.
    """

    name: str
    tables: dict[str, datasets.Dataset]
    identities: dict[str, str]
    places: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    missing_ok: bool = False
    classes: tuple[str, ...] = ()
    rows: dict[str, np.ndarray] = field(default_factory=dict)
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def first(self) -> datasets.Dataset:
        """The table of one split: all have the same columns."""
        return next(iter(self.tables.values()))

    def plain(self, split: str, column: str) -> list[Any]:
        """Return the values of a column, names in the place of class ids where it has them."""
        values = self.tables[split].select_columns([column])[column][:]
        feature = self.tables[split].features[column]
        if isinstance(feature, datasets.ClassLabel):
            return [None if value is None else feature.int2str(value) for value in values]
        return list(values)

    def note(self, text: str, split: str = "") -> None:
        """Keep what was decided."""
        self.notes[split] = (*self.notes.get(split, ()), text)


def is_hub_name(spec: str) -> bool:
    """Return whether `spec` can name a data set of the Hub: "cifar100" or "uoft-cs/cifar100"."""
    return spec in ALIASES or _HUB_NAME.fullmatch(spec) is not None


def stored_in(path: Path, suffixes: Sequence[str]) -> Stored | None:
    """Read the tables that a file or folder holds, or return None if there are none.

    A folder may be one that `save_to_disk` wrote. Its .parquet files lie in it, in `data/` or
    deeper, as on the Hub; files of lines and CSV in it or, as metadata.csv, in the folders of its
    splits. They are named for splits, or parts of one undivided table.

    Args:
        path: of a file or a folder.
        suffixes: of the files to look for, the first that is there: ".jsonl", ".parquet", …

    Raises:
        UserError: if they cannot be read as one table.
    """
    name = path.resolve().name if path.is_dir() else path.stem
    if not path.is_dir():
        suffix = path.suffix.lower()
        return (
            _read_tables(name, {"all": [path]}, suffix, path.parent) if suffix in suffixes else None
        )
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _saved(name, path)
    for suffix in suffixes:
        files = _parquet_files(path) if suffix == ".parquet" else _files_of(path, suffix)
        if files:
            return _read_tables(name, files, suffix, path)
    return None


def _files_of(folder: Path, suffix: str) -> dict[str, list[Path]]:
    """Return the tables in a folder by split, or else those in the folders of its splits."""
    found = files_by_split(folder, suffix)
    if suffix == ".json":  # most of that name are no tables
        found.pop("all", None)
    if found:
        return found
    inner = {split_of(entry.name): entry for entry in sorted(folder.iterdir()) if entry.is_dir()}
    beside = {split: entry / f"metadata{suffix}" for split, entry in inner.items() if split}
    return {split: [file] for split, file in beside.items() if file.is_file()}


def _read_tables(name: str, files: Mapping[str, list[Path]], suffix: str, folder: Path) -> Stored:
    stored = _parquet(name, files) if suffix == ".parquet" else _lines(name, files, suffix)
    own = {split_of(entry.name): entry for entry in folder.iterdir() if entry.is_dir()}
    for split, paths in files.items():
        beside = [own[split]] if split in own else []
        stored.places[split] = tuple(dict.fromkeys((folder, paths[0].parent, *beside)))
    return stored


def _saved(name: str, folder: Path) -> Stored:
    """Read what datasets' `save_to_disk` wrote."""
    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"{folder} cannot be read ({_first_line(error)}); save it again."
        ) from error
    tables = dict(loaded) if isinstance(loaded, dict) else {"all": loaded}
    known = {split_of(split) or "all": table for split, table in tables.items()}
    if len(known) < len(tables) or ("all" in known and len(known) > 1):
        raise UserError(
            f"{folder} has the splits {', '.join(tables)}; keep train, validation and test alone."
        )
    files = sorted(folder.rglob("*.arrow"))
    identities = {split: f"{of_files(files)} {split}" for split in known}
    return Stored(name, known, identities, dict.fromkeys(known, (folder,)))


def stored_on_hub(name: str) -> Stored:
    """Download (or take from the cache) the tables of a data set of the Hub.

    Raises:
        UserError: if it cannot be had, or none of its splits is train, validation or test.
    """
    address = ALIASES.get(name, name)
    try:
        tables = datasets.load_dataset(address)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f'Data set "{address}" is no local folder and cannot be loaded from the Hub '
            f"({_first_line(error)}); check the name and the connection, or give a folder's path."
        ) from error
    known = {word: table for split, table in tables.items() if (word := split_of(split))}
    if not known:
        raise UserError(
            f'Data set "{address}" has the splits {", ".join(tables)}, none of them train, '
            "validation or test; save the one you need as a parquet file and name that."
        )
    # The Hub's fingerprint is made from the files' revision and the split.
    identities = {split: f"hub {address} {table._fingerprint}" for split, table in known.items()}
    return Stored(address, known, identities)


def files_by_split(folder: Path, suffix: str) -> dict[str, list[Path]]:
    """Return the files of a folder that end in `suffix`, by split, or all as "all".

    Raises:
        UserError: if some are named for splits and others are not, or two for one split.
    """
    found = sorted(path for path in folder.glob(f"*{suffix}") if path.is_file())
    splits: dict[str, list[Path]] = {}
    for path in found:
        splits.setdefault(split_of(path.stem) or "all", []).append(path)
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


def find_column(
    name: str, table: datasets.Dataset, word: str, given: str | None, usual: Sequence[str]
) -> str:
    """Return the column `given`, or else the one whose name is among the usual ones.

    Args:
        name: what messages call the data set.
        table: has the columns to choose from.
        word: what the column holds ("image", "label", "mask"); the option is `--<word>-column`.
        given: the column that the user named.
        usual: names in lower case.

    Raises:
        UserError: if there is no such column, or several have usual names.
    """
    columns = table.column_names
    if given is not None:
        if given not in columns:
            raise UserError(f'{name} has no column "{given}". {nearest(given, columns)}')
        return given
    found = [column for column in columns if column.lower() in usual]
    # Pictures themselves come before paths, which may only be what they are called.
    texts = datasets.Value("string"), datasets.Value("large_string")
    found = [column for column in found if table.features[column] not in texts] or found
    if len(found) == 1:
        return found[0]
    problem = f"{' and '.join(found)} could each be" if found else "none is called like"
    raise UserError(
        f"{name}: of its columns ({', '.join(columns)}) {problem} the {word}; "
        f"name it with --{word}-column."
    )


def value_column(table: datasets.Dataset, column: str) -> Sequence[Any]:
    """Return a column as it is: plain values in a list, anything larger read on access."""
    alone = table.select_columns([column])
    feature = table.features[column]
    plain = is_plain_feature(feature)
    if plain and isinstance(feature, datasets.Value) and feature.dtype in TEXTS:
        return Strings(alone.with_format("arrow")[:][column])
    if plain and isinstance(feature, datasets.Value | datasets.ClassLabel):
        return list(alone[column][:])
    return LazySequence(partial(_value, alone, column), range(len(alone)), plain=plain)


def is_plain_feature(feature: Any) -> bool:
    """Return whether a column's type is made of values, lists and dicts, without pictures."""
    if isinstance(feature, dict):
        return all(map(is_plain_feature, feature.values()))
    if isinstance(feature, datasets.List | datasets.LargeList):
        return is_plain_feature(feature.feature)
    if isinstance(feature, datasets.Value):
        return "binary" not in feature.dtype
    return isinstance(feature, datasets.ClassLabel)


def _value(table: datasets.Dataset, column: str, row: int) -> Any:
    return table[row][column]


def _parquet_files(folder: Path) -> dict[str, list[Path]]:
    """Return the parquet files of a folder by split: in it, in `data/`, or one or two below."""
    for pattern in ("*.parquet", "data/*.parquet", "*/*.parquet", "*/*/*.parquet"):
        found = [file for file in sorted(folder.glob(pattern)) if "/." not in file.as_posix()]
        if found:
            break
    splits: dict[str, list[Path]] = {}
    kinds = set[Path]()
    for file in found:
        split = split_of(file.stem, leading=True) or split_of(file.parent.name)
        splits.setdefault(split or "all", []).append(file)
        kinds.add(file.parent.parent if split_of(file.parent.name) else file.parent)
    if len(kinds) > 1:
        raise UserError(
            f"{folder} holds several tables ({', '.join(sorted(kind.name for kind in kinds))}); "
            "name one of these folders."
        )
    order = ("train", "validation", "test")
    named: dict[str, list[Path]] = {split: splits[split] for split in order if split in splits}
    if named or not found:
        return named
    if len({_DIGITS.sub("", file.stem) for file in found}) > 1:
        raise UserError(
            f"{folder} has {len(found)} parquet files of different names, none of them a split; "
            "call them train.parquet and test.parquet, or name one file."
        )
    return {"all": found}


def _parquet(name: str, files: Mapping[str, list[Path]]) -> Stored:
    tables: dict[str, datasets.Dataset] = {}
    try:
        _check_same_columns(name, files)
        for split, paths in files.items():
            # Each by itself: read together, all would get the class names of the first.
            with _quiet():
                loaded = datasets.load_dataset("parquet", data_files=list(map(str, paths)))
            tables[split] = loaded["train"]
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        cause = error.__cause__ or error
        raise UserError(
            f"{name}: its parquet files cannot be read as one table ({_first_line(cause)}); "
            "every split needs rows, and the columns of the others."
        ) from error
    return Stored(name, tables, {split: of_files(paths) for split, paths in files.items()})


def _check_same_columns(name: str, files: Mapping[str, list[Path]]) -> None:
    # datasets would fill a column that only the first file has with None.
    listed = [file for paths in files.values() for file in paths]
    schemas = {file: pq.read_schema(file) for file in listed}
    for file, schema in schemas.items():
        differing = sorted(set(schema.names) ^ set(schemas[listed[0]].names))
        if differing:
            raise UserError(
                f'{name}: column "{differing[0]}" is in only one of {listed[0].name} and '
                f"{file.name}; write them again with the same columns."
            )
    for first, *others in files.values():
        for file in others:
            if _features(schemas[first]) != _features(schemas[file]):
                raise UserError(
                    f"{name}: {first.name} and {file.name} are one split, but their columns or "
                    "class names differ; write them again together."
                )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence datasets over local files: bars that last a moment, and errors that we report."""
    bars_on = not datasets.utils.are_progress_bars_disabled()
    verbosity = datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if bars_on:
            datasets.enable_progress_bars()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _features(schema: Any) -> Any:
    """Return what datasets wrote about the columns of a file; None where it wrote nothing."""
    said = (schema.metadata or {}).get(b"huggingface")
    return said and json.loads(said)["info"]["features"]


def _lines(name: str, files: Mapping[str, list[Path]], suffix: str) -> Stored:
    """Read tables of text: JSON lines, a JSON list, or CSV."""
    stored = Stored(name, {}, {split: of_files(paths) for split, paths in files.items()})
    for split, paths in files.items():
        rows: list[dict[str, Any]] = []
        for path in paths:
            read, said = _ROWS[suffix](path)
            rows += read
            for note in said:
                stored.note(note)
        columns = dict.fromkeys(column for row in rows for column in row)
        values = {column: _even([row.get(column) for row in rows]) for column in columns}
        try:
            stored.tables[split] = datasets.Dataset.from_dict(values)
        except (OverflowError, TypeError, ValueError) as error:  # pyarrow's are the last two
            raise UserError(
                f"{name}: the rows of its {split} table do not fit together "
                f"({_first_line(error)}); give each column values of one kind."
            ) from error
    first = next(iter(stored.tables))
    for split, table in stored.tables.items():
        differing = sorted(set(table.column_names) ^ set(stored.first.column_names))
        if differing:
            raise UserError(
                f'{name}: column "{differing[0]}" is in only one of {first} and {split}; '
                "write them again with the same columns."
            )
    return stored


def _even(values: list[Any]) -> list[Any]:
    """Return chats with the content of every message as a list, where any message has one."""
    messages = [each for value in values if isinstance(value, list) for each in value]
    contents = [each.get("content") for each in messages if isinstance(each, dict)]
    if not (
        any(isinstance(c, list) for c in contents) and any(isinstance(c, str) for c in contents)
    ):
        return values

    def even(message: Any) -> Any:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        return {**message, "content": parts}

    return [None if value is None else [even(message) for message in value] for value in values]


Rows = tuple[list[dict[str, Any]], Sequence[str]]  # and what was decided to read them


def _rows_of_lines(path: Path) -> Rows:
    rows = []
    # splitlines() would also cut at the line separators that JSON allows inside strings.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append((f"line {number}", parse_json(line, finite=False)))
        except ValueError as error:
            reason = str(error).replace("line 1 ", "")  # of its own lines, of which it has one
            raise UserError(
                f"{path} line {number} is not JSON ({reason}); write one object per line."
            ) from error
    return _checked(path, rows), ()


def _rows_of_json(path: Path) -> Rows:
    try:
        rows = parse_json(read_text(path), finite=False)
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}).") from error
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path} is no list of JSON objects, one for each row; write it as that.")
    return _checked(path, [(f"row {number}", row) for number, row in enumerate(rows)]), ()


def _rows_of_csv(path: Path) -> Rows:
    text, said = read_text(path), list[str]()
    header = text.split("\n", 1)[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    if delimiter not in header and ";" in header:
        delimiter = ";"
        said.append(f"{path.name}: its columns are parted by semicolons.")
    names, *rows = csv_rows(text, str(path), delimiter)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f'{path}: two columns are called "{twice}"; rename one.')
    for number, row in enumerate(rows, start=1):
        if len(row) != len(names):
            raise UserError(
                f"{path}: row {number} has {len(row)} cells for {len(names)} columns; put cells "
                "that hold a comma into quotes."
            )
    if not rows:
        raise UserError(f"{path} holds no rows; leave it out or fill it.")
    columns = [_typed(column) for column in zip(*rows, strict=True)]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)], said


def _typed(cells: Sequence[str]) -> list[Any]:
    """Return a column's numbers as numbers, where all are; an empty cell is None."""
    for pattern, kind in ((_WHOLE, int), (_NUMBER, float)):
        if all(pattern.fullmatch(cell) for cell in cells if cell) and any(cells):
            return [kind(cell) if cell else None for cell in cells]
    return [cell or None for cell in cells]


def _checked(path: Path, rows: Sequence[tuple[str, Any]]) -> list[dict[str, Any]]:
    """Return objects; a value of another kind than above it in the column is refused."""
    kinds: dict[str, tuple[str, str]] = {}
    for where, row in rows:
        if not isinstance(row, dict) or not row:
            raise UserError(
                f'{path} {where} is no JSON object with columns, such as {{"prompt": "…"}}.'
            )
        for column, value in row.items():
            # What a value is, in words; "" for null, which any column may hold.
            kind = next((name for types, name in _KINDS if isinstance(value, types)), "")
            first, place = kinds.setdefault(column, (kind, where)) if kind else ("", "")
            if kind and kind != first:
                raise UserError(
                    f'{path} {where}: "{column}" is {kind}, but {first} in {place}; give every row '
                    "the same kind."
                )
    return [row for _, row in rows]


_ROWS: Mapping[str, Callable[[Path], Rows]] = {
    ".jsonl": _rows_of_lines,
    ".json": _rows_of_json,
    ".csv": _rows_of_csv,
    ".tsv": _rows_of_csv,
}

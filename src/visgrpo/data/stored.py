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
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from visgrpo.data.table import SPLIT_NAMES, LazySequence, of_files
from visgrpo.errors import UserError, nearest

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
_HUB_NAME = re.compile(r"[\w][\w.-]*/[\w.-]+")
# A split's word, then the end or the file's number: "train-00000-of-00002", "test", "val_1".
_SPLIT_FILE = re.compile(r"(train|validation|valid|val|test)(?![a-z])", re.IGNORECASE)
_DIGITS = re.compile(r"\d+")
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
        folder: where the tables are, to which paths in them are relative; None if in no folder.
        missing_ok: leave a missing file of a picture to be an error when it is used.
        classes: class names, once they are known.
        notes: what was decided on the way, by split; "" for the whole.
    """

    name: str
    tables: dict[str, datasets.Dataset]
    identities: dict[str, str]
    folder: Path | None = None
    missing_ok: bool = False
    classes: tuple[str, ...] = ()
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

    def pictures(
        self, split: str, column: str, read: Callable[[Any, int], Image.Image]
    ) -> LazySequence[Image.Image]:
        """Return a column of pictures, each made on access by `read(stored, row)`.

        `stored` is what the table holds, undecoded: a damaged picture is then an error of `read`,
        which can name its row.
        """
        table = self.tables[split].select_columns([column])
        if isinstance(table.features[column], datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
        return LazySequence(partial(_picture, table, column, read), range(len(table)))

    def holds_pictures(self, split: str, column: str) -> bool:
        """Return whether the pictures of a column all are in the table, none in a file."""
        stored = self.tables[split].data.column(column)
        if pa.types.is_struct(stored.type):
            stored = pc.struct_field(stored, "bytes")
        inside = pa.types.is_binary(stored.type) or pa.types.is_large_binary(stored.type)
        return bool(inside and not stored.null_count)


def is_hub_name(spec: str) -> bool:
    """Return whether `spec` can name a data set of the Hub: "cifar100" or "uoft-cs/cifar100"."""
    return spec in ALIASES or _HUB_NAME.fullmatch(spec) is not None


def stored_in(path: Path, suffixes: Sequence[str]) -> Stored | None:
    """Read the tables that a file or folder holds, or return None if there are none.

    A folder's .jsonl files are called train.jsonl, validation.jsonl and test.jsonl, or are parts of
    one undivided table; its .parquet files lie in it or in `data/`.

    Args:
        path: of a file or a folder.
        suffixes: of the files to look for: ".jsonl", ".parquet".

    Raises:
        UserError: if they cannot be read as one table.
    """
    folder = path.is_dir()
    name = path.resolve().name if folder else path.stem
    if not folder and path.suffix not in suffixes:
        return None
    if ".jsonl" in suffixes:
        lines = files_by_split(path, ".jsonl") if folder else {"all": [path]}
        if lines and (folder or path.suffix == ".jsonl"):
            return _jsonl(name, lines)
    files = _parquet_files(path)
    return _parquet(name, files) if files else None


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
    known = {SPLIT_NAMES[split]: table for split, table in tables.items() if split in SPLIT_NAMES}
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


def _picture(
    table: datasets.Dataset, column: str, read: Callable[[Any, int], Image.Image], row: int
) -> Image.Image:
    return read(table[row][column], row)


def _value(table: datasets.Dataset, column: str, row: int) -> Any:
    return table[row][column]


def _parquet_files(path: Path) -> dict[str, list[Path]]:
    """Return the parquet files of a folder (or its `data/`) by split; a single file is "all"."""
    if path.is_file():
        return {"all": [path]}
    found = sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet"))
    files: dict[str, list[Path]] = {"train": [], "validation": [], "test": []}
    for file in found:
        match = _SPLIT_FILE.match(file.name)
        if match:
            files[SPLIT_NAMES[match[1].lower()]].append(file)
    files = {split: paths for split, paths in files.items() if paths}
    if files or not found:
        return files
    if len({_DIGITS.sub("", file.stem) for file in found}) > 1:
        raise UserError(
            f"{path} has {len(found)} parquet files of different names, none of them a split; call "
            "them train.parquet and test.parquet, or name one file."
        )
    return {"all": found}


def _parquet(name: str, files: Mapping[str, list[Path]]) -> Stored:
    # "all" is a reserved word of datasets, so the undivided table travels as "train".
    reading = {
        "train" if split == "all" else split: list(map(str, paths))
        for split, paths in files.items()
    }
    try:
        _check_same_columns(name, [file for paths in files.values() for file in paths])
        with _quiet():
            tables = datasets.load_dataset("parquet", data_files=reading)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        cause = error.__cause__ or error
        raise UserError(
            f"{name}: its parquet files cannot be read as one table ({_first_line(cause)}); "
            "every split needs rows, and the columns of the others."
        ) from error
    by_split = {split: tables[read] for split, read in zip(files, reading, strict=True)}
    return Stored(name, by_split, {split: of_files(paths) for split, paths in files.items()})


def _check_same_columns(name: str, files: list[Path]) -> None:
    # datasets would fill a column that only the first file has with None.
    columns = {file: set(pq.read_schema(file).names) for file in files}
    for file, found in columns.items():
        differing = sorted(found ^ columns[files[0]])
        if differing:
            raise UserError(
                f'{name}: column "{differing[0]}" is in only one of {files[0].name} and '
                f"{file.name}; write them again with the same columns."
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


def _jsonl(name: str, files: Mapping[str, list[Path]]) -> Stored:
    tables: dict[str, datasets.Dataset] = {}
    for split, paths in files.items():
        rows = [row for path in paths for row in _rows(path)]
        columns = dict.fromkeys(column for row in rows for column in row)
        values = {column: [row.get(column) for row in rows] for column in columns}
        try:
            tables[split] = datasets.Dataset.from_dict(values)
        except (OverflowError, TypeError, ValueError) as error:  # pyarrow's are the last two
            raise UserError(
                f"{name}: the rows of its {split} table do not fit together "
                f"({_first_line(error)}); give each column values of one kind."
            ) from error
    first = next(iter(tables))
    for split, table in tables.items():
        differing = sorted(set(table.column_names) ^ set(tables[first].column_names))
        if differing:
            raise UserError(
                f'{name}: column "{differing[0]}" is in only one of {first} and {split}; '
                "write them again with the same columns."
            )
    return Stored(name, tables, {split: of_files(paths) for split, paths in files.items()})


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
            # What a value is, in words; "" for null, which any column may hold.
            kind = next((name for types, name in _KINDS if isinstance(value, types)), "")
            first, line_of_first = kinds.setdefault(column, (kind, number)) if kind else ("", 0)
            if kind and kind != first:
                raise UserError(
                    f'{path} line {number}: "{column}" is {kind}, but {first} in line '
                    f"{line_of_first}; give every row the same kind."
                )
        yield row

"""Tables of images: parquet files and data sets of the Hugging Face Hub, through `datasets`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from visgrpo.data.dataset import ImageDataset, LazySequence
from visgrpo.data.decoding import decode
from visgrpo.data.folders import SPLIT_NAMES
from visgrpo.data.identity import derived, of_files
from visgrpo.data.splitting import Source
from visgrpo.errors import UserError, nearest

IMAGE_COLUMNS = ("image", "img", "picture")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")
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
# A split's word, then the end or the file's number: "train-00000-of-00002", "test", "val_1".
_SPLIT_FILE = re.compile(r"(train|validation|valid|val|test)(?![a-z])", re.IGNORECASE)
_DIGITS = re.compile(r"\d+")


def parquet_files(path: Path) -> dict[str, list[str]]:
    """Return the parquet files of a folder (or its `data/`) by split; a single file is "all".

    Raises:
        UserError: if several files are named neither for splits nor as parts of one table.
    """
    if path.is_file():
        return {"all": [str(path)]}
    found = sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet"))
    files: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for file in found:
        match = _SPLIT_FILE.match(file.name)
        if match:
            files[SPLIT_NAMES[match[1].lower()]].append(str(file))
    files = {split: paths for split, paths in files.items() if paths}
    if files or not found:
        return files
    if len({_DIGITS.sub("", file.stem) for file in found}) > 1:
        raise UserError(
            f"{path} has {len(found)} parquet files of different names, none of them a split; call "
            "them train.parquet and test.parquet, or name one file."
        )
    return {"all": [str(file) for file in found]}


def read_parquet(
    name: str, files: dict[str, list[str]], image_column: str | None, label_column: str | None
) -> Source:
    """Read parquet files, given by split, as one source called `name`.

    Raises:
        UserError: if a file cannot be read, the files disagree, or a column is missing.
    """
    # "all" is a reserved word of datasets, so the undivided table travels as "train".
    reading = {"train" if split == "all" else split: paths for split, paths in files.items()}
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
    identities = {split: of_files(paths) for split, paths in files.items()}
    return _source(name, by_split, identities, image_column, label_column)


def read_hub(name: str, image_column: str | None, label_column: str | None) -> Source:
    """Download (or take from the cache) a data set of the Hub.

    Raises:
        UserError: if it cannot be had, or a column is missing.
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
    return _source(address, known, identities, image_column, label_column)


def _check_same_columns(name: str, files: list[str]) -> None:
    # datasets would fill a column that only the first file has with None.
    columns = {file: set(pq.read_schema(file).names) for file in files}
    for file, found in columns.items():
        differing = sorted(found ^ columns[files[0]])
        if differing:
            raise UserError(
                f'{name}: column "{differing[0]}" is in only one of {Path(files[0]).name} and '
                f"{Path(file).name}; write them again with the same columns."
            )


def _source(
    name: str,
    tables: Mapping[str, datasets.Dataset],
    identities: Mapping[str, str],
    image_column: str | None,
    label_column: str | None,
) -> Source:
    first = next(iter(tables.values()))
    image = _find_column(name, first, "image", image_column, IMAGE_COLUMNS)
    label = _find_column(name, first, "label", label_column, LABEL_COLUMNS)
    values = {split: table.select_columns([label])[label][:] for split, table in tables.items()}
    notes: tuple[str, ...] = ()
    if set(values.get("test", ())) == {-1}:  # the Hub's sign that the labels are kept back
        del values["test"]
        notes = (f"{name}/test has no labels (all are -1) and was left out.",)
    _check_filled(name, label, values)
    classes, ids = _classes(name, first.features[label], label, values)
    splits = {
        split: ImageDataset(
            name=f"{name}/{split}",
            classes=classes,
            labels=np.array([ids.get(value, value) for value in column], dtype=np.int64),
            images=_images(tables[split], image, f"{name}/{split}"),
            columns={
                other: _column(tables[split], other)
                for other in first.column_names
                if other not in (image, label)
            },
            identity=_identity(identities[split], tables[split], image),
        )
        for split, column in values.items()
    }
    return Source(name, splits, notes)


def _find_column(
    name: str, table: datasets.Dataset, kind: str, given: str | None, usual: Sequence[str]
) -> str:
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
        f"{name}: of its columns ({', '.join(columns)}) {problem} the {kind}; "
        f"name it with {kind}_column."
    )


def _classes(
    name: str, feature: Any, label: str, values: Mapping[str, list[Any]]
) -> tuple[tuple[str, ...], dict[Any, int]]:
    """Return the class names, and the class id of each stored value where they differ."""
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names), {}
    dtype = getattr(feature, "dtype", type(feature).__name__)
    if not (dtype in ("string", "large_string", "bool") or "int" in dtype):
        raise UserError(
            f'{name}: label column "{label}" holds {dtype}, not class names or whole numbers; '
            "name another column with label_column."
        )
    reference = next(split for split in ("train", "all", *values) if split in values)
    known = set(values[reference])
    for split, column in values.items():
        for row, value in enumerate(column):
            if value not in known:
                raise UserError(
                    f'{name}/{split}: row {row} has label "{value}", which no row of {reference} '
                    f"has. {nearest(str(value), map(str, sorted(known)))}"
                )
    distinct = sorted(known)
    return tuple(str(value) for value in distinct), {v: i for i, v in enumerate(distinct)}


def _check_filled(name: str, label: str, values: Mapping[str, list[Any]]) -> None:
    for split, column in values.items():
        if not column:
            raise UserError(f"{name}/{split} holds no rows; leave it out or fill it.")
        if None in column:
            raise UserError(
                f'{name}/{split}: row {column.index(None)} has no label in column "{label}"; '
                "fill it or drop the row."
            )


def _images(table: datasets.Dataset, column: str, where: str) -> LazySequence[Image.Image]:
    stored = table.select_columns([column])
    if isinstance(table.features[column], datasets.Image):
        # Decoded by us, lazily: a damaged image is then an error that names its row.
        stored = stored.cast_column(column, datasets.Image(decode=False))
    return LazySequence(partial(_decode_row, stored, column, where), range(len(stored)))


def _identity(identity: str, table: datasets.Dataset, column: str) -> str:
    """Name the images of a table's column; "" if some lie outside it, in files of their own."""
    stored = table.data.column(column)
    if pa.types.is_struct(stored.type):
        stored = pc.struct_field(stored, "bytes")
    inside = pa.types.is_binary(stored.type) or pa.types.is_large_binary(stored.type)
    return derived(identity, f"column {column}") if inside and not stored.null_count else ""


def _decode_row(table: datasets.Dataset, column: str, where: str, row: int) -> Image.Image:
    stored = table[row][column]
    path = stored.get("path") if isinstance(stored, dict) else None
    return decode(stored, f"{where} image {row}" + (f" ({path})" if path else ""))


def _column(table: datasets.Dataset, column: str) -> Sequence[Any]:
    alone = table.select_columns([column])
    feature = table.features[column]
    plain = _is_plain_feature(feature)
    if plain and isinstance(feature, datasets.Value | datasets.ClassLabel):
        return list(alone[column][:])
    return LazySequence(partial(_value, alone, column), range(len(alone)), plain=plain)


def _is_plain_feature(feature: Any) -> bool:
    """Return whether a column's type is made of values, lists and dicts, without pictures."""
    if isinstance(feature, dict):
        return all(map(_is_plain_feature, feature.values()))
    if isinstance(feature, datasets.List | datasets.LargeList):
        return _is_plain_feature(feature.feature)
    if isinstance(feature, datasets.Value):
        return "binary" not in feature.dtype
    return isinstance(feature, datasets.ClassLabel)


def _value(table: datasets.Dataset, column: str, row: int) -> Any:
    return table[row][column]


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

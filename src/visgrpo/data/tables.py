"""Tables as they are stored: parquet files and data sets of the Hugging Face Hub, by split."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow.parquet as pq

from visgrpo.data.folders import SPLIT_NAMES
from visgrpo.data.identity import of_files
from visgrpo.errors import UserError

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


@dataclass(frozen=True)
class Tables:
    """The tables of a data set by split: "train", "validation", "test", or "all" when undivided.

    Attributes:
        name: what messages call the data set.
        splits: the table of each split.
        identities: names the content of each split, as in `visgrpo.data.identity`.
    """

    name: str
    splits: Mapping[str, datasets.Dataset]
    identities: Mapping[str, str]


def is_hub_name(spec: str) -> bool:
    """Return whether `spec` can name a data set of the Hub: "cifar100" or "uoft-cs/cifar100"."""
    return spec in ALIASES or _HUB_NAME.fullmatch(spec) is not None


def parquet_files(path: Path) -> dict[str, list[str]]:
    """Return the parquet files of a folder (or its `data/`) by split; a single file is "all".

    Raises:
        UserError: if a single file is no parquet file, or several files are named neither for
            splits nor as parts of one table.
    """
    if path.is_file():
        if path.suffix != ".parquet":
            raise UserError(f"{path} is not a parquet file; name a folder or a .parquet file.")
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


def parquet_tables(name: str, files: Mapping[str, list[str]]) -> Tables:
    """Read parquet files, given by split, as the tables of a data set called `name`.

    Raises:
        UserError: if a file cannot be read, or the files disagree about their columns.
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
    return Tables(name, by_split, {split: of_files(paths) for split, paths in files.items()})


def hub_tables(name: str) -> Tables:
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
    return Tables(address, known, identities)


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

"""From what a user types (a built-in world, a folder, a parquet file, a Hub name) to data sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from visgrpo.data.dataset import ImageDataset, Splits
from visgrpo.data.folders import read_cifar, read_image_folder
from visgrpo.data.images import without_bad_images
from visgrpo.data.label_tables import labelled_images
from visgrpo.data.splitting import (
    Source,
    check_split_options,
    divide,
    parse_slice,
    parse_split,
    select,
    validation_as_test,
    with_test,
)
from visgrpo.data.tables import ALIASES, hub_tables, is_hub_name, parquet_files, parquet_tables
from visgrpo.data.worlds.digits import digits_splits
from visgrpo.data.worlds.shapes import shapes_splits
from visgrpo.errors import UserError, nearest

BUILT_IN = ("digits", "shapes", "shapes-out")


def load_splits(
    spec: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    train_slice: str | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    skip_bad_images: bool = False,
) -> Splits:
    """Load a data set in three splits that share no row.

    Without a test split, the stored validation split, on which results are then quoted, becomes
    it; without either, one is made (20 %, stratified, the same for every seed). Then `train_slice`
    is applied to the train rows, then a missing validation split is made from what is left of them
    (stratified, by `seed`). `Splits.notes` says what was made.

    Args:
        spec: "digits", "shapes" or "shapes-out"; a folder of images, parquet or binary CIFAR files;
            a parquet file; or a Hub name, such as "cifar100" or "uoft-cs/cifar100".
        image_column: the column of a table that holds the images, when its name is not usual.
        label_column: the column of a table that holds the labels, when its name is not usual.
        train_slice: which train rows to use, such as "2000:"; rows are in stored order, which in
            an image folder is class by class.
        validation_fraction: share of the train rows that makes a missing validation split.
        seed: chooses that validation split, and the images of a built-in world.
        skip_bad_images: decode every image once now and leave the unreadable ones out, listed in
            each split's `skipped`; otherwise an unreadable image is an error when it is used.

    Raises:
        UserError: if the data set is unknown or does not fit the description above.
    """
    check_split_options(validation_fraction, seed)
    rows = slice(None) if train_slice is None else parse_slice(train_slice)
    source = _read(spec, image_column, label_column, validation_fraction, seed)
    splits = divide(source, train_rows=rows, fraction=validation_fraction, seed=seed)
    if not skip_bad_images:
        return splits
    return replace(
        splits,
        train=without_bad_images(splits.train),
        validation=without_bad_images(splits.validation),
        test=without_bad_images(splits.test),
    )


def load_split(
    spec: str,
    split: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    skip_bad_images: bool = False,
) -> ImageDataset:
    """Load one split, or a slice of it.

    The names mean what they do in `load_splits`: "test" is the stored validation split of data
    that has train rows and no test split. But "train" here is the train rows as they are stored,
    *before* a missing validation split is taken out of them (a missing test split is always out of
    them), so "train[:2000]" is the same rows whatever the seed, and can share rows with a made
    "validation". Use `load_splits` to learn and choose on rows kept apart.

    Args:
        spec: as for `load_splits`.
        split: "train", "validation", "test", or "all" for data that is stored undivided; with a
            slice if wanted, "train[:2000]".
        image_column: as for `load_splits`.
        label_column: as for `load_splits`.
        validation_fraction: as for `load_splits`.
        seed: as for `load_splits`.
        skip_bad_images: as for `load_splits`.

    Raises:
        UserError: if the data set, split or slice is unknown or empty.
    """
    check_split_options(validation_fraction, seed)
    name, rows = parse_split(split)
    source = validation_as_test(_read(spec, image_column, label_column, validation_fraction, seed))
    if name != "all" and (name not in source.splits or name == "train"):
        source = with_test(source)  # a made test split leaves the train rows, whoever asks for them
    if name == "validation" and name not in source.splits:
        made = divide(source, train_rows=slice(None), fraction=validation_fraction, seed=seed)
        source = replace(source, splits={**source.splits, "validation": made.validation})
    chosen = select(source, name, rows)
    return without_bad_images(chosen) if skip_bad_images else chosen


def _read(
    spec: str,
    image_column: str | None,
    label_column: str | None,
    validation_fraction: float,
    seed: int,
) -> Source:
    if spec in BUILT_IN:
        return _built_in(spec, validation_fraction, seed)
    path = Path(spec).expanduser()
    if path.is_dir():
        files = parquet_files(path)
        if not files:
            return read_cifar(path) or read_image_folder(path)
        return labelled_images(
            parquet_tables(path.resolve().name, files), image_column, label_column
        )
    if path.is_file():
        tables = parquet_tables(path.stem, parquet_files(path))
        return labelled_images(tables, image_column, label_column)
    if spec.startswith((".", "~")) or path.is_absolute() or path.suffix == ".parquet":
        raise UserError(f"No such file or folder: {spec}; check the path.")
    if is_hub_name(spec):
        return labelled_images(hub_tables(spec), image_column, label_column)
    if "/" in spec or "\\" in spec:
        raise UserError(f"No such file or folder: {spec}; check the path.")
    raise UserError(
        f'Unknown data set "{spec}". {nearest(spec, (*BUILT_IN, *ALIASES))} '
        "There is no file or folder of that name either."
    )


def _built_in(spec: str, validation_fraction: float, seed: int) -> Source:
    if spec == "digits":
        splits = digits_splits(seed=seed, validation_fraction=validation_fraction)
    else:
        splits = shapes_splits(seed=seed, style="out" if spec == "shapes-out" else "in")
    stored = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return Source(spec, stored, splits.notes)

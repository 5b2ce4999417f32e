"""Tables of images and masks: parquet files and data sets of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import datasets
from PIL import Image

from visgrpo.data.dataset import LazySequence
from visgrpo.data.folders import SPLIT_NAMES
from visgrpo.data.hub import (
    ALIASES,
    IMAGE_COLUMNS,
    _check_same_columns,
    _column,
    _find_column,
    _first_line,
    _identity,
    _images,
    _is_plain_feature,
    _quiet,
)
from visgrpo.data.identity import of_files
from visgrpo.data.mask_decoding import decode_mask
from visgrpo.data.segmentation import SegmentationDataset
from visgrpo.data.segmentation_splitting import StoredMasks
from visgrpo.errors import UserError

MASK_COLUMNS = ("mask", "annotation", "label", "labels", "segmentation", "segmentation_mask")


def read_mask_parquet(
    name: str,
    files: Mapping[str, list[str]],
    classes: tuple[str, ...],
    ignore_index: int,
    image_column: str | None,
    mask_column: str | None,
) -> StoredMasks:
    """Read parquet files, given by split, that have a column of images and one of masks.

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
    return _source(name, by_split, identities, classes, ignore_index, image_column, mask_column)


def read_mask_hub(
    name: str,
    classes: tuple[str, ...],
    ignore_index: int,
    image_column: str | None,
    mask_column: str | None,
) -> StoredMasks:
    """Download (or take from the cache) a data set of the Hub that has images and masks.

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
    identities = {split: f"hub {address} {table._fingerprint}" for split, table in known.items()}
    return _source(address, known, identities, classes, ignore_index, image_column, mask_column)


def _source(
    name: str,
    tables: Mapping[str, datasets.Dataset],
    identities: Mapping[str, str],
    classes: tuple[str, ...],
    ignore_index: int,
    image_column: str | None,
    mask_column: str | None,
) -> StoredMasks:
    first = next(iter(tables.values()))
    # A "label" may be a mask or a class: only columns of pictures are looked at.
    pictures = first.select_columns(
        [column for column, kind in first.features.items() if not _is_plain_feature(kind)]
    )
    image = _find_column(name, pictures, "image", image_column, IMAGE_COLUMNS)
    mask = _find_column(name, pictures, "mask", mask_column, MASK_COLUMNS)
    splits = {
        split: SegmentationDataset(
            name=f"{name}/{split}",
            classes=classes,
            images=_images(table, image, f"{name}/{split}"),
            masks=_masks(table, mask, f"{name}/{split}"),
            ignore_index=ignore_index,
            columns={
                other: _column(table, other)
                for other in table.column_names
                if other not in (image, mask)
            },
            identity=_identity(_identity(identities[split], table, image), table, mask),
        )
        for split, table in tables.items()
    }
    return StoredMasks(name, splits)


def _masks(table: datasets.Dataset, column: str, where: str) -> Sequence[Image.Image]:
    alone = table.select_columns([column])
    if isinstance(table.features[column], datasets.Image):
        # Decoded by us, lazily: a damaged mask is then an error that names its row.
        alone = alone.cast_column(column, datasets.Image(decode=False))
    return LazySequence(partial(_decode_row, alone, column, where), range(len(alone)))


def _decode_row(table: datasets.Dataset, column: str, where: str, row: int) -> Image.Image:
    return decode_mask(table[row][column], f"{where}: mask of row {row}")

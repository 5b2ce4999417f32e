"""Images and masks from tables: parquet files and data sets of the Hugging Face Hub."""

from __future__ import annotations

from functools import partial
from typing import Any

from PIL import Image

from visgrpo.data.images import decode_mask
from visgrpo.data.segmentation import SegmentationDataset
from visgrpo.data.segmentation_splitting import StoredMasks
from visgrpo.data.table_columns import (
    IMAGE_COLUMNS,
    column_identity,
    find_column,
    image_column,
    is_plain_feature,
    picture_column,
    value_column,
)
from visgrpo.data.tables import Tables

MASK_COLUMNS = ("mask", "annotation", "label", "labels", "segmentation", "segmentation_mask")


def masked_images(
    tables: Tables,
    classes: tuple[str, ...],
    ignore_index: int,
    image_name: str | None,
    mask_name: str | None,
) -> StoredMasks:
    """Return tables that have a column of images and one of masks as images with masks.

    Args:
        tables: as they are stored.
        classes: class names, in the order of the ids.
        ignore_index: the id of pixels that belong to no class.
        image_name: the column of the images, when its name is not usual.
        mask_name: the column of the masks, when its name is not usual.

    Raises:
        UserError: if a column is missing, or the classes and `ignore_index` do not fit.
    """
    name, first = tables.name, next(iter(tables.splits.values()))
    # A "label" may be a mask or a class: only columns of pictures are looked at.
    pictures = first.select_columns(
        [column for column, kind in first.features.items() if not is_plain_feature(kind)]
    )
    image = find_column(name, pictures, "image", image_name, IMAGE_COLUMNS)
    mask = find_column(name, pictures, "mask", mask_name, MASK_COLUMNS)
    splits = {
        split: SegmentationDataset(
            name=f"{name}/{split}",
            classes=classes,
            images=image_column(table, image, f"{name}/{split}"),
            masks=picture_column(table, mask, partial(_mask, f"{name}/{split}")),
            ignore_index=ignore_index,
            columns={
                other: value_column(table, other)
                for other in table.column_names
                if other not in (image, mask)
            },
            identity=column_identity(
                column_identity(tables.identities[split], table, image), table, mask
            ),
        )
        for split, table in tables.splits.items()
    }
    return StoredMasks(name, splits)


def _mask(where: str, stored: Any, row: int) -> Image.Image:
    return decode_mask(stored, f"{where}: mask of row {row}")

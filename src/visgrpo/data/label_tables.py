"""Labelled images from tables: parquet files and data sets of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np

from visgrpo.data.dataset import ImageDataset
from visgrpo.data.splitting import Source
from visgrpo.data.table_columns import (
    IMAGE_COLUMNS,
    column_identity,
    find_column,
    image_column,
    value_column,
)
from visgrpo.data.tables import Tables
from visgrpo.errors import UserError, nearest

LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")


def labelled_images(tables: Tables, image_name: str | None, label_name: str | None) -> Source:
    """Return tables that have a column of images and one of class labels as labelled images.

    Args:
        tables: as they are stored.
        image_name: the column of the images, when its name is not usual.
        label_name: the column of the labels, when its name is not usual.

    Raises:
        UserError: if a column is missing, or a row has no label or one of no class.
    """
    name, first = tables.name, next(iter(tables.splits.values()))
    image = find_column(name, first, "image", image_name, IMAGE_COLUMNS)
    label = find_column(name, first, "label", label_name, LABEL_COLUMNS)
    values = {
        split: table.select_columns([label])[label][:] for split, table in tables.splits.items()
    }
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
            images=image_column(tables.splits[split], image, f"{name}/{split}"),
            columns={
                other: value_column(tables.splits[split], other)
                for other in first.column_names
                if other not in (image, label)
            },
            identity=column_identity(tables.identities[split], tables.splits[split], image),
        )
        for split, column in values.items()
    }
    return Source(name, splits, notes)


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

"""Small data sets for the tests: images whose red value tells which row they are."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from visgrpo.data.table import Table

CLASSES = ("cat", "dog", "fox")


def picture(value: int, mode: str = "RGB") -> Image.Image:
    """Return an image whose red value is `value`, to know a row by its image."""
    return Image.new("RGB", (6, 4), (value, 0, 0)).convert(mode)


def red(image: Image.Image) -> int:
    return int(np.asarray(image)[0, 0, 0])


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(root: Path, per_class: int, start: int = 0, classes: Any = CLASSES) -> None:
    for index, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            picture(start + index * per_class + number).save(root / name / f"{number:03}.png")


def write_table(
    path: Path,
    rows: int,
    start: int = 0,
    features: dict[str, Any] | None = None,
    **columns: list[Any],
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"image": [picture(start + row) for row in range(rows)], **columns}
    if "label" not in data and not features:
        data["label"] = [row % 3 for row in range(rows)]
        features = {"label": datasets.ClassLabel(names=list(CLASSES))}
    table = datasets.Dataset.from_dict(data)
    for column, feature in (features or {}).items():
        table = table.cast_column(column, feature)
    table.cast_column("image", datasets.Image()).to_parquet(path)


def reds(dataset: Table) -> list[int]:
    return [red(image) for image in dataset.images]


def shares(dataset: Table) -> list[int]:
    return np.bincount(dataset.labels, minlength=len(dataset.classes)).tolist()

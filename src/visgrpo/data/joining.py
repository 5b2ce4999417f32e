"""Several data sets as one: their classes side by side, equal names as one class."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from PIL import Image

from visgrpo.data.dataset import ImageDataset, LazySequence
from visgrpo.data.identity import joined


def join(datasets: Sequence[ImageDataset]) -> ImageDataset:
    """Return the rows of all data sets in order; a column that one lacks is None there."""
    if len(datasets) == 1:
        return datasets[0]
    classes = tuple(dict.fromkeys(name for part in datasets for name in part.classes))
    new_id = {name: position for position, name in enumerate(classes)}
    labels = [new_id[part.classes[label]] for part in datasets for label in part.labels]
    starts = np.cumsum([0, *map(len, datasets)])
    names = dict.fromkeys(name for part in datasets for name in part.columns)
    columns = {
        name: [value for part in datasets for value in part.columns.get(name, [None] * len(part))]
        for name in names
    }
    return ImageDataset(
        name=" + ".join(part.name for part in datasets),
        classes=classes,
        labels=np.array(labels),
        images=LazySequence(partial(_image, datasets, starts), np.arange(len(labels))),
        columns=columns,
        identity=joined([part.identity for part in datasets]),
    )


def _image(datasets: Sequence[ImageDataset], starts: np.ndarray, row: int) -> Image.Image:
    part = int(np.searchsorted(starts, row, side="right")) - 1
    return datasets[part].images[row - int(starts[part])]

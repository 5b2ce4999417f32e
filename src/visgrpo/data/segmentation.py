"""Images with a class for every pixel: what segmentation is trained and evaluated on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

from visgrpo.data.dataset import check_classes, check_lengths, take_rows
from visgrpo.data.identity import of_rows
from visgrpo.data.images import usable_rows
from visgrpo.errors import UserError

IGNORE_INDEX = 255
_ID_MODES = ("1", "L", "P", "I", "I;16")  # pillow's modes of one channel of whole numbers


@dataclass(frozen=True)
class SegmentationDataset:
    """M images, each with a mask of class ids, and every other column of their table.

    Attributes:
        name: what messages call it, such as "clothing/train".
        classes: class names; the position is the class id.
        images: M RGB images, indexable; may be decoded on access, and then raises `UserError`
            naming the image when it is unreadable.
        masks: M masks as they are stored, indexable and perhaps decoded on access: (H, W) arrays of
            whole numbers or pillow images of one channel. Read them with `mask` or `pair`, which
            check them.
        ignore_index: the id of pixels that belong to no class and count nowhere.
        columns: every other column by name, each of length M.
        identity: names the content; "" when unknown.
        skipped: the unusable rows that were left out on request, with their reasons.
        rows: (M,) int64 places of the rows in `stored_as`, the data set they were first part of.

    Raises:
        UserError: if a class is named twice, there are fewer than two classes, `ignore_index` is a
            class id or needs more than 32 bits, or the masks or a column have another length than
            the images.
    """

    name: str
    classes: tuple[str, ...]
    images: Sequence[Image.Image]
    masks: Sequence[Image.Image | np.ndarray]
    ignore_index: int = IGNORE_INDEX
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    identity: str = ""
    skipped: tuple[str, ...] = ()
    rows: np.ndarray | None = None
    stored_as: str = ""

    def __post_init__(self) -> None:
        check_classes(self.name, self.classes)
        if 0 <= self.ignore_index < len(self.classes):
            raise UserError(
                f"{self.name}: --ignore-index {self.ignore_index} is also the id of class "
                f'"{self.classes[self.ignore_index]}"; choose one outside 0 to '
                f"{len(self.classes) - 1}."
            )
        if not -(2**31) <= self.ignore_index < 2**31:
            raise UserError(f"{self.name}: --ignore-index {self.ignore_index} needs over 32 bits.")
        columns = {"masks": self.masks, **self.columns}
        check_lengths(self.name, columns, len(self.images), "image")
        if self.rows is None:
            object.__setattr__(self, "rows", np.arange(len(self.images)))
            object.__setattr__(self, "stored_as", self.name)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def mask_dtype(self) -> np.dtype[Any]:
        """The smallest of uint8, int16 and int32 that holds the class ids and `ignore_index`."""
        ids = (0, len(self.classes) - 1, self.ignore_index)
        kinds: tuple[type[np.integer[Any]], ...] = (np.uint8, np.int16, np.int32)
        fitting = (
            np.dtype(kind)
            for kind in kinds
            if np.iinfo(kind).min <= min(ids) and max(ids) <= np.iinfo(kind).max
        )
        return next(fitting)

    def where(self, row: int) -> str:
        """Return what messages call row `row`: its place in the data set as it is stored."""
        assert self.rows is not None  # set in __post_init__
        files = self.columns.get("file")
        return f"{self.stored_as}: row {self.rows[row]}" + (
            "" if files is None else f" ({files[row]})"
        )

    def mask(self, row: int) -> np.ndarray:
        """Return the class ids (H, W) of row `row`, of `mask_dtype`.

        Raises:
            UserError: if the mask is unreadable, is no grid of ids, has an id outside the classes,
                or labels no pixel.
        """
        ids = _as_ids(self.masks[row], self.where(row))
        ignored = ids == self.ignore_index
        outside = ids[~ignored & ((ids < 0) | (ids >= len(self.classes)))]
        if len(outside):
            raise UserError(
                f"{self.where(row)}: its mask has class id {outside[0]}, outside the "
                f"{len(self.classes)} classes (0 to {len(self.classes) - 1}) and not the ignored "
                f"id {self.ignore_index}; mend the mask, the class names or --ignore-index."
            )
        if ignored.all():
            raise UserError(
                f"{self.where(row)}: its mask labels no pixel (all are the ignored id "
                f"{self.ignore_index}); label some, or leave it out with --skip-bad-images."
            )
        return ids.astype(self.mask_dtype, copy=False)

    def pair(self, row: int) -> tuple[Image.Image, np.ndarray]:
        """Return the image of row `row` and its class ids (H, W).

        Raises:
            UserError: as `mask`, or if the two differ in size.
        """
        image, ids = self.images[row], self.mask(row)
        if ids.shape != (image.height, image.width):
            raise UserError(
                f"{self.where(row)}: its mask is {ids.shape[1]} × {ids.shape[0]} pixels but its "
                f"image is {image.width} × {image.height}; store the mask at the image's size."
            )
        return image, ids

    def subset(self, indices: Sequence[int] | np.ndarray) -> SegmentationDataset:
        """Return the rows at `indices`, in that order; images and masks stay undecoded."""
        chosen = np.asarray(indices, dtype=np.int64)
        assert self.rows is not None
        return replace(
            self,
            images=take_rows(self.images, chosen),
            masks=take_rows(self.masks, chosen),
            columns={name: take_rows(column, chosen) for name, column in self.columns.items()},
            identity=of_rows(self.identity, chosen),
            rows=self.rows[chosen],
        )


@dataclass(frozen=True)
class SegmentationSplits:
    """Three data sets that share their classes and no row.

    Attributes:
        train: rows to learn from.
        validation: rows to choose by.
        test: rows to report on.
        notes: what was decided for the user, and which classes the train rows lack.
    """

    train: SegmentationDataset
    validation: SegmentationDataset
    test: SegmentationDataset
    notes: tuple[str, ...] = ()


def class_counts_MK(dataset: SegmentationDataset, threads: int = 8) -> np.ndarray:
    """Return the pixels of every class in every row, (M, K) int64; every mask is read once.

    Raises:
        UserError: as `SegmentationDataset.mask`.
    """
    classes = len(dataset.classes)

    def counts_K(row: int) -> np.ndarray:
        ids = dataset.mask(row)
        return np.bincount(ids[ids != dataset.ignore_index], minlength=classes)

    with ThreadPoolExecutor(threads) as pool:
        counts = list(pool.map(counts_K, range(len(dataset))))
    return np.array(counts, dtype=np.int64).reshape(len(dataset), classes)


def without_bad_pairs(dataset: SegmentationDataset, threads: int = 8) -> SegmentationDataset:
    """Return `dataset` without the rows whose image or mask is unusable, listed in `skipped`.

    Every image and mask is decoded once.

    Raises:
        UserError: if no row is usable.
    """
    good, bad = usable_rows(dataset.pair, len(dataset), threads)
    if not good:
        raise UserError(f"{dataset.name}: none of its {len(dataset)} rows can be used: {bad[0]}")
    return replace(dataset.subset(good), skipped=bad) if bad else dataset


def _as_ids(mask: Image.Image | np.ndarray, where: str) -> np.ndarray:
    if isinstance(mask, Image.Image) and mask.mode not in _ID_MODES:
        raise UserError(
            f"{where}: its mask is a picture of mode {mask.mode}, whose colours are no class ids; "
            "store one channel of ids (an 8-bit grey or palette PNG)."
        )
    ids = np.asarray(mask)
    if ids.dtype == bool:
        ids = ids.astype(np.uint8)
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or ids.size == 0:
        raise UserError(
            f"{where}: its mask is {ids.dtype} of shape {ids.shape}; give whole class ids of shape "
            "(height, width)."
        )
    return ids

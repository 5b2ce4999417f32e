"""The labelled images that everything else is trained and evaluated on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar, overload

import numpy as np
from PIL import Image

from visgrpo.data.identity import of_rows
from visgrpo.errors import UserError

T = TypeVar("T")


class LazySequence(Sequence[T]):
    """A sequence whose item i is `get(rows[i])`, computed on access and never kept.

    Args:
        get: makes an item.
        rows: what is asked of `get`, by position.
        plain: whether items are values to pass on by name, and not pictures or masks.
    """

    def __init__(
        self, get: Callable[[int], T], rows: Sequence[int] | np.ndarray, *, plain: bool = False
    ) -> None:
        self._get = get
        self._rows = np.asarray(rows, dtype=np.int64)
        self.plain = plain

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> LazySequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | LazySequence[T]:
        if isinstance(index, slice):
            return LazySequence(self._get, self._rows[index], plain=self.plain)
        return self._get(int(self._rows[index]))

    def take(self, indices: np.ndarray) -> LazySequence[T]:
        """Return the rows at `indices`, without stacking one view on another."""
        return LazySequence(self._get, self._rows[indices], plain=self.plain)


@dataclass(frozen=True)
class ImageDataset:
    """M labelled images, with every other column of their table.

    Attributes:
        name: what messages call it, such as "digits/train".
        classes: class names; the position is the class id.
        labels: (M,) int64 class ids.
        images: M RGB images, indexable; may be decoded on access, and then raises `UserError`
            naming the image when it is unreadable.
        columns: every other column by name, each of length M (captions, votes, …).
        skipped: the unreadable images that were left out on request, with their reasons.
        identity: names the content (see `visgrpo.data.identity`): where images come from and
            which rows they are; "" when unknown. Whoever replaces `images` replaces it too.

    Raises:
        UserError: if a class is named twice, there are fewer than two classes, a label is outside
            the classes, or a column has another length than the labels.
    """

    name: str
    classes: tuple[str, ...]
    labels: np.ndarray
    images: Sequence[Image.Image]
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    identity: str = ""

    def __post_init__(self) -> None:
        check_classes(self.name, self.classes)
        labels = np.asarray(self.labels)
        if len(labels) and labels.dtype.kind not in "iu":
            raise UserError(f"{self.name}: labels are {labels.dtype}; give whole numbers.")
        labels = labels.astype(np.int64, copy=False)
        object.__setattr__(self, "labels", labels)
        outside = np.flatnonzero((labels < 0) | (labels >= len(self.classes)))
        if len(outside):
            row = int(outside[0])
            raise UserError(
                f"{self.name}: row {row} has label {labels[row]}, outside its {len(self.classes)} "
                f"classes (0 to {len(self.classes) - 1}); mend the row or the class names."
            )
        check_lengths(self.name, {"images": self.images, **self.columns}, len(labels), "label")

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Sequence[int] | np.ndarray) -> ImageDataset:
        """Return the rows at `indices`, in that order; images stay undecoded."""
        rows = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            labels=self.labels[rows],
            images=take_rows(self.images, rows),
            columns={name: take_rows(column, rows) for name, column in self.columns.items()},
            identity=of_rows(self.identity, rows),
        )


@dataclass(frozen=True)
class Splits:
    """Three data sets that share their classes and no row.

    Attributes:
        train: rows to learn from.
        validation: rows to choose by.
        test: rows to report on.
        notes: what was decided for the user, such as a test split made from the train rows.
    """

    train: ImageDataset
    validation: ImageDataset
    test: ImageDataset
    notes: tuple[str, ...] = ()


def is_plain(column: Sequence[Any]) -> bool:
    """Return whether a column holds no pictures, masks or encoded bytes; decodes no lazy one."""
    if isinstance(column, LazySequence):
        return column.plain
    if isinstance(column, np.ndarray) and column.dtype != object:
        return column.ndim <= 2 and column.dtype.kind not in "SV"
    return not any(
        isinstance(value, Image.Image | bytes) or getattr(value, "ndim", 0) > 1 for value in column
    )


def check_classes(name: str, classes: tuple[str, ...]) -> None:
    """Refuse class names that make no classification, in the data set called `name`.

    Raises:
        UserError: if a class is named twice, or there are fewer than two.
    """
    twice = [label for label, count in Counter(classes).items() if count > 1]
    if twice:
        raise UserError(
            f'{name}: class "{twice[0]}" is named twice; give every class its own name.'
        )
    if len(classes) < 2:
        only = f' ("{classes[0]}")' if classes else ""
        raise UserError(
            f"{name}: {len(classes)} class{only} found; a classifier needs at least two."
        )


def check_lengths(name: str, columns: Mapping[str, Sized], count: int, counted: str) -> None:
    """Refuse columns of another length than the `count` labels or images ("label", "image").

    Raises:
        UserError: if there is one.
    """
    for column, values in columns.items():
        if len(values) != count:
            raise UserError(
                f'{name}: column "{column}" has {len(values)} rows but there are '
                f"{count} {counted}s; give one value per {counted}."
            )


def _item(values: Sequence[T], index: int) -> T:
    return values[index]


def take_rows(values: Sequence[T], rows: np.ndarray) -> Sequence[T]:
    """Return the values at `rows`, in that order; pictures stay undecoded."""
    if isinstance(values, LazySequence):
        return values.take(rows)
    if isinstance(values, list | tuple):
        return [values[row] for row in rows]
    return LazySequence(partial(_item, values), rows, plain=is_plain(values))

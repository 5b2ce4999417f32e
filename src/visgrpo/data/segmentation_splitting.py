"""Setting rows with masks apart: by the rules for classification, stratified by rare classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from visgrpo.data.dataset import ImageDataset
from visgrpo.data.segmentation import SegmentationDataset, SegmentationSplits, class_counts_MK
from visgrpo.data.splitting import (
    Source,
    parse_split,
    select,
    sliced,
    stored_split,
    validation_as_test,
    with_test,
    with_validation,
)

_NAMES_SHOWN = 5


@dataclass(frozen=True)
class StoredMasks:
    """The splits as they are stored: "train", "validation", "test", or "all" when undivided."""

    name: str
    splits: Mapping[str, SegmentationDataset]


def divide_masks(
    stored: StoredMasks, *, train_rows: slice, fraction: float, seed: int
) -> SegmentationSplits:
    """Return the three splits, those that are missing made from the train rows.

    Raises:
        UserError: if there are no train rows, too few, or one of them has a bad mask.
    """
    present_MK = _present(stored)
    source = with_test(validation_as_test(_as_source(stored, present_MK)))
    train = sliced(stored_split(source, "train"), train_rows)
    source = with_validation(
        replace(source, splits={**source.splits, "train": train}), fraction, seed
    )
    train = source.splits["train"]
    return SegmentationSplits(
        _looked_up(stored, train),
        _looked_up(stored, source.splits["validation"]),
        _looked_up(stored, source.splits["test"]),
        (*source.notes, *_absent(train, present_MK[list(train.columns["row"])])),
    )


def one_split(
    stored: StoredMasks, split: str, *, fraction: float, seed: int
) -> SegmentationDataset:
    """Return the split, or the slice of one, that "train[:2000]" names.

    Raises:
        UserError: if the split or slice is unknown or empty.
    """
    name, rows = parse_split(split)
    source = validation_as_test(_as_source(stored, _present(stored)))
    if name != "all" and (name not in source.splits or name == "train"):
        source = with_test(source)  # a made test split leaves the train rows, whoever asks for them
    if name == "validation":
        source = with_validation(source, fraction, seed)
    return _looked_up(stored, select(source, name, rows))


def _present(stored: StoredMasks) -> np.ndarray:
    """Return which classes are in each row that may be divided, (M, K) bool."""
    dataset = stored.splits.get("all", stored.splits.get("train"))
    return np.empty((0, 0), dtype=bool) if dataset is None else class_counts_MK(dataset) > 0


def _as_source(stored: StoredMasks, present_MK: np.ndarray) -> Source:
    """Return the rows as if each had one label, its rarest class, with its place as columns."""
    whole = "all" if "all" in stored.splits else "train"
    splits = {
        split: ImageDataset(
            dataset.name,
            dataset.classes,
            labels=_rarest(present_MK) if split == whole else np.zeros(len(dataset), np.int64),
            images=dataset.images,
            columns={"split": [split] * len(dataset), "row": range(len(dataset))},
        )
        for split, dataset in stored.splits.items()
    }
    return Source(stored.name, splits)


def _rarest(present_MK: np.ndarray) -> np.ndarray:
    """Return the class of each row that the fewest rows have: (M,) ids, ties to the smaller."""
    frequency_K = present_MK.sum(axis=0)
    return np.where(present_MK, frequency_K, len(present_MK) + 1).argmin(axis=1)


def _looked_up(stored: StoredMasks, rows: ImageDataset) -> SegmentationDataset:
    dataset = stored.splits[rows.columns["split"][0]]
    if len(rows) < len(dataset):
        dataset = dataset.subset(rows.columns["row"])
    return replace(dataset, name=rows.name)


def _absent(train: ImageDataset, present_MK: np.ndarray) -> tuple[str, ...]:
    absent = [train.classes[k] for k in np.flatnonzero(~present_MK.any(axis=0))]
    if not absent:
        return ()
    shown = ", ".join(absent[:_NAMES_SHOWN]) + (", …" if len(absent) > _NAMES_SHOWN else "")
    are = "is" if len(absent) == 1 else "are"
    return (
        f"{len(absent)} of the {len(train.classes)} classes {are} on no pixel of {train.name} "
        f"({shown}): nothing can be learned about {'it' if len(absent) == 1 else 'them'}.",
    )

"""Setting rows apart: seeded stratified splits and slices of splits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from visgrpo.data.dataset import ImageDataset, Splits
from visgrpo.errors import UserError, nearest

TEST_FRACTION = 0.2
TEST_SEED = 20240917  # fixed: a test split made from the rows must not move with a run's seed
_SLICE = re.compile(r"(-?\d+)?:(-?\d+)?")
_STREAMS = {"test": 0, "validation": 1}


@dataclass(frozen=True)
class Source:
    """The splits as they are stored: "train", "validation", "test", or "all" when undivided."""

    name: str
    splits: Mapping[str, ImageDataset]
    notes: tuple[str, ...] = ()


def check_split_options(fraction: float, seed: int) -> None:
    """Refuse a `validation_fraction` or seed that can make no split.

    Raises:
        UserError: if the fraction is not between 0 and 1, or the seed is negative.
    """
    if seed < 0:
        raise UserError(f"seed must be 0 or more, not {seed}.")
    if not 0 < fraction < 1:
        raise UserError(f"validation_fraction must lie between 0 and 1, not {fraction}.")


def stratified_rows(
    labels: np.ndarray, fraction: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Part the rows in two, each class in proportion.

    Systematic sampling: rows are shuffled, sorted by class, and taken at even spacing from a
    random start, so the total is round(fraction · M) and each class is within one of its share.
    One row of every class always stays.

    Args:
        labels: (M,) class ids.
        fraction: share of the rows to take, between 0 and 1.
        rng: the randomness.

    Returns:
        The rows that stay and the rows taken, each ascending.
    """
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, first_of_class = np.unique(labels[by_class], return_index=True)
    candidates = np.delete(by_class, first_of_class)
    wanted = min(max(1, round(fraction * len(labels))), len(candidates))
    if wanted == 0:
        return np.arange(len(labels)), np.empty(0, dtype=np.int64)
    spacing = len(candidates) / wanted
    taken = candidates[((np.arange(wanted) + rng.random()) * spacing).astype(np.int64)]
    return np.setdiff1d(np.arange(len(labels)), taken), np.sort(taken)


def parse_slice(text: str) -> slice:
    """Read "2000:", ":2000" or "10:20".

    Raises:
        UserError: if `text` is none of these.
    """
    match = _SLICE.fullmatch(text.strip())
    if match is None:
        raise UserError(f'"{text}" is no slice of rows; write it as "2000:", ":2000" or "10:20".')
    start, stop = (int(bound) if bound else None for bound in match.groups())
    return slice(start, stop)


def parse_split(text: str) -> tuple[str, slice]:
    """Read "train" or "train[:2000]" as a split's name and its rows.

    Raises:
        UserError: if the split or its slice is unknown.
    """
    name, bracket, rest = text.partition("[")
    if name not in ("train", "validation", "test", "all"):
        raise UserError(
            f'Unknown split "{name}". {nearest(name, ("train", "validation", "test", "all"))}'
        )
    if not bracket:
        return name, slice(None)
    if not rest.endswith("]"):
        raise UserError(f'Split "{text}" has no closing bracket; write it as "{name}[:2000]".')
    return name, parse_slice(rest[:-1])


def sliced(dataset: ImageDataset, rows: slice) -> ImageDataset:
    """Return the rows of a slice.

    Raises:
        UserError: if there are none.
    """
    if rows == slice(None):
        return dataset
    chosen = np.arange(len(dataset))[rows]
    if len(chosen) == 0:
        bounds = [("" if bound is None else str(bound)) for bound in (rows.start, rows.stop)]
        raise UserError(
            f"{dataset.name}[{':'.join(bounds)}] holds no rows; it has {len(dataset)} in all."
        )
    return dataset.subset(chosen)


def select(source: Source, split: str, rows: slice) -> ImageDataset:
    """Return the rows of a slice of a split.

    Raises:
        UserError: if there is no such split, or no such rows.
    """
    if split not in source.splits:
        raise UserError(
            f"{source.name} is stored in the splits {', '.join(source.splits)}. "
            f"{nearest(split, source.splits)}"
        )
    return sliced(source.splits[split], rows)


def validation_as_test(source: Source) -> Source:
    """Return `source` with its stored validation split as "test" if it has train and no test.

    Where test labels are kept back, as ImageNet's are, results are quoted on the validation split;
    so it is kept for reporting, and validation is to be made from train.
    """
    if set(source.splits) != {"train", "validation"}:
        return source
    stored = source.splits["validation"]
    note = (
        f"{source.name} has no test split: its stored validation split ({len(stored)} rows) is the "
        "test split."
    )
    splits = {
        "train": source.splits["train"],
        "test": replace(stored, name=f"{source.name}/test"),
    }
    return replace(source, splits=splits, notes=(*source.notes, note))


def with_test(source: Source) -> Source:
    """Return `source` with a test split, made from an undivided or train split if need be."""
    if "test" in source.splits:
        return source
    whole_name = "all" if "all" in source.splits else "train"
    whole = stored_split(source, whole_name)
    train, test = _part(whole, "test", TEST_FRACTION, TEST_SEED)
    note = (
        f"{source.name} has no test split: {len(test)} of its {len(whole)} rows "
        f"({TEST_FRACTION:.0%}, stratified, the same for every seed) were set apart."
    )
    splits = {
        **source.splits,
        "train": replace(train, name=f"{source.name}/train"),
        "test": replace(test, name=f"{source.name}/test"),
    }
    return replace(source, splits=splits, notes=(*source.notes, note))


def with_validation(source: Source, fraction: float, seed: int) -> Source:
    """Return `source` with a validation split, made from its train rows if need be.

    Raises:
        UserError: if there are no train rows, or they are too few.
    """
    if "validation" in source.splits:
        return source
    whole = stored_split(source, "train")
    train, validation = _part(whole, "validation", fraction, seed)
    note = (
        f"{source.name} has no validation split: {len(validation)} of its {len(whole)} train rows "
        f"(stratified, seed {seed}) were set apart."
    )
    splits = {
        **source.splits,
        "train": train,
        "validation": replace(validation, name=f"{source.name}/validation"),
    }
    return replace(source, splits=splits, notes=(*source.notes, note))


def divide(source: Source, *, train_rows: slice, fraction: float, seed: int) -> Splits:
    """Return the three splits, those that are missing made from the train rows.

    Without a test split, a stored validation split becomes it first.

    Raises:
        UserError: if there are no train rows, they show one class only, or they are too few.
    """
    source = with_test(validation_as_test(source))
    train = sliced(stored_split(source, "train"), train_rows)
    present = np.unique(train.labels)
    if len(present) < 2:
        raise UserError(
            f'{train.name}: all {len(train)} rows are of class "{train.classes[present[0]]}"; '
            "give rows of at least two classes."
        )
    source = with_validation(
        replace(source, splits={**source.splits, "train": train}), fraction, seed
    )
    splits = source.splits
    return Splits(splits["train"], splits["validation"], splits["test"], source.notes)


def stored_split(source: Source, split: str) -> ImageDataset:
    """Return a split that is needed to make others.

    Raises:
        UserError: if it is not stored.
    """
    if split not in source.splits:
        raise UserError(
            f"{source.name} has no {split} split, only {', '.join(source.splits)}; "
            f"add one or choose another data set."
        )
    return source.splits[split]


def _part(
    dataset: ImageDataset, stream: str, fraction: float, seed: int
) -> tuple[ImageDataset, ImageDataset]:
    # A stream of its own for each split, so that equal seeds do not pick related rows.
    rng = np.random.default_rng([seed, _STREAMS[stream]])
    stay, taken = stratified_rows(dataset.labels, fraction, rng)
    if len(taken) == 0:
        raise UserError(
            f"{dataset.name}: {len(dataset)} images are too few to set a {stream} split apart; "
            "every class needs two images or more."
        )
    return dataset.subset(stay), dataset.subset(taken)

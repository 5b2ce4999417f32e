"""From what a user types (the counting world, a table, a Hub name) to questions about images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from visgrpo.data.prompt_splits import divide_prompted
from visgrpo.data.splitting import check_split_options
from visgrpo.data.tables import is_hub_name
from visgrpo.data.text_tables import text_tables
from visgrpo.data.visual import VisualDataset, VisualSplits, without_bad_rows
from visgrpo.data.visual_tables import Columns, StoredSplit, visual_rows
from visgrpo.errors import UserError, nearest

BUILT_IN = ("shapes",)
BUILT_IN_TESTS = (*BUILT_IN, "shapes-out")


def load_visual(
    spec: str,
    *,
    image_column: str | None = None,
    question_column: str | None = None,
    answer_column: str | None = None,
    trace_column: str | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    skip_bad_images: bool = False,
) -> VisualSplits:
    """Load questions about images in three splits.

    Missing splits are made as in `divide_prompted`, by image: rows that share one stay together.
    Images inside a table are compared by content, files by their paths.

    Args:
        spec: "shapes", the built-in counting world; a .jsonl or .parquet file or a folder of them;
            or a data set of the Hub.
        image_column: the column of a table that holds the images, or lists of several, when its
            name is not usual; paths are absolute or relative to the table's folder.
        question_column: the column of the questions.
        answer_column: the column of the true answers, text or numbers; without one of that name or
            a usual one, the answers are "".
        trace_column: the column of the reasoning to imitate.
        validation_fraction: share of the train images that makes a missing validation split.
        seed: chooses that validation split, and the images of the built-in world.
        skip_bad_images: decode every image once now and leave the rows with an unreadable one out,
            listed in each split's `skipped`; otherwise it is an error when it is used.

    Raises:
        UserError: if there is no such table or column, or a row has no image or no question.
    """
    check_split_options(validation_fraction, seed)
    columns = Columns(image_column, question_column, answer_column, trace_column)
    if spec in BUILT_IN:
        return _counting(spec, columns, seed)
    name, stored = _read(spec, columns, skip_bad_images)
    splits, made = _divided(name, stored, validation_fraction, seed)
    if skip_bad_images:
        splits = {split: without_bad_rows(dataset) for split, dataset in splits.items()}
    notes = tuple(note for part in stored.values() for note in part.dataset.notes)
    return VisualSplits(
        splits["train"], splits["validation"], splits["test"], notes=(*notes, *made)
    )


def load_visual_test(
    spec: str,
    *,
    image_column: str | None = None,
    question_column: str | None = None,
    answer_column: str | None = None,
    trace_column: str | None = None,
    seed: int = 0,
    skip_bad_images: bool = False,
) -> VisualDataset:
    """Load questions about images to evaluate on; nothing but a test split is needed.

    It is all rows of an undivided table; else the stored test split; else the stored validation
    split; else the test split that `load_visual` makes of the train rows.

    Args:
        spec: as for `load_visual`; or "shapes-out", the counting world out of distribution.
        image_column: as for `load_visual`, like all that follow.
        question_column: the column of the questions.
        answer_column: the column of the true answers.
        trace_column: the column of the reasoning.
        seed: of the built-in world.
        skip_bad_images: leave rows with an unreadable image out.

    Raises:
        UserError: as `load_visual`.
    """
    columns = Columns(image_column, question_column, answer_column, trace_column)
    if spec in BUILT_IN_TESTS:
        splits = _counting(spec, columns, seed, train=1, validation=1)
        return splits.shifts["out"] if spec == "shapes-out" else splits.test
    name, stored = _read(spec, columns, skip_bad_images)
    best = next((split for split in ("all", "test", "validation") if split in stored), None)
    if best is not None:
        dataset = stored[best].dataset
    else:
        parts, made = _divided(name, stored, fraction=0.1, seed=seed)
        dataset = replace(parts["test"], notes=(*parts["test"].notes, made[0]))
    return without_bad_rows(dataset) if skip_bad_images else dataset


@dataclass(frozen=True)
class _ByImage:
    """Rows that `divide_prompted` keeps together where they share an image."""

    dataset: VisualDataset
    prompts: tuple[str, ...]

    def named(self, name: str) -> _ByImage:
        return replace(self, dataset=self.dataset.named(name))

    def subset(self, indices: np.ndarray) -> _ByImage:
        prompts = tuple(self.prompts[row] for row in indices)
        return _ByImage(self.dataset.subset(indices), prompts)


def _divided(
    name: str, stored: Mapping[str, StoredSplit], fraction: float, seed: int
) -> tuple[dict[str, VisualDataset], tuple[str, ...]]:
    # Keys cost a pass over all encoded images: only rows that will be divided need them.
    whole = {"all", "train"} if len(stored) < 3 else set()
    rows = {
        split: _ByImage(part.dataset, part.keys() if split in whole else ())
        for split, part in stored.items()
    }
    splits, notes = divide_prompted(name, rows, fraction=fraction, seed=seed)
    return {split: part.dataset for split, part in splits.items()}, notes


def _counting(spec: str, columns: Columns, seed: int, **lengths: int) -> VisualSplits:
    from visgrpo.data.worlds.counting import counting_splits

    for kind, column in columns._asdict().items():
        if column is not None:
            raise UserError(
                f"--{kind}-column {column}: {spec} is drawn, and no table with columns; leave "
                f"--{kind}-column out."
            )
    return counting_splits(seed, **lengths)


def _read(spec: str, columns: Columns, missing_ok: bool) -> tuple[str, dict[str, StoredSplit]]:
    path = Path(spec).expanduser()
    if not path.exists() and not is_hub_name(spec) and "/" not in spec and not path.suffix:
        raise UserError(
            f'Unknown data set "{spec}". {nearest(spec, BUILT_IN_TESTS)} '
            "There is no file or folder of that name either."
        )
    folder = path if path.is_dir() else path.parent if path.is_file() else None
    tables = text_tables(spec)
    return tables.name, visual_rows(tables, columns, folder=folder, missing_ok=missing_ok)

"""Questions about images, with their answers: the rows that vision-language jobs work on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

from visgrpo.data.dataset import check_lengths, take_rows
from visgrpo.data.identity import of_rows
from visgrpo.data.images import usable_rows
from visgrpo.errors import UserError


@dataclass(frozen=True)
class VisualDataset:
    """M questions, each about one or several images.

    Attributes:
        name: what messages call it, such as "clevr/train".
        images: the RGB images of every row; may be decoded on access, and then raises `UserError`
            naming the image when it is unreadable.
        questions: the question of every row, without images and without how to answer.
        answers: the truth as text, such as "3"; "" where there is none.
        traces: reasoning to imitate, "" where a row has none; None where the data have none.
        columns: every plain column by name, each of length M; reward functions receive them.
            "answer" is always among them, and is `answers`.
        identity: names the content (see `visgrpo.data.identity`); "" when unknown.
        skipped: the unreadable images whose rows were left out on request, with their reasons.
        notes: what was decided to read them, such as files that lie elsewhere than the table says.
        rows: (M,) int64 places of the rows in `stored_as`, the data set they were first part of.

    Raises:
        UserError: if anything has another length than the questions.
    """

    name: str
    images: Sequence[tuple[Image.Image, ...]]
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    traces: tuple[str, ...] | None = None
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    identity: str = ""
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    rows: np.ndarray | None = None
    stored_as: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", {**self.columns, "answer": list(self.answers)})
        parts: dict[str, Sequence[Any]] = {"images": self.images, **self.columns}
        if self.traces is not None:
            parts["traces"] = self.traces
        check_lengths(self.name, parts, len(self.questions), "question")
        if self.rows is None:
            object.__setattr__(self, "rows", np.arange(len(self.questions)))
            object.__setattr__(self, "stored_as", self.name)

    def __len__(self) -> int:
        return len(self.questions)

    def where(self, row: int) -> str:
        """Return what messages call row `row`: its place in the data set as it is stored."""
        assert self.rows is not None  # set in __post_init__
        return f"{self.stored_as}: row {self.rows[row]}"

    def subset(self, indices: Sequence[int] | np.ndarray) -> VisualDataset:
        """Return the rows at `indices`, in that order; images stay undecoded."""
        chosen = np.asarray(indices, dtype=np.int64)
        assert self.rows is not None
        return replace(
            self,
            images=take_rows(self.images, chosen),
            questions=tuple(self.questions[row] for row in chosen),
            answers=tuple(self.answers[row] for row in chosen),
            traces=None if self.traces is None else tuple(self.traces[row] for row in chosen),
            columns={name: take_rows(column, chosen) for name, column in self.columns.items()},
            identity=of_rows(self.identity, chosen),
            rows=self.rows[chosen],
        )

    def named(self, name: str) -> VisualDataset:
        """Return the same rows under another name."""
        return replace(self, name=name)


@dataclass(frozen=True)
class VisualSplits:
    """Questions about images in three splits.

    Attributes:
        train: rows to learn from.
        validation: rows to choose by.
        test: rows to report on.
        shifts: test sets from elsewhere, out of distribution, by name.
        notes: what was decided for the user, such as a test split made from the train rows.
    """

    train: VisualDataset
    validation: VisualDataset
    test: VisualDataset
    shifts: Mapping[str, VisualDataset] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def without_bad_rows(dataset: VisualDataset, threads: int = 8) -> VisualDataset:
    """Return `dataset` without the rows that have an unreadable image, listed in `skipped`.

    Every image is decoded once.

    Raises:
        UserError: if no row is left.
    """
    good, bad = usable_rows(lambda row: dataset.images[row], len(dataset), threads)
    if not good:
        raise UserError(f"{dataset.name}: none of its {len(dataset)} rows can be read: {bad[0]}")
    return replace(dataset.subset(good), skipped=bad) if bad else dataset


def require_answers(dataset: VisualDataset) -> None:
    """Refuse a data set in which a row has no answer.

    Raises:
        UserError: if there is such a row.
    """
    if "" in dataset.answers:
        raise UserError(
            f"{dataset.where(dataset.answers.index(''))} has no answer; fill it or drop the row, "
            "or name the column of the answers with --answer-column."
        )


def require_traces(dataset: VisualDataset) -> None:
    """Refuse a data set in which a row has no reasoning to imitate.

    Raises:
        UserError: if there is such a row.
    """
    mend = "name the column that holds it with --trace-column, or choose --style direct."
    if dataset.traces is None:
        raise UserError(f"{dataset.name} has no reasoning to imitate; {mend}")
    if "" in dataset.traces:
        row = dataset.where(dataset.traces.index(""))
        raise UserError(f"{row} has no reasoning to imitate; fill it or drop the row, or {mend}")


def require_counts(dataset: VisualDataset) -> None:
    """Refuse a data set in which an answer is no count: digits alone, such as "3".

    Raises:
        UserError: if there is such a row.
    """
    require_answers(dataset)
    for row, answer in enumerate(dataset.answers):
        if not (answer.isascii() and answer.isdigit()):
            raise UserError(
                f'{dataset.where(row)} has the answer "{answer}", which is no count; give whole '
                "numbers, such as 3, or choose another task than counting."
            )

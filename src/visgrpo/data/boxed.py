"""True boxes of questions: read in the forms that people store them in, and put into the units and
the words that a model answers in.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from visgrpo.boxes import Edges, Labelled, NoBoxes, boxes_in, centre, check_true, scaled, written
from visgrpo.data.read import ASKED, DataKind, Reading, rows_drawn
from visgrpo.data.roles import ANSWERS, PROMPT_COLUMNS, QUESTIONS, answer_text
from visgrpo.data.table import Splits, Table
from visgrpo.errors import UserError

BoxFormat = Literal["xyxy", "xywh"]

_BOX_COLUMNS = ("bbox", "bboxes", "box", "boxes", "bbox_2d", "point")
_ASKING = ("expression", "caption", "normal_caption", "sentence", "phrase", "ref")
_DECIMALS = 2  # of true boxes as text


@dataclass(frozen=True)
class Units:
    """What coordinates are counted in.

    Attributes:
        sides: units that an image has from side to side, in either direction; None for its pixels.
        points: whether a point is answered, the middle of the true box.
        name: as the option has it.
    """

    sides: int | None = None
    points: bool = False
    name: str = "pixels"

    @classmethod
    def of(cls, coordinates: str, *, points: bool = False) -> Units:
        """Return the units of "pixels", "permille" or "bins:N".

        Raises:
            UserError: for anything else.
        """
        kind, _, number = coordinates.partition(":")
        if coordinates == "pixels":
            return cls(None, points, coordinates)
        if coordinates == "permille":
            return cls(1000, points, coordinates)
        if kind == "bins" and number.isdecimal() and 2 <= int(number) <= 10_000:
            return cls(int(number), points, coordinates)
        raise UserError(
            f"--coordinates {coordinates}: write pixels, permille, or bins:N, such as bins:56, "
            "with 2 to 10,000 bins from side to side."
        )

    def words(self) -> str:
        """Return what is asked for, in words."""
        what = "point as [x,y]" if self.points else "box as [left,top,right,bottom]"
        if self.sides is None:
            return f"the {what} in pixels"
        return f"the {what}, each 0 to {self.sides},"

    def answer(self, truth: str) -> str:
        """Return what is written for a true answer: whole numbers, and boxes that have an area."""
        boxes = boxes_in(truth)
        if self.points:
            boxes = [each._replace(box=(*centre(each), *centre(each))) for each in boxes]
        return written([each._replace(box=_whole(each.box)) for each in boxes])


def boxed_questions(form: BoxFormat) -> DataKind:
    """Return the kind of questions whose answers are boxes, or points.

    Args:
        form: what four plain numbers are: left, top, right, bottom, or left, top, width, height.
    """
    answers = replace(
        ANSWERS,
        usual=(*ANSWERS.usual, *_BOX_COLUMNS),
        decode=partial(_as_boxes, form=form),
    )
    questions = replace(QUESTIONS, usual=(*PROMPT_COLUMNS, *_ASKING))
    held = {QUESTIONS: questions, ANSWERS: answers}
    return replace(
        ASKED,
        roles=tuple(held.get(role, role) for role in ASKED.roles),
        worlds={"boxes": partial(_world, "boxes"), "detection": partial(_world, "detection")},
        elsewhere=("boxes-out", "detection-out"),
    )


def in_units(table: Table, units: Units, *, noise: float = 0.0, seed: int = 0) -> Table:
    """Return the same rows with true boxes in other units; rows without an answer stay as they are.

    Args:
        table: true boxes are in pixels of the first image of a row.
        units: that they are put into.
        noise: each edge is off by up to this share of its box's side, as if badly annotated.
        seed: of the noise, with the place of a row in its table.

    Raises:
        UserError: for a box without area, or outside its image, by its row.
    """
    answers = tuple(_converted(table, row, units, noise, seed) for row in range(len(table)))
    return replace(
        table,
        values={**table.values, "answers": answers},
        identity=table.identity and f"{table.identity} {units} noise {noise} {seed}",
    )


def check_boxes(table: Table, row: int, units: Units) -> None:
    """Raise UserError where the true boxes of a row cannot be used."""
    _converted(table, row, units, 0.0, 0)


def _converted(table: Table, row: int, units: Units, noise: float, seed: int) -> str:
    truth = table.answers[row]
    if not truth:
        return truth
    boxes, size = boxes_in(truth), _size(table, row)
    if not units.points:
        check_true(boxes, table.where(row), size)
    if noise:
        assert table.places is not None
        rng = np.random.default_rng((seed, 7, int(table.places[row])))
        boxes = [_noisy(each, noise, size, rng) for each in boxes]
    if units.sides is not None:
        boxes = scaled(boxes, units.sides / size[0], units.sides / size[1])
    return written(boxes, _DECIMALS)


def _size(table: Table, row: int) -> tuple[int, int]:
    """Return width and height of a row's first image, without decoding it where a table says so."""
    told = [table.columns.get(name) for name in ("width", "height")]
    if all(column is not None and isinstance(column[row], int) for column in told):
        width, height = (column[row] for column in told if column is not None)
        return width, height
    size: tuple[int, int] = table.images[row][0].size
    return size


def _noisy(
    each: Labelled, noise: float, size: tuple[int, int], rng: np.random.Generator
) -> Labelled:
    left, top, right, bottom = each.box
    sides = np.array([right - left, bottom - top] * 2)
    moved_4 = np.array(each.box) + rng.uniform(-noise, noise, 4) * sides
    low_2 = np.minimum(moved_4[:2], moved_4[2:]).clip(0, np.array(size) - 1)
    high_2 = np.maximum(moved_4[:2], moved_4[2:]).clip(low_2 + 1, size)
    return each._replace(box=(*low_2.tolist(), *high_2.tolist()))


def _whole(box: Edges) -> Edges:
    left, top, right, bottom = (float(round(edge)) for edge in box)
    if box[:2] == box[2:]:
        return left, top, right, bottom
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _as_boxes(value: Any, where: str, form: BoxFormat) -> str:
    """Return stored boxes as text in pixels, "" for null.

    Raises:
        UserError: for a value that is no box or list of boxes.
    """
    text = json.dumps(value) if isinstance(value, list | dict) else answer_text(value, where)
    if not text:
        return ""
    try:
        return written(boxes_in(text, sizes=form == "xywh"), _DECIMALS)
    except NoBoxes as error:
        raise UserError(
            f"{where} {error}; give [left, top, right, bottom] in pixels, or a list of boxes, or "
            "say --box-format xywh."
        ) from error


def _world(name: Any, reading: Reading) -> Splits:
    from visgrpo.data.worlds.boxes import box_splits

    return box_splits(reading.seed, name, **rows_drawn(name, reading))

"""Boxes as text, and how much they overlap: what worlds, data, rewards and measures agree on.

A box is left, top, right, bottom; a point, ``[12,40]``, is a box without an area. One is written
``[12,40,55,80]``, several ``[[12,40,55,80],[0,3,9,9]]``, and with what is in them
``[{"label":"red circle","box":[12,40,55,80]}]``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from visgrpo.errors import UserError

LONGEST = 20_000  # characters of an answer that is read: a bound on what a bad one costs
_KEYS = ("box", "bbox_2d", "bbox", "bounding_box", "position", "point", "point_2d")
_NAMES = ("label", "class", "category", "name")
_SCORES = ("score", "confidence")
_NOTHING = ("no objects", "none", "no object")  # how an empty list is said in words
_FENCE = "```"


Edges = tuple[float, float, float, float]


class Labelled(NamedTuple):
    """A box, what is in it ("" where that is not said), and how sure the answer is."""

    box: Edges
    label: str = ""
    score: float = 1.0


class NoBoxes(ValueError):
    """Why a text holds no boxes; a sentence without its end."""


def boxes_in(text: str, *, sizes: bool = False) -> list[Labelled]:
    """Return the boxes that a text lists; the whole text is the list.

    Read are one box, a list of boxes, and lists of objects with a box and perhaps a label and a
    score, as JSON, in single quotes too, or inside a Markdown fence.

    Args:
        sizes: the last two of four numbers are width and height.

    Raises:
        NoBoxes: for all else, corners that are turned, and numbers that are none.
    """
    stripped = text.strip()
    if stripped.startswith(_FENCE) and stripped.endswith(_FENCE):
        stripped = stripped.strip("`").removeprefix("json").strip()
    if stripped.lower().rstrip(".") in _NOTHING:
        return []
    if len(stripped) > LONGEST:
        raise NoBoxes(f"is longer than {LONGEST} characters")
    for quoted in (stripped, stripped.replace("'", '"')):
        try:
            value = json.loads(quoted)
        except (ValueError, RecursionError):
            continue
        return _listed(value, sizes)
    raise NoBoxes("is no list of boxes")


def written(boxes: Sequence[Labelled], decimals: int = 0) -> str:
    """Write boxes as they are answered: one without a label as itself, others as a list."""
    numbers = [_numbers(each.box, decimals) for each in boxes]
    if any(each.label for each in boxes):
        listed: Any = [
            {"label": each.label, "box": box} for each, box in zip(boxes, numbers, strict=True)
        ]
    else:
        listed = numbers[0] if len(numbers) == 1 else numbers
    return json.dumps(listed, ensure_ascii=False, separators=(",", ":"))


def scaled(boxes: Sequence[Labelled], across: float, down: float) -> list[Labelled]:
    """Return boxes in other units: so many of the new to one of the old, in either direction."""
    return [each._replace(box=_scaled(each.box, across, down)) for each in boxes]


def overlaps(first: Sequence[Labelled], second: Sequence[Labelled]) -> np.ndarray:
    """Return the intersection over union of every pair of boxes, (A, B), 0 to 1.

    It is the same in any units, also where those of the two directions differ.
    """
    a_A4 = np.array([each.box for each in first], dtype=np.float64).reshape(-1, 4)
    b_B4 = np.array([each.box for each in second], dtype=np.float64).reshape(-1, 4)
    low_AB2 = np.maximum(a_A4[:, None, :2], b_B4[None, :, :2])
    high_AB2 = np.minimum(a_A4[:, None, 2:], b_B4[None, :, 2:])
    common_AB = (high_AB2 - low_AB2).clip(min=0).prod(axis=2)
    both_AB = _areas(a_A4)[:, None] + _areas(b_B4)[None, :] - common_AB
    return np.divide(common_AB, both_AB, out=np.zeros_like(common_AB), where=both_AB > 0)


def centre(box: Labelled) -> tuple[float, float]:
    """Return the middle of a box, or the point that it is."""
    left, top, right, bottom = box.box
    return (left + right) / 2, (top + bottom) / 2


def inside(point: Labelled, box: Labelled) -> bool:
    """Return whether a point, or the middle of a box, lies in a box, its edges included."""
    across, down = centre(point)
    left, top, right, bottom = box.box
    return left <= across <= right and top <= down <= bottom


def matched(
    answered: Sequence[Labelled], true: Sequence[Labelled], *, labels: bool = True
) -> list[tuple[int, int, float]]:
    """Return the pairs (answered, true, IoU) whose IoU together is largest; each box is in one.

    Only boxes that overlap are a pair, and with `labels` only those of the same label, capitals
    aside, where the true boxes have any. The assignment is scipy's (Crouse 2016).
    """
    from scipy.optimize import linear_sum_assignment

    iou_AB = overlaps(answered, true)
    if labels and any(each.label for each in true):
        iou_AB = iou_AB * same_labels(answered, true)
    rows, columns = linear_sum_assignment(-iou_AB)
    pairs = zip(rows.tolist(), columns.tolist(), iou_AB[rows, columns].tolist(), strict=True)
    return [pair for pair in pairs if pair[2] > 0]


def same_labels(answered: Sequence[Labelled], true: Sequence[Labelled]) -> np.ndarray:
    """Return whether the label of every answered box is that of every true one, (A, B)."""
    return np.array(
        [[plain(a.label) == plain(b.label) for b in true] for a in answered], dtype=bool
    ).reshape(len(answered), len(true))


def plain(label: str) -> str:
    """Return what two labels must share to be the same."""
    return " ".join(label.casefold().split())


def check_true(boxes: Sequence[Labelled], where: str, size: tuple[int, int] | None) -> None:
    """Refuse true boxes without an area, and outside of an image of this width and height.

    Raises:
        UserError: naming the place.
    """
    for each in boxes:
        left, top, right, bottom = each.box
        shown = written([each._replace(label="")], 2)
        if left == right or top == bottom:
            raise UserError(f"{where}: its box {shown} has no area; mend it or drop the row.")
        if size is None:
            continue
        # A pixel of grace: edges are written up to the last pixel, or up to the one beyond.
        if left < -1 or top < -1 or right > size[0] + 1 or bottom > size[1] + 1:
            raise UserError(
                f"{where}: its box {shown} lies outside the image of {size[0]} × {size[1]} pixels; "
                "mend it, say --box-format xywh if it is left, top, width and height, or drop the "
                "row."
            )


def _listed(value: Any, sizes: bool) -> list[Labelled]:
    if isinstance(value, Mapping):
        return [_labelled(value, sizes)]
    if not isinstance(value, list):
        raise NoBoxes("is no list of boxes")
    if value and all(map(_is_number, value)):
        return [Labelled(_edges(value, sizes))]
    return [
        _labelled(each, sizes) if isinstance(each, Mapping) else Labelled(_edges(each, sizes))
        for each in value
    ]


def _labelled(value: Mapping[Any, Any], sizes: bool) -> Labelled:
    found = {str(key).lower(): each for key, each in value.items()}
    box = next((found[key] for key in _KEYS if key in found), None)
    if box is None:
        raise NoBoxes('has an object without "box"')
    label = next((found[key] for key in _NAMES if key in found), "")
    score = next((found[key] for key in _SCORES if key in found), 1.0)
    if not (isinstance(label, str) and _is_number(score)):
        raise NoBoxes("has a label that is no text, or a score that is no number")
    return Labelled(_edges(box, sizes), label, float(score))


def _edges(value: Any, sizes: bool) -> Edges:
    held = isinstance(value, list) and len(value) in (2, 4)
    if not held or not all(map(_is_number, value)):
        raise NoBoxes("has a box that is not four numbers")
    left, top, right, bottom = map(float, value * 2 if len(value) == 2 else value)
    if sizes and len(value) == 4:
        right, bottom = left + right, top + bottom
    if right < left or bottom < top:
        shown = ", ".join(f"{edge:g}" for edge in value)
        raise NoBoxes(f"has a box whose corners are turned, [{shown}]")
    return left, top, right, bottom


def _is_number(value: Any) -> bool:
    plain_number = isinstance(value, int | float) and not isinstance(value, bool)
    return plain_number and abs(value) < 1e9 and math.isfinite(value)


def _scaled(box: Edges, across: float, down: float) -> Edges:
    left, top, right, bottom = box
    return left * across, top * down, right * across, bottom * down


def _numbers(box: Sequence[float], decimals: int) -> list[float | int]:
    left, top, right, bottom = (_number(edge, decimals) for edge in box)
    return [left, top] if box[:2] == box[2:] else [left, top, right, bottom]


def _number(value: float, decimals: int) -> float | int:
    rounded = round(value, decimals)
    return int(rounded) if rounded == int(rounded) else rounded


def _areas(boxes_A4: np.ndarray) -> np.ndarray:
    areas: np.ndarray = (boxes_A4[:, 2:] - boxes_A4[:, :2]).prod(axis=1)
    return areas

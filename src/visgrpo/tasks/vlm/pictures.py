"""Pictures of answered boxes for the page of a run: true ones green, answered ones orange."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from visgrpo.boxes import Labelled, boxes_in, centre, scaled
from visgrpo.data.boxed import Units
from visgrpo.data.table import Table
from visgrpo.files import write_whole
from visgrpo.rewards.boxes import answered, mean_overlap
from visgrpo.training.run_directory import RunDirectory

PICTURES = 12
TRUE, ANSWERED = (22, 163, 74), (234, 88, 12)
_SIDE = 224  # pixels that a small image is enlarged to
_CROSS = 5  # pixels to either side of a point


def write_pictures(
    run: RunDirectory,
    dataset: Table,
    units: Units,
    before: Sequence[str],
    after: Sequence[str],
) -> None:
    """Write segments.jsonl, as the page reads it, and its pictures into a run directory.

    Args:
        dataset: held-out rows, whose true boxes are in the units.
        before, after: what was answered to each.
    """
    known = [row for row, answer in enumerate(dataset.answers) if answer]
    if not (known and run.writes):
        return
    (run.path / "samples").mkdir(exist_ok=True)
    places = np.linspace(0, len(known) - 1, min(PICTURES, len(known))).round().astype(int)
    lines = [
        json.dumps(_line(run, dataset, known[place], units, before, after), ensure_ascii=False)
        for place in np.unique(places).tolist()
    ]
    write_whole(run.path / "segments.jsonl", "\n".join(lines) + "\n")


def _line(
    run: RunDirectory,
    dataset: Table,
    row: int,
    units: Units,
    before: Sequence[str],
    after: Sequence[str],
) -> dict[str, Any]:
    image, true = dataset.images[row][0], boxes_in(dataset.answers[row])
    given = {"before": answered(before[row]) or [], "after": answered(after[row]) or []}
    line: dict[str, Any] = {"index": row, "question": dataset.questions[row]}
    drawn = {"image": image, "truth": _drawn(image, units, true, [])}
    drawn |= {moment: _drawn(image, units, true, boxes) for moment, boxes in given.items()}
    for what, picture in drawn.items():
        name = f"samples/test-{row}{'' if what == 'image' else f'-{what}'}.png"
        picture.save(run.path / name)
        line[what] = name
    if not units.points:
        line["iou"] = {moment: mean_overlap(boxes, true) for moment, boxes in given.items()}
    return line


def _drawn(
    image: Image.Image, units: Units, true: Sequence[Labelled], given: Sequence[Labelled]
) -> Image.Image:
    """Return the picture with boxes on it, enlarged where it is small."""
    larger = max(1, _SIDE // max(image.size))
    width, height = image.width * larger, image.height * larger
    picture = image.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
    sides = units.sides
    across, down = (width / sides, height / sides) if sides else (larger, larger)
    pen = ImageDraw.Draw(picture)
    for colour, boxes in ((TRUE, true), (ANSWERED, given)):
        for box in scaled(boxes, across, down):
            if box.box[:2] == box.box[2:]:
                _cross(pen, box, colour)
            else:
                pen.rectangle(box.box, outline=colour, width=max(2, width // 112))
    return picture


def _cross(pen: ImageDraw.ImageDraw, point: Labelled, colour: tuple[int, int, int]) -> None:
    x, y = centre(point)
    pen.line((x - _CROSS, y, x + _CROSS, y), fill=colour, width=2)
    pen.line((x, y - _CROSS, x, y + _CROSS), fill=colour, width=2)

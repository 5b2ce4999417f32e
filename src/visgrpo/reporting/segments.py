"""Pictures of a segmentation run: image, truth, answer before and after, and what colours mean."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from PIL import Image

from visgrpo.errors import UserError
from visgrpo.reporting.html import Picture, embed, open_picture
from visgrpo.reporting.labels import metric
from visgrpo.reporting.run_reader import Run, is_number, read_lines, read_object

MAX_SEGMENTS = 12
_MASKS = ("truth", "before", "after")


@dataclass(frozen=True)
class Panel:
    """One picture of a row, with its IoU written out where it has one."""

    heading: str
    picture: Picture
    iou: str


@dataclass(frozen=True)
class Segment:
    """One held-out image: the picture itself, the true mask, the masks before and after."""

    index: str
    panels: list[Panel]


@dataclass(frozen=True)
class Segments:
    """The rows of the page, and the colours that occur in their masks: {class: "#rrggbb"}."""

    rows: list[Segment]
    logged: int
    legend: dict[str, str]


def segments(run: Run) -> Segments | None:
    """Return the masks that a run wrote, None when it wrote none.

    ``segments.jsonl`` has one line for each image: ``index``, the files ``image``, ``truth``,
    ``before`` and ``after`` (while a run is going on perhaps without ``after``), and ``iou`` with
    ``before`` and ``after``. ``palette.json`` gives the colour of each class.

    Raises:
        UserError: One of the two files is damaged.
    """
    path = run.path / "segments.jsonl"
    if not path.exists():
        return None
    lines = read_lines(path, _check, not run.finished)
    colours: set[str] = set()
    rows = [_segment(run, line, colours) for line in lines[:MAX_SEGMENTS]]
    legend = {name: colour for name, colour in _palette(run).items() if colour in colours}
    return Segments(rows, len(lines), legend)


def _segment(run: Run, line: dict[str, Any], colours: set[str]) -> Segment:
    """Load the pictures of one line, and add the colours of its masks to ``colours``."""
    panels = []
    for heading in ("image", *_MASKS):
        if heading not in line:
            continue
        file, is_mask = line[heading], heading in _MASKS
        opened = open_picture(run.path, file)
        if opened is not None and is_mask:
            colours |= _colours(opened)
        iou = line.get("iou", {}).get(heading)
        panels.append(
            Panel(
                heading=heading,
                picture=Picture(file, None) if opened is None else embed(file, opened, is_mask),
                iou="" if iou is None else metric("iou").text(iou),
            )
        )
    return Segment(str(line.get("index", "–")), panels)


def _colours(mask: Image.Image) -> set[str]:
    found = mask.getcolors(maxcolors=mask.width * mask.height) or []
    return {"#{:02x}{:02x}{:02x}".format(*rgb) for _, rgb in found if isinstance(rgb, tuple)}


def _palette(run: Run) -> dict[str, str]:
    path = run.path / "palette.json"
    if not path.exists():
        return {}
    palette = read_object(path)
    for name, colour in palette.items():
        # The colour goes into a style attribute of the page: nothing else may.
        if not isinstance(colour, str) or not re.fullmatch(r"#[0-9a-f]{6}", colour):
            raise UserError(
                f'{path}: the colour of class "{name}" is {json.dumps(colour)}; '
                'write it as "#rrggbb".'
            )
    return palette


def _check(line: dict[str, Any]) -> None:
    for key in ("image", *_MASKS):
        if not isinstance(line.get(key, ""), str):
            raise ValueError(f'"{key}" must be the name of a file')
    if "image" not in line or "truth" not in line:
        raise ValueError('"image" and "truth" must be there')
    iou = line.get("iou", {})
    if not isinstance(iou, dict) or not all(v is None or is_number(v) for v in iou.values()):
        raise ValueError('"iou" must hold numbers')

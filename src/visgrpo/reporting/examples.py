"""Examples for the page: groups of outputs at their first and last step; pictures of masks."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from PIL import Image

from visgrpo.errors import UserError
from visgrpo.files import read_json, read_lines
from visgrpo.metrics import is_number, metric
from visgrpo.reporting.html import Picture, embed, open_picture, picture
from visgrpo.reporting.run import Run

MAX_EXAMPLES = 8
MAX_OUTPUTS = 8
MAX_SEGMENTS = 12
_MASKS = ("truth", "before", "after")


@dataclass(frozen=True)
class OutputRow:
    """One distinct output of a group; numbers are means over its copies, None if not logged.

    ``cut_off`` marks a completion that met the limit before it ended.
    """

    output: str
    right: bool
    count: int
    probability: float | None
    reward: float | None
    advantage: float | None
    gold: float | None = None
    cut_off: bool = False


@dataclass(frozen=True)
class GroupTable:
    """The distinct outputs of one group at one step, the most frequent first.

    Completions, of which few are alike, come by falling reward.
    """

    step: int
    size: int
    rows: list[OutputRow]
    left_out: int


@dataclass(frozen=True)
class Example:
    """One input and its groups: the first logged and, if it was logged again, the last."""

    index: str
    label: str | None
    prompt: str | None
    picture: Picture | None
    groups: list[GroupTable]

    @property
    def is_text(self) -> bool:
        """Whether this is a prompt with its completions; there may be a picture to it."""
        return self.prompt is not None

    @property
    def has_gold(self) -> bool:
        return any(row.gold is not None for table in self.groups for row in table.rows)


def examples(run: Run) -> tuple[list[Example], int]:
    """Return up to ``MAX_EXAMPLES`` examples, and the number of inputs that were logged.

    Inputs that were logged at more than one step come first, since they show the change; the
    others are taken from the beginning and the end of the run by turns.
    """
    by_input: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for sample in sorted(run.samples, key=lambda sample: sample["step"]):
        by_input[str(sample.get("index", sample.get("image")))].append(sample)
    again = [index for index, logged in by_input.items() if _steps_differ(logged)]
    once = [index for index, logged in by_input.items() if not _steps_differ(logged)]
    turns = [index for pair in zip(once, reversed(once), strict=True) for index in pair]
    chosen = list(dict.fromkeys([*again, *turns]))[:MAX_EXAMPLES]
    return [_example(run, index, by_input[index]) for index in chosen], len(by_input)


def group_table(sample: dict[str, Any]) -> GroupTable:
    """Count the distinct outputs of one samples.jsonl line."""
    places: dict[tuple[str, bool], list[int]] = defaultdict(list)
    ended = sample.get("ended") or [True] * len(sample["outputs"])
    for place, output in enumerate(sample["outputs"]):
        places[str(output), not ended[place]].append(place)
    label = None if sample.get("label") is None else str(sample["label"])
    rows = [
        OutputRow(
            output=output,
            right=output == label,
            count=len(at),
            probability=_mean(sample.get("probabilities"), at),
            reward=_mean(sample.get("rewards"), at),
            advantage=_mean(sample.get("advantages"), at),
            gold=_mean(sample.get("gold"), at),
            cut_off=cut_off,
        )
        for (output, cut_off), at in places.items()
    ]
    rows.sort(key=_by_reward if "ended" in sample else _by_count)
    return GroupTable(
        step=sample["step"],
        size=len(sample["outputs"]),
        rows=rows[:MAX_OUTPUTS],
        left_out=max(len(rows) - MAX_OUTPUTS, 0),
    )


def _by_count(row: OutputRow) -> tuple[float, float]:
    return -row.count, -(row.probability or 0.0)


def _by_reward(row: OutputRow) -> float:
    return math.inf if row.reward is None else -row.reward


def _steps_differ(logged: list[dict[str, Any]]) -> bool:
    return logged[0]["step"] != logged[-1]["step"]


def _example(run: Run, index: str, logged: list[dict[str, Any]]) -> Example:
    first, last = logged[0], logged[-1]
    image, label, prompt = last.get("image"), last.get("label"), last.get("prompt")
    shown = [first, last] if _steps_differ(logged) else [first]
    return Example(
        index=str(last.get("file", index)),
        label=None if label is None else str(label),
        prompt=None if prompt is None else str(prompt),
        picture=None if image is None else picture(run.path, str(image)),
        groups=[group_table(sample) for sample in shown],
    )


def _mean(values: list[float | None] | None, places: list[int]) -> float | None:
    if values is None:
        return None
    known = [value for place in places if (value := values[place]) is not None]
    return fmean(known) if known else None


# ---- masks of a segmentation --------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """One picture of a row, with its IoU written out where it has one."""

    heading: str
    picture: Picture
    iou: str


@dataclass(frozen=True)
class Segment:
    """One held-out image: the picture itself, the truth, and the answers before and after.

    ``question`` is what was asked about it, where boxes are answered and not masks.
    """

    index: str
    panels: list[Panel]
    question: str = ""


@dataclass(frozen=True)
class Segments:
    """The rows of the page, and the colours that occur in their masks: {class: "#rrggbb"}."""

    rows: list[Segment]
    logged: int
    legend: dict[str, str]

    @property
    def title(self) -> str:
        return "Boxes" if any(row.question for row in self.rows) else "Masks"


def segments(run: Run) -> Segments | None:
    """Return the masks or boxes that a run wrote, None when it wrote none.

    ``segments.jsonl`` has one line for each image: ``index``, the files ``image``, ``truth``,
    ``before`` and ``after`` (while a run is going on perhaps without ``after``), and ``iou`` with
    ``before`` and ``after``. ``palette.json`` gives the colour of each class. Of boxes, which are
    drawn on the image, a line has the ``question`` too.

    Raises:
        UserError: One of the two files is damaged.
    """
    path = run.path / "segments.jsonl"
    if not path.exists():
        return None
    lines = read_lines(path, check=_check_segment, going_on=not run.finished)
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
        file, is_mask = line[heading], heading in _MASKS and "question" not in line
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
    return Segment(str(line.get("index", "–")), panels, line.get("question", ""))


def _colours(mask: Image.Image) -> set[str]:
    found = mask.getcolors(maxcolors=mask.width * mask.height) or []
    return {"#{:02x}{:02x}{:02x}".format(*rgb) for _, rgb in found if isinstance(rgb, tuple)}


def _palette(run: Run) -> dict[str, str]:
    path = run.path / "palette.json"
    if not path.exists():
        return {}
    palette = read_json(path)
    for name, colour in palette.items():
        # The colour goes into a style attribute of the page: nothing else may.
        if not isinstance(colour, str) or not re.fullmatch(r"#[0-9a-f]{6}", colour):
            raise UserError(
                f'{path}: the colour of class "{name}" is {json.dumps(colour)}; '
                'write it as "#rrggbb".'
            )
    return palette


def _check_segment(line: dict[str, Any]) -> None:
    for key in ("image", *_MASKS):
        if not isinstance(line.get(key, ""), str):
            raise ValueError(f'"{key}" must be the name of a file')
    if not isinstance(line.get("question", ""), str):
        raise ValueError('"question" must be text')
    if "image" not in line or "truth" not in line:
        raise ValueError('"image" and "truth" must be there')
    iou = line.get("iou", {})
    if not isinstance(iou, dict) or not all(v is None or is_number(v) for v in iou.values()):
        raise ValueError('"iou" must hold numbers')

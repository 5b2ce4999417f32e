"""Example groups for the page: one input with its distinct outputs, at its first and last step."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from visgrpo.reporting.html import Picture, picture
from visgrpo.reporting.run_reader import Run

MAX_EXAMPLES = 8
MAX_OUTPUTS = 8


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
        index=index,
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

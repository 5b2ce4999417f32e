"""Read a run directory: configuration, metrics, sample groups and summary, checked line by line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12

from visgrpo.errors import UserError, nearest
from visgrpo.files import read_json, read_lines, read_yaml
from visgrpo.metrics import Subject, is_number

PROGRESS_KEYS = frozenset({"step", "epoch", "seconds"})
Across = Literal["step", "epoch", "token"]
SAMPLED_TOKENS = "sampled_tokens"
# Their methods are compared by passes over the data: steps hold batches of different sizes.
_RECIPES_BY_EPOCH = frozenset({"representation", "segmentation"})


class Config(TypedDict, total=False):
    """What pages read of config.yaml; the other options are shown as they are."""

    recipe: str | None
    method: str | None
    stage: str | None
    seed: int | None
    versions: dict[str, str]


class Pair(TypedDict, total=False):
    """Measures before and after."""

    before: dict[str, Any] | None
    after: dict[str, Any] | None


class Baseline(TypedDict):
    """A supervised run beside the one that is reported."""

    name: str
    after: dict[str, Any]


class Counts(TypedDict):
    """Confusions of counts."""

    counts: list[int]
    rows: list[list[int]]


class Feedback(TypedDict):
    """What a run learned from people."""

    coverage: float
    matched: int
    kind: str
    source: str
    unknown: str


class Summary(TypedDict, total=False):
    """What pages read of summary.json."""

    recipe: str | None
    method: str | None
    steps: int
    best_step: int | None
    seconds: float
    sampled_tokens: float
    tokens_per_second: float | None
    examples_per_second: float | None
    peak_memory_bytes: float | None
    before: dict[str, Any]
    after: dict[str, Any]
    baseline: Baseline | None
    shifts: dict[str, Pair]
    retention: dict[str, dict[str, float | None]]
    memory: dict[str, float]
    best_of_n: list[dict[str, float | None]]
    confusion: dict[str, Counts]
    feedback: Feedback | None


@dataclass(frozen=True)
class Run:
    """What one run directory holds.

    Attributes:
        path: The directory, as the user gave it.
        config: ``config.yaml``.
        metrics: ``metrics.jsonl``, one mapping per line, each with an integer "step".
        samples: ``samples.jsonl``; empty when the run logged no groups.
        summary: ``summary.json``; empty while the run is still going on.
    """

    path: Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    summary: dict[str, Any]

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def finished(self) -> bool:
        return bool(self.summary)

    @property
    def recipe(self) -> str | None:
        return self.summary.get("recipe") or self.config.get("recipe")

    @property
    def method(self) -> str | None:
        return self.summary.get("method") or self.config.get("method")

    @property
    def subject(self) -> Subject:
        """What the run is measured on: images, tokens, answers, or, of a reward model, pairs."""
        if self.recipe == "vlm":
            return "answers"
        if self.recipe != "language":
            return "images"
        return (
            "pairs"
            if "reward" in (self.method, self.config.get("stage"), self.config.get("method"))
            else "tokens"
        )

    @property
    def steps(self) -> int:
        """Optimiser steps of the run; of an unfinished one, the last that was logged."""
        return self.summary.get("steps", max((line["step"] for line in self.metrics), default=0))

    @property
    def seconds(self) -> float | None:
        """Time of the run; of an unfinished one, the time so far if it was logged."""
        logged = max((line.get("seconds", 0.0) for line in self.metrics), default=None)
        return self.summary.get("seconds", logged)

    @property
    def sampled_tokens(self) -> float | None:
        """Tokens that were sampled in training, None if the run does not count them."""
        values = (line.get(SAMPLED_TOKENS) for line in self.metrics)
        logged = [value for value in values if is_number(value)]
        return self.summary.get(SAMPLED_TOKENS, max(logged, default=None))

    @property
    def before(self) -> dict[str, Any]:
        """Measures of the start: from the summary, or the evaluation at step 0 if unfinished."""
        return self.summary.get("before") or _evaluation_at(self.metrics, 0)

    @property
    def after(self) -> dict[str, Any]:
        """Measures of the end; for an unfinished run, the last evaluation after step 0 so far."""
        if self.finished:
            return self.summary.get("after") or {}
        return _evaluation_at(self.metrics, self.last_evaluation) if self.last_evaluation else {}

    @property
    def shifts(self) -> dict[str, Any]:
        """Measures on data of other distributions: {name: {"before": …, "after": …}}."""
        return self.summary.get("shifts") or {}

    @property
    def last_evaluation(self) -> int:
        """The last step that has an evaluation line, 0 when there is none after the start."""
        steps = (line["step"] for line in self.metrics if any(k.startswith("eval/") for k in line))
        return max(steps, default=0)


def read_run(path: Path | str) -> Run:
    """Read the run directory ``path``; a run that is still going on is readable.

    Raises:
        UserError: There is no such folder, it is not a run, or one of its files is damaged.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f'Run folder "{path}" does not exist. {_similar_folder(path)}'.rstrip())
    for needed in ("config.yaml", "metrics.jsonl"):
        if not (path / needed).is_file():
            raise UserError(
                f'"{path}" is not a run: it has no {needed}. '
                "Give the folder that was passed as --output."
            )
    summary_file = path / "summary.json"
    summary = read_json(summary_file, Summary) if summary_file.exists() else {}
    # While a run is going on its last line may be half written: that line is left for later.
    going_on = not summary
    has_samples = (path / "samples.jsonl").exists()
    return Run(
        path=path,
        config=read_yaml(path / "config.yaml", Config),
        metrics=read_lines(path / "metrics.jsonl", check=_check_step, going_on=going_on),
        samples=read_lines(path / "samples.jsonl", check=_check_sample, going_on=going_on)
        if has_samples
        else [],
        summary=summary,
    )


def metric_keys(run: Run) -> list[str]:
    """Return the keys that have a number on at least one line, in order of first appearance."""
    found: dict[str, None] = {}
    for line in run.metrics:
        for key, value in line.items():
            if key not in PROGRESS_KEYS and is_number(value):
                found[key] = None
    return list(found)


def series(run: Run, key: str) -> tuple[list[int], list[float]]:
    """Return the steps and values of one metric, by rising step.

    Lines without the metric, or with ``null``, are left out. When a resumed run logged a step
    again, the later line counts.

    Raises:
        UserError: No line has a number under ``key``.
    """
    by_step = {line["step"]: float(line[key]) for line in run.metrics if is_number(line.get(key))}
    if not by_step:
        known = metric_keys(run)
        hint = nearest(key, known) if known else "It has logged no metrics yet."
        raise UserError(f'Run "{run.path}" has no metric "{key}". {hint}')
    steps = sorted(by_step)
    return steps, [by_step[step] for step in steps]


def across(runs: Sequence[Run]) -> Across:
    """Return what the curves of these runs go across: epochs if that suits all of them."""
    by_epoch = all(run.recipe in _RECIPES_BY_EPOCH and has_epochs(run) for run in runs)
    return "epoch" if by_epoch else "step"


def has_epochs(run: Run) -> bool:
    """Return whether every line says in which epoch it was written."""
    return all(is_number(line.get("epoch")) for line in run.metrics)


def common_subject(runs: Sequence[Run]) -> Subject:
    """Return what these runs are measured on; for those of several kinds, tokens before pairs."""
    subjects = {run.subject for run in runs}
    if len(subjects) == 1:
        return subjects.pop()
    return "images" if "images" in subjects else "tokens"


def positions(run: Run, steps: Sequence[int], axis: Across) -> list[float]:
    """Return where the given steps lie on an axis: the steps themselves, or their epochs.

    Or the tokens that were sampled up to them, in proportion between the lines that say so.
    """
    if axis == "step":
        return list(steps)
    if axis == "token":
        known, tokens = series(run, SAMPLED_TOKENS)
        return [float(place) for place in np.interp(steps, [0, *known], [0.0, *tokens])]
    epochs = {line["step"]: float(line["epoch"]) for line in run.metrics}
    return [epochs[step] for step in steps]


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested options into {"optimizer.lr": "0.001"}, values as YAML would show them."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _plain(value)
    return flat


def _plain(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(_plain, value)) if isinstance(value, list) else str(value)


def _evaluation_at(metrics: list[dict[str, Any]], step: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for line in metrics:
        if line["step"] == step:
            found |= {k.removeprefix("eval/"): v for k, v in line.items() if k.startswith("eval/")}
    return found


def _similar_folder(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    siblings = sorted(folder.name for folder in path.parent.iterdir() if folder.is_dir())
    return nearest(path.name, siblings) if siblings else ""


def _check_step(line: dict[str, Any]) -> None:
    step = line.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise ValueError('"step" must be a whole number, 0 or more')


def _check_sample(line: dict[str, Any]) -> None:
    _check_step(line)
    if not isinstance(line.get("outputs"), list):
        raise ValueError('"outputs" must be a list')
    for key in ("rewards", "advantages", "probabilities", "gold", "ended"):
        values = line.get(key)
        if values is not None and (
            not isinstance(values, list) or len(values) != len(line["outputs"])
        ):
            raise ValueError(f'"{key}" must be a list as long as "outputs"')

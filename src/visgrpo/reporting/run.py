"""Read a run directory: configuration, metrics, sample groups and summary, checked line by line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from visgrpo.errors import UserError, nearest
from visgrpo.metrics import Subject, is_number

PROGRESS_KEYS = frozenset({"step", "epoch", "seconds"})
Across = Literal["step", "epoch", "token"]
SAMPLED_TOKENS = "sampled_tokens"
# Their methods are compared by passes over the data: steps hold batches of different sizes.
_RECIPES_BY_EPOCH = frozenset({"representation", "segmentation"})


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
    summary = read_object(path / "summary.json") if (path / "summary.json").exists() else {}
    # While a run is going on its last line may be half written: that line is left for later.
    going_on = not summary
    has_samples = (path / "samples.jsonl").exists()
    return Run(
        path=path,
        config=_read_config(path / "config.yaml"),
        metrics=read_lines(path / "metrics.jsonl", _check_step, going_on),
        samples=read_lines(path / "samples.jsonl", _check_sample, going_on) if has_samples else [],
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


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not readable YAML: {reason}") from error
    if not isinstance(config, dict):
        raise UserError(f'{path} must hold one mapping, "option: value" on each line.')
    return config


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        UserError: The file is damaged.
    """
    try:
        value = _parse(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}). Restore or remove it.") from error
    return value


def read_lines(
    path: Path, check: Callable[[dict[str, Any]], None], going_on: bool
) -> list[dict[str, Any]]:
    """Read a file with one JSON object on each line, every one of them checked.

    Args:
        check: Raises ValueError, with the reason, on an object that will not do.
        going_on: The file is still being written: a last line without its end is left out.

    Raises:
        UserError: A line is damaged; it is named by its number.
    """
    *complete, last = path.read_bytes().split(b"\n")
    if last and not going_on:
        complete.append(last)
    lines = []
    for number, text in enumerate(complete, start=1):
        if not text.strip():
            continue
        try:
            line = _parse(text)
            if not isinstance(line, dict):
                raise ValueError("not a JSON object")
            check(line)
        except ValueError as error:
            raise UserError(
                f"{path}, line {number} is damaged ({error}). Mend or remove that line."
            ) from error
        lines.append(line)
    return lines


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


def _parse(text: bytes) -> Any:
    """Parse strict JSON: NaN and infinities, which Python would accept, are refused."""
    return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value

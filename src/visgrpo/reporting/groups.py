"""Runs side by side: seeds of one configuration together, differing options, a table of results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visgrpo.errors import UserError
from visgrpo.reporting.html import flatten
from visgrpo.reporting.labels import Subject, ordered
from visgrpo.reporting.run_reader import Run, common_subject, read_run, scalars

# Options that do not change what a run computes.
_NOT_COMPARED = frozenset({"output", "resume"})
# Columns of the table, where any run has them; kNN has one for each k.
_MEASURES = frozenset(
    {"miou", "pixel_accuracy", "mean_class_accuracy", "accuracy", "ece", "kl", "entropy", "nll"}
    | {"softmax_regression", "knn", "alignment", "uniformity"}
)
_LANGUAGE_MEASURES = frozenset(
    {"gold_reward", "reward", "perplexity", "bits_per_byte", "margin", "length"}
)
_ANSWER_MEASURES = frozenset(
    {"accuracy", "sampled_accuracy", "mean_absolute_error", "unparsed", "format", "reward", "nll"}
    | {"kl", "length"}
)
_MEASURES_OF: dict[Subject, frozenset[str]] = {
    "images": _MEASURES,
    "tokens": _MEASURES | _LANGUAGE_MEASURES,
    "pairs": _MEASURES | _LANGUAGE_MEASURES,
    "answers": _ANSWER_MEASURES,
}


@dataclass(frozen=True)
class RunGroup:
    """Runs whose configurations are the same but for seed and output folder: one curve."""

    name: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class TableCell:
    """A main value and, below it, where it came from."""

    main: str
    below: str = ""


def read_runs(paths: Sequence[Path | str]) -> list[Run]:
    """Read the runs to compare.

    Raises:
        UserError: Fewer than two runs, one run twice, or a folder that is not a readable run.
    """
    if len(paths) < 2:
        raise UserError("A comparison needs at least two run folders.")
    resolved = [Path(path).resolve() for path in paths]
    for path, place in zip(paths, resolved, strict=True):
        if resolved.count(place) > 1:
            raise UserError(f'Run "{path}" is given twice. Name each run once.')
    return [read_run(path) for path in paths]


def run_names(runs: Sequence[Run]) -> list[str]:
    """Return the folder name of each run, with its parents where folder names alone are equal."""
    names = [run.name for run in runs]
    return [
        name if names.count(name) == 1 else str(run.path)
        for name, run in zip(names, runs, strict=True)
    ]


def group_by_config(runs: Sequence[Run]) -> list[RunGroup]:
    """Put runs that differ only in seed and output folder together, in order of appearance.

    A run that is still going on stays apart: it would pull down the mean of those that are done.
    """
    found: dict[tuple[object, ...], list[tuple[str, Run]]] = {}
    for name, run in zip(run_names(runs), runs, strict=True):
        identity = (run.finished, run.recipe, run.method, *sorted(_compared_options(run).items()))
        found.setdefault(identity, []).append((name, run))
    return [
        RunGroup(_group_name([name for name, _ in members]), tuple(run for _, run in members))
        for members in found.values()
    ]


def named_members(group: RunGroup, runs: Sequence[Run]) -> list[tuple[str, Run]]:
    """Return the runs of a group, each with its name among all that are compared."""
    named = zip(run_names(runs), runs, strict=True)
    return [(name, run) for name, run in named if any(run is member for member in group.runs)]


def differing_options(groups: Sequence[RunGroup]) -> dict[str, list[str]]:
    """Return the options in which the groups differ: {"kl_weight": ["0.04", "0.1"]}."""
    options = [_compared_options(group.runs[0]) for group in groups]
    keys = dict.fromkeys(key for flat in options for key in flat)
    rows = {key: [flat.get(key, "–") for flat in options] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def compared_measures(runs: Sequence[Run]) -> list[str]:
    """Return the measures that at least one of the runs has, in reading order."""
    found = [key for run in runs for values in _measured(run) for key in values]
    subject = common_subject(runs)
    chosen = _MEASURES_OF[subject]
    return ordered([k for k in dict.fromkeys(found) if k.split("/")[0] in chosen], subject)


def comparison_table(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return one row for each run, as plain numbers; None where a run has no such value.

    Columns: run, recipe, method, seed, finished, then <measure>_before and <measure>_after for
    the measures that any of the runs has, then seconds, steps, peak_memory_bytes and
    sampled_tokens.
    """
    measures = compared_measures(runs)
    return [_row(name, run, measures) for name, run in zip(run_names(runs), runs, strict=True)]


def _row(name: str, run: Run, measures: Sequence[str]) -> dict[str, Any]:
    before, after = _measured(run)
    measured = {
        f"{measure}_{when}": values.get(measure)
        for measure in measures
        for when, values in (("before", before), ("after", after))
    }
    return {
        "run": name,
        "recipe": run.recipe,
        "method": run.method,
        "seed": run.config.get("seed"),
        "finished": run.finished,
        **measured,
        "seconds": run.seconds,
        "steps": run.steps,
        "peak_memory_bytes": run.summary.get("peak_memory_bytes"),
        "sampled_tokens": run.sampled_tokens,
    }


def _measured(run: Run) -> tuple[dict[str, float], dict[str, float]]:
    """Return the measures before and after; of answers, also "accuracy/out" on other data."""
    found = {"before": scalars(run.before), "after": scalars(run.after)}
    if run.subject == "answers":
        for name, values in run.shifts.items():
            for when, measures in found.items():
                if "accuracy" in (shifted := scalars(values.get(when) or {})):
                    measures[f"accuracy/{name}"] = shifted["accuracy"]
    return found["before"], found["after"]


def _compared_options(run: Run) -> dict[str, str]:
    return {
        key: value
        for key, value in flatten(run.config).items()
        if key.split(".")[-1] != "seed" and key not in _NOT_COMPARED
    }


def _group_name(names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    return f"{names[0]} … {names[-1]}, {len(names)} seeds"

"""Evaluate a saved model on any data set: `visgrpo evaluate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from visgrpo.data.read import read, read_split
from visgrpo.data.split import parse_split, sliced
from visgrpo.data.table import Splits, Table
from visgrpo.errors import UserError
from visgrpo.models.parts import model_folder, read_info
from visgrpo.reporting import print_measures
from visgrpo.tasks.images import columns_of
from visgrpo.tasks.model_kinds import kind_of, refuse_other_options
from visgrpo.tasks.session import print_notes
from visgrpo.tasks.task import Kind, kinds, loaded
from visgrpo.tasks.use_configs import EvaluateConfig
from visgrpo.training.processes import Processes

_WEAKEST = 5


class Evaluation(Protocol):
    """What models of one kind are measured by, on one data set.

    It is made of options and processes: that reads the data, and refuses what cannot be used.
    """

    title: str
    """What stands above the table: the data, and how much of it."""

    def measures(self, row: str, name: str) -> Mapping[str, Any]:
        """Return measures of a model by the row that they stand in.

        Args:
            row: "start" or "model"; the start comes first.
            name: a folder, or a name on the Hub.
        """


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Return the measures of a model, of the start, and of weights between the two.

    Keys are ``model``, ``start`` and ``alpha=…``; those that were asked for.

    Raises:
        UserError: for a model or data set that cannot be used, and options that do not go with it.
    """
    config.check()
    start = model_folder(config.start) if config.start else None
    config = replace(config, model=model_folder(config.model), start=start)
    names = {row: kind_of(name) for row, name in models_of(config)}
    refuse_other_options(config, names["model"])
    kind, start_kind = (kinds().get(names.get(row, "")) for row in ("model", "start"))
    assert kind is not None
    _check(config, kind, start_kind)
    evaluation: Evaluation = loaded(kind.evaluation)(config, Processes(config.device))
    results: dict[str, Any] = {}
    for row, name in models_of(config):
        results |= evaluation.measures(row, name)
    _show(results, config, evaluation.title)
    return results


def models_of(config: EvaluateConfig) -> Iterator[tuple[str, str]]:
    """The names of the rows to print, and their models; the start comes first."""
    if config.start:
        yield "start", config.start
    yield "model", config.model


def division_of(config: EvaluateConfig, fraction: float | None = None) -> dict[str, Any]:
    """Return how rows are divided: by the options first, then as in the model's own run.

    On the data that the model was tuned on, they are divided as they were then: with another seed
    most of a made validation split would be rows that the model was trained on.

    Args:
        fraction: of a made validation split where nothing else is known; None for the usual one.
    """
    info = read_info(config.model)
    trained_on = info.get("data")
    # Folders may be written in several ways; other names are not changed by this.
    same_data = trained_on is not None and Path(trained_on).resolve() == Path(config.data).resolve()
    resting = {"seed": 0, "validation_fraction": fraction, "train_slice": None}
    before = {**resting, **(info if same_data else {})}
    given = {name: getattr(config, name) for name in resting}
    return {name: before[name] if given[name] is None else given[name] for name in resting}


def splits_of(config: EvaluateConfig, kind: str = "labels", **more: Any) -> Splits:
    """Read data in three splits, for what learns from one and is judged on another.

    Args:
        kind: of data, as `read` has it, which takes more, too.
    """
    return read(config.data, kind, **_asked(config), **division_of(config), **more)


def rows_of(config: EvaluateConfig, kind: str = "labels", **more: Any) -> Table:
    """Read the rows to evaluate on; any that are stored, or of a validation split that is made."""
    division = division_of(config)
    split, rows = parse_split(config.split)
    if split == "validation" and division["train_slice"] is not None:
        return sliced(splits_of(config, kind, **more).validation, rows)
    del division["train_slice"]
    return read_split(config.data, config.split, kind, **_asked(config), **division, **more)


def rows_apart(config: EvaluateConfig, kind: str, fraction: float, processes: Processes) -> Table:
    """Read rows that share nothing with those of other splits; say how they were divided.

    Args:
        fraction: as in `division_of`.

    Raises:
        UserError: for a split of all rows.
    """
    split, rows = named_split(config)
    division = division_of(config, fraction)
    splits = read(config.data, kind, **_asked(config), **division)
    print_notes(splits.notes, processes)
    return sliced(getattr(splits, split), rows)


def named_split(config: EvaluateConfig) -> tuple[str, slice]:
    """Return a split and its rows, where rows of all splits together mean nothing.

    Raises:
        UserError: for "all".
    """
    split, rows = parse_split(config.split)
    if split == "all":
        raise UserError(f"--split {config.split}: name train, validation or test.")
    return split, rows


def _asked(config: EvaluateConfig) -> dict[str, Any]:
    return {"columns": columns_of(config), "skip_bad_images": config.skip_bad_images}


def _check(config: EvaluateConfig, kind: Kind, start: Kind | None) -> None:
    """Raise UserError where data must be named, and for a start that is no such model."""
    if kind.data is not None and config.data == EvaluateConfig.data:
        raise UserError(f'"{config.model}" is {kind.words}: name {kind.data} with --data.')
    if start not in (None, kind) and kind.alike:
        assert start is not None
        raise UserError(
            f'--start "{config.start}" is {start.words}: give {kind.words}, or leave --start out.'
        )


def _show(results: Mapping[str, Any], config: EvaluateConfig, title: str) -> None:
    """Print JSON, or a table of all rows; write the JSON file that was asked for."""
    if config.printed(results):
        return
    print_measures(title, _with_shifts(results))
    for measure in ("per_class_accuracy", "per_class_iou"):
        if measure in results["model"]:
            _print_weakest(results["model"][measure])


def _with_shifts(results: Mapping[str, Any]) -> dict[str, Any]:
    """Give the measures on every shifted copy a row of their own."""
    rows = {}
    for name, measures in results.items():
        rows[name] = measures
        for shift, shifted in measures.get("shifts", {}).items():
            rows[f"{name}, {shift}"] = shifted
    return rows


def _print_weakest(per_class: Mapping[str, float | None]) -> None:
    known = {name: value for name, value in per_class.items() if value is not None}
    worst = sorted(known, key=lambda name: known[name])[:_WEAKEST]
    print("Weakest classes: " + ", ".join(f"{name} {known[name]:.3f}" for name in worst))

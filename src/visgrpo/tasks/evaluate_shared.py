"""What the evaluation of every kind of model begins and ends with: its rows, and its table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visgrpo.data.dataset import ImageDataset, Splits
from visgrpo.data.sources import load_split, load_splits
from visgrpo.data.splitting import parse_split, sliced
from visgrpo.errors import UserError
from visgrpo.models.loading import read_info
from visgrpo.tasks.ending import print_measures
from visgrpo.tasks.use_configs import EvaluateConfig

_WEAKEST = 5


@dataclass(frozen=True)
class Division:
    """What decides the splits that have to be made."""

    seed: int = 0
    validation_fraction: float = 0.1
    train_slice: str | None = None


def division_of(
    config: EvaluateConfig, *, validation_fraction: float = Division.validation_fraction
) -> Division:
    """Return how rows are divided: by the options first, then as in the model's own run.

    On the data that the model was tuned on, they are divided as they were then: with another seed
    most of a made validation split would be rows that the model was trained on.
    """
    info = read_info(config.model)
    trained_on = info.get("data")
    # Folders may be written in several ways; other names are not changed by this.
    same_data = trained_on is not None and Path(trained_on).resolve() == Path(config.data).resolve()
    division: dict[str, Any] = {"validation_fraction": validation_fraction}
    for name in ("seed", "validation_fraction", "train_slice"):
        given = getattr(config, name)
        if given is not None:
            division[name] = given
        elif same_data and name in info:
            division[name] = info[name]
    return Division(**division)


def labelled_rows(config: EvaluateConfig) -> ImageDataset:
    """Load the labelled images to evaluate on."""
    division = division_of(config)
    name, rows = parse_split(config.split)
    if name == "validation" and division.train_slice is not None:
        return sliced(labelled_splits(config).validation, rows)
    return load_split(config.data, config.split, **_settings(config, division))


def labelled_splits(config: EvaluateConfig) -> Splits:
    """Load the three splits that probes learn from, choose by and are judged on."""
    division = division_of(config)
    settings = _settings(config, division)
    return load_splits(config.data, train_slice=division.train_slice, **settings)


def models_of(config: EvaluateConfig) -> Iterator[tuple[str, str]]:
    """The names of the rows to print, and their models; the start comes first."""
    if config.start:
        yield "start", config.start
    yield "model", config.model


def show(results: Mapping[str, Any], config: EvaluateConfig, title: str) -> None:
    """Print JSON, or a table of all rows; write the JSON file that was asked for.

    Args:
        results: the measures of "start" and "model" and whatever else was evaluated.

    Raises:
        UserError: where the file cannot be written.
    """
    text = json.dumps(results, indent=1, ensure_ascii=False)
    if config.json == "-":
        print(text)
        return
    if config.json:
        try:
            Path(config.json).write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"--json {config.json} cannot be written: {error.strerror}.") from error
    print_measures(title, _with_shifts(results))
    for measure in ("per_class_accuracy", "per_class_iou"):
        if measure in results["model"]:
            _print_weakest(results["model"][measure])


def _settings(config: EvaluateConfig, division: Division) -> dict[str, Any]:
    return {
        "image_column": config.image_column,
        "label_column": config.label_column,
        "skip_bad_images": config.skip_bad_images,
        "seed": division.seed,
        "validation_fraction": division.validation_fraction,
    }


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

"""Learning curves of one run, as matplotlib figures and as ``plots/<metric>.png``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from visgrpo.reporting.drawing import (
    LIGHT,
    Theme,
    line_style,
    moving_average,
    new_axes,
    png_bytes,
    settle_scale,
    smoothing_window,
)
from visgrpo.reporting.labels import Subject, metric, ordered
from visgrpo.reporting.run_reader import Run, across, metric_keys, positions, series

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Drawn as the band of "reward"; about speed, not learning; or the same curve as another one:
# entropy over log K, and the two parts of clip_ratio/region_mean. Then the ends of an interval, and
# what is the same at every evaluation.
_NO_CURVE_OF_THEIR_OWN = frozenset(
    {"reward_std", "step_time", "entropy_normalized", "clip_ratio/low_mean", "clip_ratio/high_mean"}
    | {"tokens_per_second", "sampled_tokens"}
    | {"accuracy_low", "accuracy_high", "majority", "examples"}
)


def curve_keys(run: Run) -> list[str]:
    """Return the metrics that get a curve: evaluations first, then training, in reading order."""
    keys = [
        key for key in metric_keys(run) if key.removeprefix("eval/") not in _NO_CURVE_OF_THEIR_OWN
    ]
    evaluation = [key for key in keys if key.startswith("eval/")]
    training = [key for key in keys if not key.startswith("eval/")]
    return ordered(evaluation, run.subject) + ordered(training, run.subject)


def curve_title(key: str, subject: Subject = "images") -> str:
    """Return the title of a curve, which says what it was measured on where that is in doubt."""
    title = metric(key, subject).title
    if key.startswith("eval/"):
        return f"{title}, validation"
    return f"{title}, training batches" if key in ("accuracy", "pixel_accuracy") else title


def curve_window(key: str, points: int) -> int:
    """Return the moving average's width; evaluations and schedules have no noise to average."""
    return 1 if key.startswith("eval/") or key == "learning_rate" else smoothing_window(points)


def curve_figure(run: Run, key: str, theme: Theme = LIGHT) -> Figure:
    """Draw one metric over optimiser steps, or over epochs where the recipe is judged by them.

    Evaluations are marked points. Training metrics are a line; with many points the raw line turns
    faint under its moving average. "reward" has a band of one "reward_std" on each side.

    Raises:
        UserError: The run has no such metric.
    """
    steps, values = series(run, key)
    label, axis = metric(key, run.subject), across([run])
    places = positions(run, steps, axis)
    window = curve_window(key, len(values))
    spread_at = _reward_std(run) if key == "reward" and len(steps) > 1 else {}
    notes = [f"mean over {window} logged points"] if window > 1 else []
    notes += ["band: ± std within a group"] if spread_at else []
    title = curve_title(key, run.subject)
    figure, axes = new_axes(label, theme, title=title, note=" · ".join(notes), across=axis)
    colour, _ = line_style(0, theme)

    if spread_at:
        shared = [n for n, step in enumerate(steps) if step in spread_at]
        middle = moving_average(values, window)[shared]
        spread = moving_average([spread_at[steps[n]] for n in shared], window)
        axes.fill_between(
            [places[n] for n in shared],
            middle - spread,
            middle + spread,
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
    marker = "o" if key.startswith("eval/") or len(values) == 1 else None
    axes.plot(
        places, values, color=colour, marker=marker, markersize=5, label=key,
        linewidth=1.0 if window > 1 else 1.8, alpha=0.28 if window > 1 else 1.0,
    )  # fmt: skip
    if window > 1:
        axes.plot(places, moving_average(values, window), color=colour, linewidth=2.0, label="mean")
    settle_scale(axes, label)
    return figure


def plot_curves(run: Run, out_dir: Path | str) -> list[Path]:
    """Write one PNG for each metric that the run logged, and return their paths.

    "eval/accuracy" becomes ``eval_accuracy.png``.
    """
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for key in curve_keys(run):
        path = folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', key)}.png"
        path.write_bytes(png_bytes(curve_figure(run, key)))
        paths.append(path)
    return paths


def _reward_std(run: Run) -> dict[int, float]:
    if "reward_std" not in metric_keys(run):
        return {}
    steps, values = series(run, "reward_std")
    return dict(zip(steps, values, strict=True))

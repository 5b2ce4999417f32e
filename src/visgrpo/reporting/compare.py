"""Several runs on one offline page: overlaid curves, a table of results, differing options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from visgrpo.errors import UserError, nearest
from visgrpo.reporting.curves import curve_keys, curve_title, curve_window
from visgrpo.reporting.drawing import LIGHT, Theme, line_style, moving_average, new_axes
from visgrpo.reporting.groups import (
    MEASURES,
    RunGroup,
    comparison_table,
    differing_options,
    group_by_config,
    read_runs,
    run_names,
)
from visgrpo.reporting.html import both_themes, render, write_whole
from visgrpo.reporting.labels import Metric, duration, memory, metric, ordered
from visgrpo.reporting.run_reader import Run, metric_keys, series

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Band:
    """One metric of one group: mean, least and greatest of its runs at the steps all have."""

    steps: list[int]
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class TableCell:
    """A main value and, below it, where it came from."""

    main: str
    below: str = ""


def compare_runs(
    run_paths: Sequence[Path | str], metrics: Sequence[str] | None, output: Path | str
) -> Path:
    """Write one page that compares runs, and return its path.

    Args:
        run_paths: At least two run directories. Runs that differ only in their seed are one curve,
            the mean, with a band from the least to the greatest.
        metrics: Keys to draw, such as "eval/accuracy"; None or empty draws all that were logged.
        output: The page, or an existing folder to write ``compare.html`` into.

    Raises:
        UserError: Fewer than two runs, a run that cannot be read, or a metric that no run has.
    """
    runs = read_runs(run_paths)
    groups = group_by_config(runs)
    page = render(
        "compare.html.j2",
        groups=groups,
        runs=runs,
        columns=[metric(key) for key in MEASURES],
        rows=[(group, _group_rows(group, runs)) for group in groups],
        plots=[_plot(groups, runs, key) for key in _chosen(runs, metrics)],
        differing=differing_options(groups),
        unfinished=[row["run"] for row in comparison_table(runs) if not row["finished"]],
    )
    path = Path(output)
    return write_whole(path / "compare.html" if path.is_dir() else path, page)


def group_band(group: RunGroup, key: str) -> Band | None:
    """Return a group's curve of one metric, None when none of its runs has it.

    Runs with many points are smoothed one by one, before the mean is taken over runs.
    """
    curves = [series(run, key) for run in group.runs if key in metric_keys(run)]
    if not curves:
        return None
    window = curve_window(key, max(len(steps) for steps, _ in curves))
    by_step = [dict(zip(s, moving_average(v, window), strict=True)) for s, v in curves]
    steps = sorted(set.intersection(*map(set, by_step)))
    values = np.array([[curve[step] for step in steps] for curve in by_step])
    return Band(steps, values.mean(axis=0), values.min(axis=0), values.max(axis=0))


def overlay_figure(groups: Sequence[RunGroup], key: str, theme: Theme = LIGHT) -> Figure:
    """Draw one metric of every group that has it; colours follow the order of the groups."""
    bands = [group_band(group, key) for group in groups]
    smoothed = any(curve_window(key, len(band.steps)) > 1 for band in bands if band is not None)
    notes = ["moving average"] if smoothed else []
    if any(len(group.runs) > 1 for group in groups):
        notes.append("line: mean of seeds, band: least to greatest")
    figure, axes = new_axes(metric(key), theme, title=curve_title(key), note=" · ".join(notes))
    for place, (group, band) in enumerate(zip(groups, bands, strict=True)):
        if band is None:
            continue
        colour, dash = line_style(place, theme)
        marker = "o" if key.startswith("eval/") or len(band.steps) == 1 else None
        axes.plot(
            band.steps, band.mean, color=colour, linestyle=dash, marker=marker, markersize=4,
            linewidth=1.8, label=group.name,
        )  # fmt: skip
        if len(group.runs) > 1:
            axes.fill_between(
                band.steps, band.low, band.high, color=colour, alpha=0.18, linewidth=0
            )
    return figure


def _chosen(runs: Sequence[Run], metrics: Sequence[str] | None) -> list[str]:
    known = list(dict.fromkeys(key for run in runs for key in metric_keys(run)))
    for key in metrics or ():
        if key not in known:
            hint = nearest(key, known) if known else "They have logged no metrics yet."
            raise UserError(f'None of the runs has the metric "{key}". {hint}')
    if metrics:
        return list(dict.fromkeys(metrics))
    drawn = list(dict.fromkeys(key for run in runs for key in curve_keys(run)))
    evaluation = [key for key in drawn if key.startswith("eval/")]
    return ordered(evaluation) + ordered([key for key in drawn if key not in evaluation])


def _plot(groups: Sequence[RunGroup], runs: Sequence[Run], key: str) -> dict[str, Any]:
    drawn = [place for place, group in enumerate(groups) if group_band(group, key) is not None]
    return {
        "plot": both_themes(curve_title(key), partial(overlay_figure, groups, key)),
        "drawn": drawn,
        "absent": [
            name
            for name, run in zip(run_names(runs), runs, strict=True)
            if key not in metric_keys(run)
        ],
    }


def _group_rows(group: RunGroup, runs: Sequence[Run]) -> list[tuple[str, list[TableCell]]]:
    """Return the table rows of a group: each run, then their mean when there are several."""
    table = [
        row
        for row, run in zip(comparison_table(runs), runs, strict=True)
        if any(run is member for member in group.runs)
    ]
    rows = [(row["run"], _run_cells(row)) for row in table]
    if len(table) > 1:
        rows.append((f"mean of {len(table)}", _mean_cells(table)))
    return rows


def _run_cells(row: dict[str, Any]) -> list[TableCell]:
    cells = [TableCell(row["method"] or "–")]
    for key in MEASURES:
        before, after = row[f"{key}_before"], row[f"{key}_after"]
        below = "" if before is None else f"from {metric(key).text(before)}"
        cells.append(TableCell("–" if after is None else metric(key).text(after), below))
    return cells + [TableCell(text) for text in _costs(row)]


def _mean_cells(table: list[dict[str, Any]]) -> list[TableCell]:
    def cell(column: str, write: Callable[[float], str]) -> TableCell:
        values = [row[column] for row in table if row[column] is not None]
        if not values:
            return TableCell("–")
        return TableCell(write(fmean(values)), f"{write(min(values))} to {write(max(values))}")

    labels: dict[str, Metric] = {key: metric(key) for key in MEASURES}
    measured = [cell(f"{key}_after", label.text) for key, label in labels.items()]
    costs = [cell("seconds", duration), cell("steps", _whole), cell("peak_memory_bytes", memory)]
    return [TableCell(table[0]["method"] or "–"), *measured, *(TableCell(c.main) for c in costs)]


def _costs(row: dict[str, Any]) -> list[str]:
    writers = {"seconds": duration, "steps": _whole, "peak_memory_bytes": memory}
    return ["–" if row[key] is None else write(row[key]) for key, write in writers.items()]


def _whole(value: float) -> str:
    return f"{value:.0f}"

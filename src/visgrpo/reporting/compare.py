"""Several runs on one offline page: overlaid curves, a table of results, differing options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from visgrpo.errors import UserError, nearest
from visgrpo.reporting.convergence import convergence_keys, convergence_rows
from visgrpo.reporting.curves import curve_keys, curve_title, curve_window
from visgrpo.reporting.drawing import (
    LIGHT,
    Theme,
    line_style,
    moving_average,
    new_axes,
    settle_scale,
)
from visgrpo.reporting.groups import (
    RunGroup,
    comparison_table,
    differing_options,
    group_by_config,
    read_runs,
    run_names,
)
from visgrpo.reporting.html import both_themes, render, write_whole
from visgrpo.reporting.labels import metric, ordered
from visgrpo.reporting.model_memory import memory_parts
from visgrpo.reporting.overoptimization import (
    REWARDS,
    drawn_groups,
    has_overoptimization,
    overoptimization_figure,
    overoptimization_title,
)
from visgrpo.reporting.result_table import result_headings, result_rows
from visgrpo.reporting.run_reader import (
    SAMPLED_TOKENS,
    Across,
    Run,
    across,
    common_subject,
    metric_keys,
    positions,
    series,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Their other metrics are on the page of each run. The loss is not the same for every method;
# the negative log-likelihood is.
_JUDGED_BY_EPOCH = ("eval/miou", "eval/accuracy", "eval/nll", "loss")


@dataclass(frozen=True)
class Band:
    """One metric of one group: mean, least and greatest of its runs at the steps all have.

    ``places`` is where those steps lie on the axis: the steps themselves, or their epochs.
    """

    steps: list[int]
    places: list[float]
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def compare_runs(
    run_paths: Sequence[Path | str], metrics: Sequence[str] | None, output: Path | str
) -> Path:
    """Write one page that compares runs, and return its path.

    Args:
        run_paths: At least two run directories. Runs that differ only in their seed are one curve,
            the mean, with a band from the least to the greatest.
        metrics: Keys to draw, such as "eval/accuracy"; None or empty draws all that were logged, or
            of runs that are judged by epochs the accuracy or mean IoU and the losses.
        output: The page, or an existing folder to write ``compare.html`` into.

    Raises:
        UserError: Fewer than two runs, a run that cannot be read, or a metric that no run has.
    """
    runs = read_runs(run_paths)
    groups = group_by_config(runs)
    converging = convergence_keys(runs, metrics)
    page = render(
        "compare.html.j2",
        groups=groups,
        runs=runs,
        columns=result_headings(runs),
        rows=[(group, result_rows(group, runs)) for group in groups],
        memory=[
            (place, parts)
            for place, group in enumerate(groups)
            if (parts := memory_parts(group.runs))
        ],
        convergence_columns=[metric(key) for key in converging],
        convergence=[(group, convergence_rows(group, runs, converging)) for group in groups],
        overoptimization=_overoptimization(groups),
        by_tokens=[_plot(groups, runs, key, "token") for key in _by_tokens(runs)],
        plots=[_plot(groups, runs, key, across(runs)) for key in _chosen(runs, metrics)],
        differing=differing_options(groups),
        unfinished=[row["run"] for row in comparison_table(runs) if not row["finished"]],
    )
    path = Path(output)
    return write_whole(path / "compare.html" if path.is_dir() else path, page)


def group_band(group: RunGroup, key: str, axis: Across = "step") -> Band | None:
    """Return a group's curve of one metric, None when none of its runs has it.

    Runs with many points are smoothed one by one, before the mean is taken over runs.
    """
    runs = [run for run in group.runs if _has(run, key, axis)]
    if not runs:
        return None
    curves = [series(run, key) for run in runs]
    window = curve_window(key, max(len(steps) for steps, _ in curves))
    by_step = [dict(zip(s, moving_average(v, window), strict=True)) for s, v in curves]
    steps = sorted(set.intersection(*map(set, by_step)))
    values = np.array([[curve[step] for step in steps] for curve in by_step])
    places = _places(runs, steps, axis)
    return Band(steps, places, values.mean(axis=0), values.min(axis=0), values.max(axis=0))


def overlay_figure(
    groups: Sequence[RunGroup], key: str, theme: Theme = LIGHT, axis: Across | None = None
) -> Figure:
    """Draw one metric of every group that has it; colours follow the order of the groups.

    Args:
        axis: What goes across; None chooses steps, or epochs if that suits all runs.
    """
    runs = [run for group in groups for run in group.runs]
    axis = axis or across(runs)
    label, title = metric(key, common_subject(runs)), curve_title(key, common_subject(runs))
    bands = [group_band(group, key, axis) for group in groups]
    smoothed = any(curve_window(key, len(band.steps)) > 1 for band in bands if band is not None)
    notes = ["moving average"] if smoothed else []
    if any(len(group.runs) > 1 for group in groups):
        notes.append("line: mean of seeds, band: least to greatest")
    figure, axes = new_axes(label, theme, title=title, note=" · ".join(notes), across=axis)
    for place, (group, band) in enumerate(zip(groups, bands, strict=True)):
        if band is None:
            continue
        colour, dash = line_style(place, theme)
        marker = "o" if key.startswith("eval/") or len(band.steps) == 1 else None
        axes.plot(
            band.places, band.mean, color=colour, linestyle=dash, marker=marker, markersize=4,
            linewidth=1.8, label=group.name,
        )  # fmt: skip
        if len(group.runs) > 1:
            axes.fill_between(
                band.places, band.low, band.high, color=colour, alpha=0.18, linewidth=0
            )
    settle_scale(axes, label)
    return figure


def _chosen(runs: Sequence[Run], metrics: Sequence[str] | None) -> list[str]:
    known = list(dict.fromkeys(key for run in runs for key in metric_keys(run)))
    for key in metrics or ():
        if key not in known:
            hint = nearest(key, known) if known else "They have logged no metrics yet."
            raise UserError(f'None of the runs has the metric "{key}". {hint}')
    if metrics:
        return list(dict.fromkeys(metrics))
    judged = [key for key in _JUDGED_BY_EPOCH if key in known]
    if across(runs) == "epoch" and judged:
        return judged
    drawn = list(dict.fromkeys(key for run in runs for key in curve_keys(run)))
    evaluation = [key for key in drawn if key.startswith("eval/")]
    training = [key for key in drawn if key not in evaluation]
    subject = common_subject(runs)
    return ordered(evaluation, subject) + ordered(training, subject)


def _by_tokens(runs: Sequence[Run]) -> list[str]:
    """Return the held-out rewards to draw against sampled tokens, if there are runs to compare.

    A run that trains nothing, such as best-of-n, has no such curve.
    """
    return [key for key in REWARDS if sum(_has(run, key, "token") for run in runs) > 1]


def _has(run: Run, key: str, axis: Across) -> bool:
    keys = metric_keys(run)
    return key in keys and (axis != "token" or SAMPLED_TOKENS in keys)


def _places(runs: Sequence[Run], steps: Sequence[int], axis: Across) -> list[float]:
    """Return where steps lie: at the same place for all runs, but for the tokens they sampled."""
    if axis != "token":
        return positions(runs[0], steps, axis)
    return [
        fmean(of_runs) for of_runs in zip(*(positions(r, steps, axis) for r in runs), strict=True)
    ]


def _overoptimization(groups: Sequence[RunGroup]) -> dict[str, Any] | None:
    if not has_overoptimization(groups):
        return None
    draw = partial(overoptimization_figure, groups)
    return {
        "plot": both_themes(overoptimization_title(groups), draw),
        "drawn": drawn_groups(groups),
        "absent": [],
    }


def _plot(
    groups: Sequence[RunGroup], runs: Sequence[Run], key: str, axis: Across
) -> dict[str, Any]:
    bands = [group_band(group, key, axis) for group in groups]
    return {
        "plot": both_themes(
            curve_title(key, common_subject(runs)), partial(overlay_figure, groups, key, axis=axis)
        ),
        "drawn": [place for place, band in enumerate(bands) if band is not None],
        "absent": [
            name
            for name, run in zip(run_names(runs), runs, strict=True)
            if not _has(run, key, axis)
        ],
    }

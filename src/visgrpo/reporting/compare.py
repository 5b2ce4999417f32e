"""Several runs on one offline page: overlaid curves, a table of results, differing options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from visgrpo.errors import UserError, nearest
from visgrpo.files import write_whole
from visgrpo.metrics import Metric, main_keys, metric
from visgrpo.reporting.figures import (
    LIGHT,
    Theme,
    curve_keys,
    curve_title,
    curve_window,
    draw_band,
    evaluations_first,
    evenly,
    line_style,
    moving_average,
    new_axes,
    settle_scale,
)
from visgrpo.reporting.groups import (
    RunGroup,
    convergence_keys,
    convergence_rows,
    differing_options,
    group_by_config,
    read_runs,
    result_headings,
    result_rows,
    run_names,
    unlike,
)
from visgrpo.reporting.html import both_themes, render
from visgrpo.reporting.outcome import memory_parts
from visgrpo.reporting.overoptimization import REWARDS, drawn_groups, overoptimization
from visgrpo.reporting.run import (
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
    parts = [(place, memory_parts(group.runs)) for place, group in enumerate(groups)]
    against_kl = overoptimization(groups)
    page = render(
        "compare.html.j2",
        groups=groups,
        runs=runs,
        columns=result_headings(runs),
        rows=[(group, result_rows(group, runs)) for group in groups],
        memory=[(place, memory) for place, memory in parts if memory],
        convergence_columns=[metric(key) for key in converging],
        convergence=[(group, convergence_rows(group, runs, converging)) for group in groups],
        overoptimization=against_kl
        and {"plot": against_kl, "drawn": drawn_groups(groups), "absent": []},
        by_tokens=[_plot(groups, runs, key, "token") for key in _by_tokens(runs)],
        plots=[_plot(groups, runs, key, across(runs)) for key in _chosen(runs, metrics)],
        differing=differing_options(groups),
        unlike=unlike(runs),
        unfinished=[n for n, run in zip(run_names(runs), runs, strict=True) if not run.finished],
    )
    path = Path(output)
    return write_whole(path / "compare.html" if path.is_dir() else path, page)


def group_band(group: RunGroup, key: str, axis: Across = "step") -> Band | None:
    """Return a group's curve of one metric, None when none of its runs has it.

    Runs with many points are smoothed one by one, before the mean is taken over runs. Steps lie at
    the same place for all of them, but for the tokens they sampled: at the mean of those.
    """
    runs = [run for run in group.runs if _has(run, key, axis)]
    if not runs:
        return None
    curves = [series(run, key) for run in runs]
    window = curve_window(key, max(len(steps) for steps, _ in curves))
    by_step = [dict(zip(s, moving_average(v, window), strict=True)) for s, v in curves]
    steps = sorted(set.intersection(*map(set, by_step)))
    values = np.array([[curve[step] for step in steps] for curve in by_step])
    places = [positions(run, steps, axis) for run in (runs if axis == "token" else runs[:1])]
    across_runs = np.mean(places, axis=0).tolist() if len(places) > 1 else places[0]
    return Band(steps, across_runs, values.mean(axis=0), values.min(axis=0), values.max(axis=0))


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
            draw_band(axes, band.places, band.low, band.high, colour, 0.18)
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
    # Their other metrics are on the page of each run. The loss is not the same for every method;
    # the negative log-likelihood is.
    by_epoch = (*(f"eval/{key}" for key in main_keys()), "eval/nll", "loss")
    judged = [key for key in by_epoch if key in known]
    if across(runs) == "epoch" and judged:
        return judged
    drawn = list(dict.fromkeys(key for run in runs for key in curve_keys(run)))
    return evaluations_first(drawn, common_subject(runs))


def _by_tokens(runs: Sequence[Run]) -> list[str]:
    """Return the held-out rewards to draw against sampled tokens, if there are runs to compare.

    A run that trains nothing, such as best-of-n, has no such curve.
    """
    return [key for key in REWARDS if sum(_has(run, key, "token") for run in runs) > 1]


def _has(run: Run, key: str, axis: Across) -> bool:
    keys = metric_keys(run)
    return key in keys and (axis != "token" or SAMPLED_TOKENS in keys)


def _values(
    groups: Sequence[RunGroup], bands: Sequence[Band | None], label: Metric
) -> list[list[str]]:
    """Return what the lines are drawn from, as a table: a column for each group, means of seeds."""
    drawn = {g.name: band for g, band in zip(groups, bands, strict=True) if band is not None}
    columns = [dict(zip(band.places, band.mean.tolist(), strict=True)) for band in drawn.values()]
    places = sorted(set().union(*columns))
    rows = [
        [f"{places[n]:g}", *(label.text(c[places[n]]) if places[n] in c else "–" for c in columns)]
        for n in evenly(len(places))
    ]
    return [["", *drawn], *rows]


def _plot(
    groups: Sequence[RunGroup], runs: Sequence[Run], key: str, axis: Across
) -> dict[str, Any]:
    bands = [group_band(group, key, axis) for group in groups]
    draw = partial(overlay_figure, groups, key, axis=axis)
    named = zip(run_names(runs), runs, strict=True)
    plot = both_themes(curve_title(key, common_subject(runs)), draw)
    return {
        "plot": replace(plot, values=_values(groups, bands, metric(key, common_subject(runs)))),
        "drawn": [place for place, band in enumerate(bands) if band is not None],
        "absent": [name for name, run in named if not _has(run, key, axis)],
    }

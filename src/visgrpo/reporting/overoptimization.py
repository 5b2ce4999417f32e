"""Over-optimisation: the reward that is trained on, and the true one, against KL.

Gao et al. 2022 (arXiv 2210.10760) draw both against d = √KL: the proxy goes on rising where the
gold reward has begun to fall.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from visgrpo.files import write_whole
from visgrpo.metrics import metric
from visgrpo.reporting.figures import (
    LIGHT,
    Theme,
    line_style,
    new_figure,
    png_bytes,
    settle_scale,
    style_axes,
)
from visgrpo.reporting.groups import RunGroup
from visgrpo.reporting.html import Plot, both_themes
from visgrpo.reporting.run import Run, metric_keys, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_INCHES = (5.4, 3.6)
_KL = "eval/kl"
REWARDS = {"eval/reward": "Reward that is trained on", "eval/gold_reward": "Gold reward"}


@dataclass(frozen=True)
class Trajectory:
    """How KL and one reward went together during a run, at the evaluations that have both."""

    steps: list[int]
    kl: np.ndarray
    values: np.ndarray


def reward_trajectory(run: Run, key: str) -> Trajectory | None:
    """Return one reward against KL, None where it and KL were never measured together.

    KL that is estimated on samples may come out below zero: it is taken as zero then.
    """
    if not {_KL, key} <= set(metric_keys(run)):
        return None
    kl = dict(zip(*series(run, _KL), strict=True))
    values = dict(zip(*series(run, key), strict=True))
    steps = [step for step in values if step in kl]
    if not steps:
        return None
    return Trajectory(
        steps=steps,
        kl=np.array([max(kl[step], 0.0) for step in steps]),
        values=np.array([values[step] for step in steps]),
    )


def best_of_n_trajectory(run: Run, key: str) -> Trajectory | None:
    """Return the points of best-of-n sampling, "steps" being n; None where the run has none."""
    name = key.removeprefix("eval/")
    rows = [row for row in run.summary.get("best_of_n") or [] if row.get(name) is not None]
    if not rows:
        return None
    return Trajectory(
        steps=[row["n"] for row in rows],
        kl=np.array([row["kl"] for row in rows], dtype=np.float64),
        values=np.array([row[name] for row in rows], dtype=np.float64),
    )


def overoptimization(groups: Sequence[RunGroup], png: Path | None = None) -> Plot | None:
    """Return the figure for a page, None where no run measured a reward and KL together.

    Args:
        png: A file to write the figure of light pages into.
    """
    keys = _panels(groups)
    if not keys:
        return None
    light = png_bytes(overoptimization_figure(groups))
    if png is not None:
        write_whole(png, light)
    title = " and ".join(REWARDS[key].lower() for key in keys) + " against KL"
    return both_themes(title, partial(overoptimization_figure, groups), light=light)


def drawn_groups(groups: Sequence[RunGroup]) -> list[int]:
    """Return the places of the groups that have a curve or points in the figure."""
    return [place for place, group in enumerate(groups) if _panels([group])]


def overoptimization_figure(groups: Sequence[RunGroup], theme: Theme = LIGHT) -> Figure:
    """Draw each reward against KL, a panel for each; colours follow the order of the groups.

    The two rewards have units of their own, and so they never share an axis. The scale of KL is
    that of its square root. Several seeds are thin lines under their mean; best-of-n is squares.
    """
    keys = _panels(groups)
    figure = new_figure((PANEL_INCHES[0] * len(keys), PANEL_INCHES[1]), theme)
    edges = {"left": 0.145 / len(keys), "right": 1 - 0.035 / len(keys)}
    figure.subplots_adjust(**edges, top=0.83, bottom=0.145, wspace=0.22)
    furthest = max(float(drawn.kl.max()) for key in keys for drawn in _drawn(groups, key))
    for place, key in enumerate(keys):
        axes = figure.add_subplot(1, len(keys), place + 1)
        _draw_panel(axes, groups, key, theme)
        _square_root_scale(axes, furthest)
    return figure


def _panels(groups: Sequence[RunGroup]) -> list[str]:
    """Return the rewards that can be drawn against KL: of language runs only."""
    return [key for key in REWARDS if _drawn(groups, key)]


def _mean(paths: Sequence[Trajectory]) -> Trajectory:
    """Return the mean KL and the mean reward at the steps that all of them have."""
    steps = sorted(set.intersection(*(set(path.steps) for path in paths)))
    at = [[path.steps.index(step) for step in steps] for path in paths]
    kl, values = (
        np.mean([getattr(path, of)[places] for path, places in zip(paths, at, strict=True)], axis=0)
        for of in ("kl", "values")
    )
    return Trajectory(steps, kl, values)


def _drawn(groups: Sequence[RunGroup], key: str) -> list[Trajectory]:
    runs = [run for group in groups for run in group.runs if run.subject == "tokens"]
    found = [draw(run, key) for run in runs for draw in (reward_trajectory, best_of_n_trajectory)]
    return [trajectory for trajectory in found if trajectory is not None]


def _draw_panel(axes: Axes, groups: Sequence[RunGroup], key: str, theme: Theme) -> None:
    label = metric(key, "tokens")
    notes = []
    for place, group in enumerate(groups):
        colour, dash = line_style(place, theme)
        paths = [path for run in group.runs if (path := reward_trajectory(run, key))]
        if len(paths) > 1:
            notes.append("thin: each seed")
            for path in paths:
                axes.plot(path.kl, path.values, color=colour, linewidth=0.8, alpha=0.4)
        if paths:
            mean = _mean(paths)
            axes.plot(
                mean.kl, mean.values, color=colour, linestyle=dash, linewidth=1.8, marker="o",
                markersize=4, label=group.name, clip_on=False,
            )  # fmt: skip
        for points in (path for run in group.runs if (path := best_of_n_trajectory(run, key))):
            notes.append("squares: best of n")
            _draw_points(axes, points, colour, theme)
    note = " · ".join(dict.fromkeys(notes))
    across = f"{metric(_KL, 'tokens').title}, {metric(_KL, 'tokens').unit}, √ scale"
    style_axes(axes, label, theme, title=REWARDS[key], note=note, across=across)
    settle_scale(axes, label)


def _draw_points(axes: Axes, points: Trajectory, colour: str, theme: Theme) -> None:
    axes.plot(points.kl, points.values, linestyle="", marker="s", markersize=5, color=colour)
    for n, kl, value in zip(points.steps, points.kl, points.values, strict=True):
        axes.annotate(
            f"{n}", (kl, value), xytext=(0, 6), textcoords="offset points", ha="center",
            fontsize=7.5, color=theme.faint,
        )  # fmt: skip


def _square_root_scale(axes: Axes, furthest: float) -> None:
    """Let KL go across as its square root, from 0 to the furthest; ticks are KL itself."""
    from matplotlib.ticker import FixedLocator, StrMethodFormatter

    axes.set_xscale("function", functions=(_root, np.square))
    axes.set_xlim(0, 1.05 * furthest or 1.0)
    axes.xaxis.set_major_locator(FixedLocator(_root_ticks(furthest)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _root_ticks(furthest: float) -> list[float]:
    """Return 0 and up to five round numbers, about evenly spaced in their square roots."""
    if furthest <= 0:
        return [0.0, 1.0]
    ticks = [0.0]
    for share in (0.04, 0.16, 0.36, 0.64, 1.0):
        value = share * furthest
        size = 10.0 ** np.floor(np.log10(value))
        ticks.append(float(f"{np.floor(value / size * 2) / 2 * size:.2g}"))
    return sorted(set(ticks))


def _root(values: np.ndarray) -> np.ndarray:
    return np.sqrt(np.clip(values, 0, None))

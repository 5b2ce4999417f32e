"""Plots: their common look, curves of one run, and ``plots/<metric>.png``. Never pyplot's state."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from visgrpo.files import write_whole
from visgrpo.metrics import Metric, Subject, metric, ordered
from visgrpo.reporting.run import Across, Run, across, metric_keys, positions, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE_INCHES = (5.4, 3.3)
DOTS_PER_INCH = 160
MANY_POINTS = 40
MOST_VALUES = 25
ROUNDING = 1e-5
"""A smaller range, as a share of the values, is the rounding of float32 and of means over it."""


@dataclass(frozen=True)
class Theme:
    """Colours of one plot. The palettes are Okabe and Ito's, safe for colour-blind readers."""

    background: str
    ink: str
    faint: str
    grid: str
    palette: tuple[str, ...]


LIGHT = Theme(
    background="#ffffff",
    ink="#1c2430",
    faint="#667080",
    grid="#e6e9ee",
    palette=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"),
)
DARK = Theme(
    background="#1a2029",
    ink="#e8ecf2",
    faint="#97a3b4",
    grid="#2c3440",
    palette=("#56b4e9", "#f0843c", "#2bc79a", "#e29cc4", "#f0c13c", "#a9b8ff", "#ffffff"),
)
ACROSS: dict[Across, str] = {
    "step": "optimiser step",
    "epoch": "epoch",
    "token": "sampled tokens",
}
DASHES: tuple[str, ...] = ("-", "--", ":", "-.")


# ---- curves of one run --------------------------------------------------------------------------


def curve_keys(run: Run) -> list[str]:
    """Return the metrics that get a curve: evaluations first, then training, in reading order."""
    keys = [key for key in metric_keys(run) if not metric(key, run.subject).is_hidden("curve")]
    return evaluations_first(keys, run.subject)


def evaluations_first(keys: Sequence[str], subject: Subject) -> list[str]:
    """Sort keys: evaluations before training, both in reading order."""
    return sorted(ordered(keys, subject), key=lambda key: not key.startswith("eval/"))


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
    spread_at: dict[int, float] = {}
    if key == "reward" and len(steps) > 1 and "reward_std" in metric_keys(run):
        spread_at = dict(zip(*series(run, "reward_std"), strict=True))
    notes = [f"mean over {window} logged points"] if window > 1 else []
    notes += ["band: ± std within a group"] if spread_at else []
    title = curve_title(key, run.subject)
    figure, axes = new_axes(label, theme, title=title, note=" · ".join(notes), across=axis)
    colour, _ = line_style(0, theme)

    if spread_at:
        shared = [n for n, step in enumerate(steps) if step in spread_at]
        middle = moving_average(values, window)[shared]
        spread = moving_average([spread_at[steps[n]] for n in shared], window)
        draw_band(axes, [places[n] for n in shared], middle - spread, middle + spread, colour, 0.15)
    marker = "o" if key.startswith("eval/") or len(values) == 1 else None
    axes.plot(
        places, values, color=colour, marker=marker, markersize=5, label=key,
        linewidth=1.0 if window > 1 else 1.8, alpha=0.28 if window > 1 else 1.0,
    )  # fmt: skip
    if window > 1:
        axes.plot(places, moving_average(values, window), color=colour, linewidth=2.0, label="mean")
    settle_scale(axes, label)
    return figure


def curve_values(run: Run, key: str) -> list[tuple[str, str]]:
    """Return what a curve is drawn from, as a table: places and values written out.

    Of more than `MOST_VALUES` points, some that lie evenly, with the first and the last.
    """
    steps, values = series(run, key)
    places, text = positions(run, steps, across([run])), metric(key, run.subject).text
    return [(f"{places[n]:g}", text(values[n])) for n in evenly(len(steps))]


def evenly(points: int) -> list[int]:
    """Return which of some points a table has: at most `MOST_VALUES`, the first and last too."""
    return sorted(set(np.linspace(0, points - 1, MOST_VALUES).round().astype(int).tolist()))


def is_constant(run: Run, key: str) -> bool:
    """Return whether a curve has several points that are all the same, but for rounding."""
    values = series(run, key)[1]
    return len(values) > 1 and max(values) - min(values) <= ROUNDING * max(map(abs, values))


def plot_curves(run: Run, out_dir: Path | str) -> list[Path]:
    """Write one PNG for each metric that the run logged, and return their paths.

    "eval/accuracy" becomes ``eval_accuracy.png``.
    """
    folder, paths = Path(out_dir), []
    for key in curve_keys(run):
        path = folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', key)}.png"
        paths.append(write_whole(path, png_bytes(curve_figure(run, key))))
    return paths


def smoothing_window(points: int) -> int:
    """Return the odd width of the moving average: 1 (none) up to 40 points, then about a 20th."""
    return 1 if points <= MANY_POINTS else max(5, points // 20) | 1


def moving_average(values: Sequence[float], window: int) -> np.ndarray:
    """Return the centred mean over ``window`` (odd) points; at the ends, over those that exist."""
    padded = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    places = np.arange(len(values))
    low = np.maximum(places - window // 2, 0)
    high = np.minimum(places + window // 2 + 1, len(values))
    return (padded[high] - padded[low]) / (high - low)


# ---- the common look ----------------------------------------------------------------------------


def line_style(index: int, theme: Theme) -> tuple[str, str]:
    """Return colour and dash of curve ``index``: dashes change once the palette is used up."""
    turn, place = divmod(index, len(theme.palette))
    return theme.palette[place], DASHES[turn % len(DASHES)]


def draw_band(
    axes: Axes,
    places: Sequence[float],
    low: np.ndarray,
    high: np.ndarray,
    colour: str,
    alpha: float,
) -> None:
    """Fill what lies between two curves."""
    axes.fill_between(places, low, high, color=colour, alpha=alpha, linewidth=0)


def new_axes(
    label: Metric, theme: Theme, *, title: str, note: str = "", across: Across = "step"
) -> tuple[Figure, Axes]:
    """Make a figure with labelled axes: steps or epochs across, the metric's unit upwards."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    figure = new_figure(SIZE_INCHES, theme)
    figure.subplots_adjust(left=0.145, right=0.965, top=0.82, bottom=0.155)
    axes = figure.add_subplot()
    style_axes(axes, label, theme, title=title, note=note, across=ACROSS[across])
    whole = across == "step"  # a run may end within its first epoch
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=whole, min_n_ticks=1))
    if across == "token":
        axes.xaxis.set_major_formatter(EngFormatter())  # "250 k", "1.5 M"
    return figure, axes


def new_figure(size: tuple[float, float], theme: Theme) -> Figure:
    """Make an empty figure of a size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, dpi=DOTS_PER_INCH, facecolor=theme.background)


def style_axes(
    axes: Axes, label: Metric, theme: Theme, *, title: str, note: str = "", across: str
) -> None:
    """Give axes the common look: a title, what goes across, the metric's unit upwards."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter, ScalarFormatter

    axes.set_facecolor(theme.background)
    # User-given names may hold "$", which must not be read as mathematics.
    axes.set_title(
        # Where y is given matplotlib does not look for it: a fifth of the time to draw a plot.
        title, loc="left", x=-0.14, y=1.0, pad=23 if note else 12, color=theme.ink, fontsize=11.5,
        fontweight="bold", parse_math=False,
    )  # fmt: skip
    axes.text(-0.14, 1.065, note, transform=axes.transAxes, fontsize=8.5, color=theme.faint)
    axes.set_xlabel(across, color=theme.faint, fontsize=9)
    axes.set_ylabel(label.unit, color=theme.faint, fontsize=9, parse_math=False)
    axes.tick_params(colors=theme.faint, labelsize=8.5, length=0, pad=5)
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.faint)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    if label.is_share:
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, symbol=" %"))
    else:
        formatter = ScalarFormatter(useOffset=False, useMathText=True)
        formatter.set_powerlimits((-3, 5))
        axes.yaxis.set_major_formatter(formatter)
        # A common power of ten stands at the right, clear of the note.
        axes.yaxis.get_offset_text().set(color=theme.faint, fontsize=8.5, x=1.0, ha="right")


def settle_scale(axes: Axes, label: Metric) -> None:
    """Choose the ends of the value axis, once everything is drawn.

    A curve that is constant but for rounding is drawn as flat: its noise would fill the plot, with
    ten digits at every tick. Shares end at 0 and 100 %, with room for half a marker.
    """
    low, high = axes.get_ylim()
    largest = max(abs(low), abs(high))
    if high - low < ROUNDING * largest:
        low, high = low - 0.05 * largest, high + 0.05 * largest
    if label.is_share:
        room = 0.025 * (high - low)
        low, high = max(low, -room), min(high, 1 + room)
    axes.set_ylim(low, high)


def png_bytes(figure: Figure) -> bytes:
    """Render a figure with Agg."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()

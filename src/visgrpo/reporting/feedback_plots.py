"""Plots of a table of feedback: values with their intervals, and histograms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from visgrpo.reporting.drawing import LIGHT, SIZE_INCHES, Theme, new_figure, style_axes
from visgrpo.reporting.labels import Metric, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POSITIONS = Metric("Click-through by position", "clicks per impression", is_share=True)
RATERS = Metric("Users who agree least with the others", "agreement", is_share=True)
IMAGES = Metric("Images", "number of images")
GRADES = Metric("Grades", "number of grades")
MOST_POINTS = 20
_LONGEST_NAME = 16
_OF_LABELS = {
    "impressions": Metric("Click-through by label", "clicks per impression", is_share=True),
    "votes": Metric("Votes by label", "share of all votes", is_share=True),
    "preferences": Metric("Comparisons won, by label", "share won", is_share=True),
    "grades": Metric("Grades by label", "mean grade"),
}


def metric_of(kind: str) -> Metric:
    """Return how the value of a label is called and written, for one kind of feedback."""
    return _OF_LABELS[kind]


def feedback_figures(summary: Mapping[str, Any]) -> dict[str, Callable[[Theme], Figure]]:
    """Return {title: a function that draws the plot in a theme} of a summary."""
    details, metric = summary["details"], metric_of(summary["kind"])
    bins = partial(histogram_figure, "Rows per image", "rows", IMAGES)
    found: dict[str, Callable[[Theme], Figure]] = {}
    found["Rows per image"] = partial(bins, summary["rows_per_image"])
    if details["labels"]:
        found[metric.title] = partial(points_figure, metric, "", details["labels"])
    if details.get("positions"):
        found[POSITIONS.title] = partial(points_figure, POSITIONS, "position", details["positions"])
    if details.get("majority_shares"):
        title = "How far people agree on an image"
        of_shares = partial(histogram_figure, title, "share of its most frequent label", IMAGES)
        found[title] = partial(of_shares, details["majority_shares"])
    if details.get("histogram"):
        of_grades = partial(histogram_figure, "Grades", "grade", GRADES)
        found["Grades"] = partial(of_grades, details["histogram"])
    return found


def points_figure(
    metric: Metric, across: str, rows: Sequence[Mapping[str, Any]], theme: Theme = LIGHT
) -> Figure:
    """Draw the values of rows with their intervals, the first `MOST_POINTS` of them."""
    shown = rows[:MOST_POINTS]
    left_out = f"the first {len(shown)} of {len(rows):,}" if len(shown) < len(rows) else ""
    has_intervals = any(row["low"] is not None for row in shown)
    notes = [left_out, "bars: 95 % intervals" if has_intervals else ""]
    figure, axes = _axes(metric, theme, metric.title, " · ".join(filter(None, notes)), across)
    for place, row in enumerate(shown):
        if row["low"] is not None:
            axes.plot([place] * 2, [row["low"], row["high"]], color=theme.palette[0], alpha=0.5)
        axes.plot([place], [row["value"]], "o", color=theme.palette[0], markersize=4)
    names = [_short(str(row["name"])) for row in shown]
    _name_places(axes, names)
    return figure


def histogram_figure(
    title: str,
    across: str,
    metric: Metric,
    bins: Sequence[Mapping[str, Any]],
    theme: Theme = LIGHT,
) -> Figure:
    """Draw how many things lie in each bin, as bars side by side."""
    figure, axes = _axes(metric, theme, title, "", across)
    axes.bar(range(len(bins)), [part["count"] for part in bins], color=theme.palette[0], width=0.8)
    _name_places(axes, [_range(part["low"], part["high"]) for part in bins])
    return figure


def _axes(metric: Metric, theme: Theme, title: str, note: str, across: str) -> tuple[Figure, Axes]:
    figure = new_figure(SIZE_INCHES, theme)
    figure.subplots_adjust(left=0.145, right=0.965, top=0.82)
    axes = figure.add_subplot()
    style_axes(axes, metric, theme, title=title, note=note, across=across)
    return figure, axes


def _name_places(axes: Axes, names: Sequence[str]) -> None:
    """Write a name under each place; names are the user's and may hold "$"."""
    slanted = len(names) > 6 or max(map(len, names)) > 8
    axes.figure.subplots_adjust(bottom=0.3 if slanted else 0.155)
    axes.set_xticks(
        range(len(names)),
        names,
        rotation=40 if slanted else 0,
        ha="right" if slanted else "center",
        parse_math=False,
    )


def _short(name: str) -> str:
    one_line = " ".join(name.split())
    return one_line if len(one_line) <= _LONGEST_NAME else f"{one_line[: _LONGEST_NAME - 1]}…"


def _range(low: float, high: float) -> str:
    ends = [f"{end:,.0f}" if float(end).is_integer() else number(end) for end in (low, high)]
    return ends[0] if low == high else " – ".join(ends)

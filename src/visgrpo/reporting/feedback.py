"""The page of `visgrpo feedback summarize`: what is in a table of feedback, with plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visgrpo.files import write_whole
from visgrpo.metrics import Metric, count, number
from visgrpo.reporting.figures import LIGHT, SIZE_INCHES, Theme, new_figure, style_axes
from visgrpo.reporting.html import both_themes, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POSITIONS = Metric("position", "Click-through by position", "clicks per impression", is_share=True)
RATERS = Metric("raters", "Users who agree least with the others", "agreement", is_share=True)
IMAGES = Metric("images", "Images", "number of images")
GRADES = Metric("grades", "Grades", "number of grades")
MOST_POINTS = 20
_LONGEST_NAME = 16
_OF_LABELS = {
    "impressions": Metric(
        "impressions", "Click-through by label", "clicks per impression", is_share=True
    ),
    "votes": Metric("votes", "Votes by label", "share of all votes", is_share=True),
    "preferences": Metric("preferences", "Comparisons won, by label", "share won", is_share=True),
    "grades": Metric("grades", "Grades by label", "mean grade"),
}
MOST_ROWS = 20
"""Rows of a table; a page of a thousand classes would say no more."""
COUNTED = {
    "impressions": "impressions",
    "votes": "votes",
    "preferences": "comparisons",
    "grades": "grades",
}


def write_feedback_page(summary: Mapping[str, Any], output: Path | str) -> Path:
    """Write the page of a summary and return its path.

    Args:
        summary: what `visgrpo feedback summarize --json` prints.
        output: the page, or an existing folder to write ``feedback.html`` into.
    """
    page = render(
        "feedback.html.j2",
        summary=summary,
        facts=facts(summary),
        tables=feedback_tables(summary),
        plots=[both_themes(title, draw) for title, draw in feedback_figures(summary).items()],
    )
    path = Path(output)
    return write_whole(path / "feedback.html" if path.is_dir() else path, page)


def facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a reader asks first, in order, as names and texts."""
    coverage = summary["coverage"]
    where = "of the data" if coverage["of_data"] else "of those in the table"
    found = [
        ("Feedback", summary["kind"]),
        ("Rows", count(summary["rows"])),
        ("Images", count(summary["images"])),
        ("Labels", count(summary["labels"])),
    ]
    if summary["users"] is not None:
        found.append(("Users", count(summary["users"])))
    if summary["first_time"] is not None:
        found.append(("Time", f"{moment(summary['first_time'])} to {moment(summary['last_time'])}"))
    pairs = f"{count(coverage['pairs'])} pairs of an image and a label"
    found.append(("Coverage", f"{100 * coverage['share']:.1f} % {where}, {pairs}"))
    if coverage["of_data"]:
        rows, images = coverage["unmatched_rows"], coverage["unmatched_image_count"]
        found.append(("Not in the data", f"{count(rows)} rows about {count(images)} images"))
    return found + _DETAILS[summary["kind"]](summary["details"])


def moment(seconds: float) -> str:
    """Write a time, in UTC, to the minute."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


# ---- what each kind adds to the facts -----------------------------------------------------------


def _of_clicks(details: Mapping[str, Any]) -> list[tuple[str, str]]:
    rate = POSITIONS.text(details["rate"]["value"])
    interval = (
        f", 95 % interval {_interval(details['rate'], POSITIONS)}" if details["shown"] else ""
    )
    found = [("Impressions", count(details["shown"])), ("Click-through", f"{rate}{interval}")]
    if (bias := details["position_bias"]) is not None:
        pairs = f"{count(bias['pairs'])} clicked labels were shown at several positions"
        verdict = "can be estimated" if bias["can_be_estimated"] else "cannot be estimated"
        found.append(("Position bias", f"{verdict}: {bias['reason'] or pairs}"))
    if (p := details["propensities"]) is not None:
        ends = f"{number(p['least'])} to {number(p['greatest'])}"
        text = (
            f"{ends}, median about {number(p['median'])}; for a policy that shows all labels alike "
            f"{100 * p['effective_share']:.1f} % of the impressions count; 1/p is "
            f"{number(p['mean_inverse'])} on average"
        )
        found.append(("Propensities", text))
    if (dwell := details["dwell"]) is not None:
        low, middle, high = (number(value) for value in dwell["quartiles"])
        share = f"{100 * dwell['share']:.1f} % of clicks"
        found.append(
            ("Dwell", f"median about {middle} s, half of them {low} to {high} s, of {share}")
        )
    return found


def _of_votes(details: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = [
        ("Votes", f"{count(details['votes'])}, {number(details['per_image'])} for an image"),
        ("Majority", f"{100 * details['majority']:.1f} % of an image's votes on average"),
    ]
    if details["kappa"] is not None:
        found.append(("Agreement", f"Fleiss' kappa {number(details['kappa'])}"))
    if (raters := details["raters"]) is not None and raters["median"] is not None:
        agree = f"{100 * raters['median']:.1f} % with the majority of the others"
        found.append(("Raters", f"median agreement {agree}, {count(raters['judged'])} users"))
    return found


def _of_preferences(details: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = [
        ("Pairs of labels", f"{count(details['pairs'])} compared"),
        ("Ties", f"{100 * details['ties']:.1f} % of comparisons"),
    ]
    if details["agreement"] is not None:
        text = f"{100 * details['agreement']:.1f} % prefer what most do, of pairs compared again"
        found.append(("Agreement", text))
    return found


def _of_grades(details: Mapping[str, Any]) -> list[tuple[str, str]]:
    least, mean, greatest, sd = (
        number(details[name]) for name in ("least", "mean", "greatest", "deviation")
    )
    return [("Grades", f"{least} to {greatest}, mean {mean}, standard deviation {sd}")]


_DETAILS = {
    "impressions": _of_clicks,
    "votes": _of_votes,
    "preferences": _of_preferences,
    "grades": _of_grades,
}


# ---- tables -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FeedbackTable:
    """Rows of texts: name, count, value, and the interval where there is any."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left_out: int


def feedback_tables(summary: Mapping[str, Any]) -> list[FeedbackTable]:
    """Return a summary's values by label, position and user, of each at most `MOST_ROWS`."""
    kind, details = summary["kind"], summary["details"]
    raters = details.get("raters") or {}
    candidates: tuple[tuple[Metric, str, Sequence[Mapping[str, Any]]], ...] = (
        (_OF_LABELS[kind], "label", details["labels"]),
        (POSITIONS, "position", details.get("positions", ())),
        (RATERS, "user", raters.get("least_agreeing", ())),
    )
    return [_table(metric, of, COUNTED[kind], rows) for metric, of, rows in candidates if rows]


def _table(
    metric: Metric, of: str, counted: str, rows: Sequence[Mapping[str, Any]]
) -> FeedbackTable:
    headings, shown = [of, counted, metric.unit], rows[:MOST_ROWS]
    texts = [[row["name"], count(row["count"]), metric.text(row["value"])] for row in shown]
    if any(row["low"] is not None for row in shown):
        headings.append("95 % interval")
        for text, row in zip(texts, shown, strict=True):
            text.append(_interval(row, metric))
    left_out = len(rows) - len(shown)
    return FeedbackTable(metric.title, tuple(headings), tuple(map(tuple, texts)), left_out)


def _interval(row: Mapping[str, Any], metric: Metric) -> str:
    if row["low"] is None:
        return ""
    return f"{metric.text(row['low'])} to {metric.text(row['high'])}"


# ---- plots --------------------------------------------------------------------------------------


def feedback_figures(summary: Mapping[str, Any]) -> dict[str, Callable[[Theme], Figure]]:
    """Return {title: a function that draws the plot in a theme} of a summary."""
    details, metric = summary["details"], _OF_LABELS[summary["kind"]]
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


def scale_figure(
    metric: Metric, across: str, rows: Sequence[Mapping[str, Any]], theme: Theme = LIGHT
) -> Figure:
    """Draw values with their intervals against predictions, in the same unit, and the diagonal."""
    figure, axes = _axes(metric, theme, metric.title, "bars: 95 % intervals", across)
    ends = [end for row in rows for end in (row["predicted"], row["low"], row["high"])]
    axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color=theme.grid, linewidth=1.5)
    for row in rows:
        axes.plot([row["predicted"]] * 2, [row["low"], row["high"]], color=theme.palette[0])
        axes.plot([row["predicted"]], [row["value"]], "o", color=theme.palette[0], markersize=4)
    axes.xaxis.set_major_formatter(axes.yaxis.get_major_formatter())
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

"""The page of `visgrpo feedback replay`: estimates with intervals, ratios, the click model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visgrpo.files import write_whole
from visgrpo.metrics import Metric
from visgrpo.reporting.feedback import histogram_figure, points_figure, scale_figure
from visgrpo.reporting.figures import Theme
from visgrpo.reporting.html import both_themes, render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EARNED = Metric("earned", "Clicks per impression, doubly robust", "clicks per impression")
SUPPORT = Metric("support", "Effective samples", "share of the impressions", is_share=True)
IMPRESSIONS = Metric("impressions", "Ratios", "impressions")
CLICKED = Metric("clicked", "Click model", "clicks seen", is_share=True)


def write_replay_page(results: Mapping[str, Any], output: Path | str) -> Path:
    """Write the page of a replay and return its path.

    Args:
        results: what `visgrpo feedback replay --json` prints.
        output: the page, or an existing folder to write ``replay.html`` into.
    """
    names = {name: f"model {place}" for place, name in enumerate(results["models"], start=1)}
    page = render(
        "replay.html.j2",
        log=results["log"],
        logged=results["logged"],
        models=[(names[name], name, row) for name, row in results["models"].items()],
        differences=results["differences"],
        names=names,
        plots=[both_themes(title, draw) for title, draw in _figures(results, names).items()],
    )
    path = Path(output)
    return write_whole(path / "replay.html" if path.is_dir() else path, page)


def _figures(
    results: Mapping[str, Any], names: Mapping[str, str]
) -> dict[str, Callable[[Theme], Figure]]:
    supported = {names[n]: row for n, row in results["models"].items() if "ips" in row}
    earned = [{"name": "logged policy", **results["logged"]}]
    earned += [{"name": name, **row["doubly_robust"]} for name, row in supported.items()]
    shares = [
        {"name": names[n], "value": row["effective_share"], "low": None}
        for n, row in results["models"].items()
    ]
    found: dict[str, Callable[[Theme], Figure]] = {
        EARNED.title: partial(points_figure, EARNED, "", earned),
        SUPPORT.title: partial(points_figure, SUPPORT, "", shares),
        CLICKED.title: partial(scale_figure, CLICKED, "clicks predicted", results["click_model"]),
    }
    for name, row in supported.items():
        title = f"Ratios to the propensities, {name}"
        across = "probability of the model / propensity"
        found[title] = partial(histogram_figure, title, across, IMPRESSIONS, row["ratios"])
    return found

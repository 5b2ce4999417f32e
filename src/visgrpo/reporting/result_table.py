"""The table of results on a page of several runs: a row for each run, then the mean of seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from visgrpo.reporting.groups import (
    RunGroup,
    TableCell,
    compared_measures,
    comparison_table,
    named_members,
)
from visgrpo.reporting.labels import Metric, count, duration, memory, metric
from visgrpo.reporting.run_reader import Run, common_subject

# What a run has cost: heading and how it is written. The last only where any run has it.
_COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "seconds": ("time", duration),
    "steps": ("steps", "{:.0f}".format),
    "peak_memory_bytes": ("peak memory", memory),
    "sampled_tokens": ("sampled tokens", count),
}


def result_headings(runs: Sequence[Run]) -> list[str]:
    """Return the headings of the columns after "run" and "method"."""
    measures = [label.heading for label in _labels(runs).values()]
    return measures + [_COSTS[key][0] for key in _costs_of(runs)]


def result_rows(group: RunGroup, runs: Sequence[Run]) -> list[tuple[str, list[TableCell]]]:
    """Return the table rows of a group: each run, then their mean when there are several."""
    names = [name for name, _ in named_members(group, runs)]
    table = [row for row in comparison_table(runs) if row["run"] in names]
    labels, costs = _labels(runs), _costs_of(runs)
    rows = [(row["run"], _run_cells(row, labels, costs)) for row in table]
    if len(table) > 1:
        rows.append((f"mean of {len(table)}", _mean_cells(table, labels, costs)))
    return rows


def _labels(runs: Sequence[Run]) -> dict[str, Metric]:
    subject = common_subject(runs)
    return {key: metric(f"eval/{key}", subject) for key in compared_measures(runs)}


def _costs_of(runs: Sequence[Run]) -> list[str]:
    sampled = any(run.sampled_tokens is not None for run in runs)
    return [key for key in _COSTS if key != "sampled_tokens" or sampled]


def _run_cells(
    row: dict[str, Any], labels: dict[str, Metric], costs: Sequence[str]
) -> list[TableCell]:
    cells = [TableCell(row["method"] or "–")]
    for key, label in labels.items():
        before, after = row[f"{key}_before"], row[f"{key}_after"]
        below = "" if before is None else f"from {label.text(before)}"
        cells.append(TableCell("–" if after is None else label.text(after), below))
    written = ("–" if row[key] is None else _COSTS[key][1](row[key]) for key in costs)
    return cells + [TableCell(text) for text in written]


def _mean_cells(
    table: list[dict[str, Any]], labels: dict[str, Metric], costs: Sequence[str]
) -> list[TableCell]:
    def cell(column: str, write: Callable[[float], str]) -> TableCell:
        values = [row[column] for row in table if row[column] is not None]
        if not values:
            return TableCell("–")
        return TableCell(write(fmean(values)), f"{write(min(values))} to {write(max(values))}")

    measured = [cell(f"{key}_after", label.text) for key, label in labels.items()]
    means = [TableCell(cell(key, _COSTS[key][1]).main) for key in costs]
    return [TableCell(table[0]["method"] or "–"), *measured, *means]

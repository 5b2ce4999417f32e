"""What a sweep found: one row for each combination, mean ± spread over its seeds."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from visgrpo.errors import nearest
from visgrpo.reporting.html import flatten
from visgrpo.reporting.labels import number
from visgrpo.tasks.sweep_plan import PAGE, PLAN, ROWS, TABLE, Combination, value_text

SPREAD = "standard deviation over seeds (n - 1)"
Summary = dict[str, Any]


def sweep_rows(
    combinations: Iterable[Combination],
    summaries: Mapping[tuple[str, int], Summary],
    measures: Sequence[str],
) -> list[dict[str, Any]]:
    """Return a row of plain values for each combination.

    Args:
        summaries: of the runs that are done, by combination and seed.

    A measure has one value a seed; mean and spread are None where a finished run has no such
    value, and the spread also where only one run is finished.
    """
    rows = []
    for combination in combinations:
        done = {seed: s for (name, seed), s in summaries.items() if name == combination.name}
        rows.append(
            {
                "name": combination.name,
                "variant": combination.variant,
                "options": dict(combination.swept),
                "seeds": list(done),
                "measures": {
                    measure: _over_seeds([measure_of(s, measure) for s in done.values()])
                    for measure in measures
                },
            }
        )
    return rows


def measure_of(summary: Summary, measure: str) -> float | None:
    """Return a number of the summary's "after", else of the summary: "accuracy", "knn.20".

    None where there is no such number.
    """
    for values in (summary.get("after", {}), summary):
        found = _at(values, measure)
        if isinstance(found, int | float):
            return float(found)
    return None


def measured(summaries: Collection[Summary], measures: Iterable[str]) -> list[str]:
    """Return the measures that at least one of these runs has."""
    return [
        measure
        for measure in measures
        if any(measure_of(summary, measure) is not None for summary in summaries)
    ]


def complaints(summaries: Collection[Summary], measures: Sequence[str]) -> list[str]:
    """Return a line for every measure that none of these runs has."""
    known = dict.fromkeys(key for s in summaries for key in flatten(s.get("after", s)))
    return [
        f'No run measured "{measure}". {nearest(measure, known)}'
        for measure in measures
        if measure not in measured(summaries, measures)
    ]


def write_rows(folder: Path, command: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write sweep.json, and table.md with the command that repeats it."""
    content = {"command": command, "spread": SPREAD, "rows": rows}
    (folder / ROWS).write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")
    header, *body = _cells(rows)
    lines = [header, ["---"] * len(header), *body]
    table = "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)
    curves = f"; their curves: {PAGE}" if (folder / PAGE).exists() else ""
    text = f"    {command}\n\n{table}\n\nMean ± {SPREAD}. Options of the runs: {PLAN}{curves}.\n"
    (folder / TABLE).write_text(text, encoding="utf-8")


def print_rows(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the table on stdout."""
    header, *body = _cells(rows)
    table = Table(*map(escape, header), title=f"{title}: mean ± {SPREAD}", title_justify="left")
    for line in body:
        table.add_row(*map(escape, line))
    Console(width=None if Console().is_terminal else 100).print(table)


def _over_seeds(values: list[float | None]) -> dict[str, Any]:
    numbers = [value for value in values if value is not None]
    whole = bool(numbers) and len(numbers) == len(values)
    return {
        "values": values,
        "mean": fmean(numbers) if whole else None,
        "spread": stdev(numbers) if whole and len(numbers) > 1 else None,
    }


def _at(values: Mapping[str, Any], path: str) -> object:
    """The value at a dotted path; names may hold dots themselves."""
    if path in values:
        return values[path]
    for name, inner in values.items():
        if isinstance(inner, Mapping) and path.startswith(f"{name}."):
            return _at(inner, path.removeprefix(f"{name}."))
    return None


def _cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The table as text, header first. All rows have the same options and measures."""
    first = rows[0]
    variant = [] if first["variant"] is None else ["variant"]
    lines = [[*variant, *first["options"], "seeds", *first["measures"]]]
    for row in rows:
        lines.append(
            [
                *([row["variant"]] if variant else []),
                *map(value_text, row["options"].values()),
                str(len(row["seeds"])),
                *map(_mean_and_spread, row["measures"].values()),
            ]
        )
    return lines


def _mean_and_spread(cell: Mapping[str, Any]) -> str:
    if cell["mean"] is None:
        return "–"
    mean = number(cell["mean"])
    return mean if cell["spread"] is None else f"{mean} ± {number(cell['spread'])}"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")

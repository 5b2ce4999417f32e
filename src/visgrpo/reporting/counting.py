"""What only runs that answer questions have: data of other distributions, confusions of counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from visgrpo.reporting.labels import metric
from visgrpo.reporting.outcome import (
    Change,
    Confusion,
    accuracy_interval,
    change,
    changes_of,
    confusion_of,
)
from visgrpo.reporting.run_reader import Run

_NAMES = {"in": "in distribution", "out": "out of distribution"}
_BEYOND = ["other", "none"]  # columns after the counts: another number, no number to read


def distributions(run: Run) -> list[Change]:
    """Return the accuracy in distribution and on other data, with 95 % intervals where known.

    Empty where the run was measured in distribution alone.
    """
    if run.subject != "answers" or not run.shifts:
        return []
    rows = {"in": {"before": run.before, "after": run.after}, **run.shifts}
    return [
        _with_intervals(values.get("before") or {}, values.get("after") or {}, distribution(name))
        for name, values in rows.items()
    ]


def measures_elsewhere(run: Run) -> dict[str, list[Change]]:
    """Return all measures on data of other distributions, by the title of their table."""
    if run.subject != "answers":
        return {}
    return {
        distribution(name).capitalize(): changes_of(
            values.get("before") or {}, values.get("after") or {}, run.subject
        )
        for name, values in run.shifts.items()
    }


def confusions(run: Run) -> dict[str, Confusion]:
    """Return the confusions of counts after the run, by the name of the data.

    ``summary.json`` has them under "confusion": {name: {"counts": [0, 1, …], "rows": [[…], …]}},
    a row for each true count, a column for each count, then another number, then none.
    """
    found: dict[str, Any] = run.summary.get("confusion") or {}
    tables = {}
    for name, table in found.items():
        names = [str(number) for number in table["counts"]]
        tables[distribution(name)] = confusion_of(table["rows"], names, names + _BEYOND)
    return tables


def distribution(name: str) -> str:
    """Return what data is called on the page; names of the user's own stay as they are."""
    return _NAMES.get(name, name)


def _with_intervals(before: dict[str, Any], after: dict[str, Any], name: str) -> Change:
    accuracy = metric("accuracy", "answers")
    plain = change(name, accuracy, before.get("accuracy"), after.get("accuracy"))
    return replace(
        plain, before=_interval(plain.before, before), after=_interval(plain.after, after)
    )


def _interval(text: str, measured: dict[str, Any]) -> str:
    ends = accuracy_interval(measured)
    return text if ends is None else f"{text} ({ends[0]} to {ends[1]})"

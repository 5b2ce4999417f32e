"""Before and after as tables: measures, classes, confusion matrix, retention, shifted data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from visgrpo.reporting.labels import Metric, Subject, metric, ordered
from visgrpo.reporting.run_reader import Run, is_number, scalars

MAX_CONFUSIONS = 5
MAX_CLASSES = 200  # above it a table of classes has only those that changed most
MOST_CHANGED = 20  # in either direction
_COUNTED = ("tokens", "pairs", "prompts")
_EXAMPLES: dict[Subject, str] = {
    "images": "images",
    "tokens": "examples",
    "pairs": "examples",
    "answers": "questions",
}
_SAID_IN_WORDS = ("accuracy_low", "accuracy_high", "majority")
# Counts, and entropy on another scale: no columns of their own.
_NOT_SHOWN = frozenset({"examples", "pixels", "entropy_normalized", *_COUNTED, *_SAID_IN_WORDS})
_OF_FEATURES = frozenset({"softmax_regression", "knn", "alignment", "uniformity"})


@dataclass(frozen=True)
class Change:
    """One measure before and after, written out; "–" where it was not measured."""

    name: str
    label: Metric
    before: str
    after: str
    change: str
    verdict: str
    before_value: float | None
    after_value: float | None


@dataclass(frozen=True)
class Cell:
    """One count of the confusion matrix; ``share`` is of the images of that true class."""

    row: int
    column: int
    count: int
    share: float


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix, rows the true class and columns the predicted one.

    The first columns are the classes of the rows, in the same order; there may be more.
    """

    names: list[str]
    columns: list[str]
    cells: list[Cell]
    largest: list[tuple[str, str, int, float]]


def change(name: str, label: Metric, before: object, after: object) -> Change:
    """Write one measure before and after."""
    old, new = _number(before), _number(after)
    delta, verdict = "–", "same"
    if old is not None and new is not None:
        delta, verdict = label.change(old, new), label.verdict(old, new)
    return Change(
        name=name,
        label=label,
        before="–" if old is None else label.text(old),
        after="–" if new is None else label.text(new),
        change=delta,
        verdict=verdict,
        before_value=old,
        after_value=new,
    )


def measures(run: Run) -> list[Change]:
    """Return the scalar measures of the run: the known ones in reading order, then any other."""
    return changes_of(run.before, run.after, run.subject)


def changes_of(before: dict[str, Any], after: dict[str, Any], subject: Subject) -> list[Change]:
    """Write the scalars of two evaluations of the same data, in reading order."""
    old, new = scalars(before), scalars(after)
    keys = [key for key in dict.fromkeys([*old, *new]) if key not in _NOT_SHOWN]
    return [
        change(key, metric(f"eval/{key}", subject), old.get(key), new.get(key))
        for key in ordered(keys, subject)
    ]


def measure_tables(run: Run) -> dict[str, list[Change]]:
    """Return the measures by what they are about: the model, and its backbone's features."""
    tables: dict[str, list[Change]] = {"": [], "Features of the backbone": []}
    for measure in measures(run):
        of_features = measure.name.split("/")[0] in _OF_FEATURES
        tables["Features of the backbone" if of_features else ""].append(measure)
    return {title: changes for title, changes in tables.items() if changes}


def baseline(run: Run) -> dict[str, Any] | None:
    """Return name and scalar measures of the baseline, None when the run has none."""
    found: dict[str, Any] | None = run.summary.get("baseline")
    return found and {"name": found["name"], "after": scalars(found["after"])}


def per_class(run: Run, measure: str) -> list[Change]:
    """Return a measure of each class, "accuracy" or "iou", before and after, in class order.

    Of more than `MAX_CLASSES` classes: the `MOST_CHANGED` that lost most, then those that gained
    most, largest change first.
    """
    before: dict[str, Any] = run.before.get(f"per_class_{measure}") or {}
    after: dict[str, Any] = run.after.get(f"per_class_{measure}") or {}
    names = list(dict.fromkeys([*before, *after]))
    changes = [change(name, metric(measure), before.get(name), after.get(name)) for name in names]
    if len(changes) <= MAX_CLASSES:
        return changes
    return [*_most(changes, "loss"), *_most(changes, "gain")]


def shifts(run: Run) -> list[Change]:
    """Return the main measure on shifted copies of the test data, after that on the data itself.

    Questions on other data are no such copies: those are in `counting`.
    """
    if not run.shifts or run.subject == "answers":
        return []
    key = "miou" if "miou" in run.after else "accuracy"
    rows = {"not shifted": {"before": run.before, "after": run.after}, **run.shifts}
    return [
        change(name, metric(key), v.get("before", {}).get(key), v.get("after", {}).get(key))
        for name, v in rows.items()
    ]


def retention(run: Run) -> list[Change]:
    """Return the accuracy on other data sets, before and after: what the run forgot."""
    kept: dict[str, Any] = run.summary.get("retention") or {}
    label = metric("accuracy")
    return [change(name, label, v.get("before"), v.get("after")) for name, v in kept.items()]


def confusion(run: Run) -> Confusion | None:
    """Return the confusion matrix after the run, None when there is none.

    Empty cells are left out, which keeps the page small with hundreds of classes.
    """
    counts: list[list[int]] | None = run.after.get("confusion")
    if not counts:
        return None
    known = [str(name) for name in run.after.get("per_class_accuracy") or {}]
    names = known if len(known) == len(counts) else [str(k) for k in range(len(counts))]
    return confusion_of(counts, names, names)


def confusion_of(counts: list[list[int]], names: list[str], columns: list[str]) -> Confusion:
    """Return a matrix of counts with the names of its rows and columns."""
    cells = [
        Cell(row, column, count, count / sum(line))
        for row, line in enumerate(counts)
        for column, count in enumerate(line)
        if count
    ]
    wrong = sorted((c for c in cells if c.row != c.column), key=lambda c: -c.count)
    largest = [(names[c.row], columns[c.column], c.count, c.share) for c in wrong[:MAX_CONFUSIONS]]
    return Confusion(names, columns, cells, largest)


def tested_on(run: Run) -> str | None:
    """Say on how many examples the end was measured, and how sure that makes the accuracy."""
    images, pixels = run.after.get("examples"), run.after.get("pixels")
    ends = accuracy_interval(run.after)
    counts = [f"{pixels:,} labelled pixels"] if pixels is not None else []
    counts += [f"{images} held-out {_EXAMPLES[run.subject]}"] if images is not None else []
    counts += [f"{run.after[key]:,} held-out {key}" for key in _COUNTED if key in run.after]
    if not counts:
        return None
    measured = f"Measured on {' of '.join(counts)}"
    if ends:
        low, high = ends
        measured += f"; the accuracy at the end lies between {low} and {high} (95 % interval)"
    if (majority := run.after.get("majority")) is not None:
        always = metric("accuracy").text(majority)
        measured += f"; always giving the commonest answer would be right for {always}"
    return f"{measured}."


def accuracy_interval(measured: dict[str, Any]) -> tuple[str, str] | None:
    """Return the ends of the accuracy's interval as written, None where it was not measured."""
    pair = [measured.get("accuracy_low"), measured.get("accuracy_high")]
    known = [end for end in measured.get("accuracy_interval") or pair if is_number(end)]
    if len(known) != 2:
        return None
    low, high = (metric("accuracy").text(end) for end in known)
    return low, high


def _most(changes: list[Change], verdict: str) -> list[Change]:
    def size(change: Change) -> float:
        assert change.before_value is not None  # a verdict needs both
        assert change.after_value is not None
        return abs(change.after_value - change.before_value)

    found = [change for change in changes if change.verdict == verdict]
    return sorted(found, key=size, reverse=True)[:MOST_CHANGED]


def _number(value: object) -> float | None:
    return float(value) if is_number(value) else None

"""Before and after as tables: measures, classes, confusions, other data, memory of the models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from visgrpo.metrics import (
    Metric,
    Subject,
    is_number,
    main_keys,
    memory,
    metric,
    ordered,
    scalars,
)
from visgrpo.reporting.run import Run

MAX_CONFUSIONS = 5
NAMED = 10  # classes in a sentence
FAR_BELOW = 0.05
MAX_CLASSES = 200  # above it a table of classes has only those that changed most
MOST_CHANGED = 20  # in either direction
_COUNTED = ("tokens", "pairs", "prompts")
_EXAMPLES: dict[Subject, str] = {"images": "images", "answers": "questions"}
_DISTRIBUTIONS = {"in": "in distribution", "out": "out of distribution"}
_BEYOND = ["other", "none"]  # columns after the counts: another number, no number to read
_MEMORY = {
    "policy_bytes": "policy",
    "critic_bytes": "critic",
    "reference_bytes": "reference",
    "reward_model_bytes": "reward model",
    "optimizer_bytes": "optimiser",
}


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


@dataclass(frozen=True)
class MemoryPart:
    """One part, or their sum: its size written out, and its share of the sum."""

    name: str
    size: str
    share: float


def measures(run: Run) -> list[Change]:
    """Return the scalar measures of the run: the known ones in reading order, then any other."""
    return _changes(run.before, run.after, run.subject)


def measure_tables(run: Run) -> dict[str, list[Change]]:
    """Return the measures by the title of their table: "" of the model, and those it has besides.

    Questions on data of another distribution have a table of all measures each.
    """
    tables: dict[str, list[Change]] = {"": []}
    for measure in measures(run):
        tables.setdefault(measure.label.table, []).append(measure)
    if run.subject == "answers":
        for name, (before, after) in _both(run.shifts).items():
            tables[_distribution(name).capitalize()] = _changes(before, after, run.subject)
    return {title: changes for title, changes in tables.items() if changes or title}


def in_a_line(run: Run, change: Change) -> str:
    """Write a change, with the 95 % interval of its end where known, and whether it is noise.

    The start within the interval of the end is taken for noise: both were measured on the same
    examples, so the true test is a little sharper.
    """
    said = f"{change.label.title} {change.before} → {change.after}"
    if (ends := _interval(run.after, change.name)) is None:
        return f"{said} ({change.change})"
    said += f" (95 % interval {' to '.join(map(change.label.text, ends))}), {change.change}"
    noise = change.before_value is not None and ends[0] <= change.before_value <= ends[1]
    return f"{said}, within noise" if noise else said


def remarks(run: Run) -> list[str]:
    """Say what the tables hold, but do not say aloud: classes never answered, a weak head."""
    found = []
    if table := confusion(run):
        answered = {cell.column for cell in table.cells}
        never = [name for k, name in enumerate(table.names) if k not in answered]
        if never:
            some = ", ".join(never[:NAMED]) + (", …" if len(never) > NAMED else "")
            found.append(f"{len(never)} of {len(table.names)} classes are never answered: {some}.")
    head, probe = (run.after.get(key) for key in ("accuracy", "softmax_regression"))
    if is_number(head) and is_number(probe) and head < probe - FAR_BELOW:
        text = metric("accuracy").text
        found.append(
            f"The head is right for {text(head)}, a linear probe of the features that it looks at "
            f"for {text(probe)}: the head is what is weak. Train it longer, or at a higher rate."
        )
    return found


def baseline(run: Run) -> dict[str, Any] | None:
    """Return name and scalar measures of the baseline, None when the run has none."""
    found: dict[str, Any] | None = run.summary.get("baseline")
    return found and {"name": found["name"], "after": scalars(found["after"])}


def per_class(run: Run, measure: str) -> list[Change]:
    """Return a measure of each class, "accuracy" or "iou", before and after, in class order, or
    those with most pixels first where these were counted.

    Of more than `MAX_CLASSES` classes: the `MOST_CHANGED` that lost most, then those that gained
    most, largest change first.
    """
    before: dict[str, Any] = run.before.get(f"per_class_{measure}") or {}
    after: dict[str, Any] = run.after.get(f"per_class_{measure}") or {}
    label = metric(measure)
    pixels: dict[str, int] = run.after.get("per_class_pixels") or {}
    names = sorted(dict.fromkeys([*before, *after]), key=lambda name: -pixels.get(name, 0))
    changes = [_change(name, label, before.get(name), after.get(name)) for name in names]
    if len(changes) <= MAX_CLASSES:
        return changes
    return [*_most(changes, "loss"), *_most(changes, "gain")]


def shifts(run: Run) -> list[Change]:
    """Return the main measure on shifted copies of the test data, after that on the data itself.

    Questions on other data are no such copies: those are in `distributions`.
    """
    if not run.shifts or run.subject == "answers":
        return []
    key = next((key for key in main_keys() if key in run.after), "accuracy")
    rows = {"not shifted": (run.before, run.after), **_both(run.shifts)}
    return [
        _change(name, metric(key), old.get(key), new.get(key)) for name, (old, new) in rows.items()
    ]


def distributions(run: Run) -> list[Change]:
    """Return the accuracy in distribution and on other data, with 95 % intervals where known.

    Empty where the run was measured in distribution alone, or answers no questions.
    """
    if run.subject != "answers" or not run.shifts:
        return []
    rows = []
    for name, (before, after) in {"in": (run.before, run.after), **_both(run.shifts)}.items():
        accuracies = before.get("accuracy"), after.get("accuracy")
        plain = _change(_distribution(name), metric("accuracy", "answers"), *accuracies)
        ends = [
            text if (known := _accuracy_interval(of)) is None else f"{text} ({' to '.join(known)})"
            for text, of in ((plain.before, before), (plain.after, after))
        ]
        rows.append(replace(plain, before=ends[0], after=ends[1]))
    return rows


def retention(run: Run) -> list[Change]:
    """Return the accuracy on other data sets, before and after: what the run forgot."""
    kept: dict[str, Any] = run.summary.get("retention") or {}
    label = metric("accuracy")
    return [_change(name, label, v.get("before"), v.get("after")) for name, v in kept.items()]


def confusion(run: Run) -> Confusion | None:
    """Return the confusion matrix after the run, None when there is none.

    Empty cells are left out, which keeps the page small with hundreds of classes.
    """
    counts: list[list[int]] | None = run.after.get("confusion")
    if not counts:
        return None
    known = [str(name) for name in run.after.get("per_class_accuracy") or {}]
    names = known if len(known) == len(counts) else [str(k) for k in range(len(counts))]
    return _confusion(counts, names, names)


def count_confusions(run: Run) -> dict[str, Confusion]:
    """Return the confusions of counts after the run, by the name of the data.

    ``summary.json`` has them under "confusion": {name: {"counts": [0, 1, …], "rows": [[…], …]}},
    a row for each true count, a column for each count, then another number, then none.
    """
    found: dict[str, Any] = run.summary.get("confusion") or {}
    tables = {}
    for name, table in found.items():
        names = [str(number) for number in table["counts"]]
        tables[_distribution(name)] = _confusion(table["rows"], names, names + _BEYOND)
    return tables


def tested_on(run: Run) -> str | None:
    """Say on how many examples the end was measured, and how sure that makes the accuracy."""
    images, pixels = run.after.get("examples"), run.after.get("pixels")
    counts = [f"{pixels:,} labelled pixels"] if pixels is not None else []
    if images is not None:
        counts.append(f"{images} held-out {_EXAMPLES.get(run.subject, 'examples')}")
    counts += [f"{run.after[key]:,} held-out {key}" for key in _COUNTED if key in run.after]
    if not counts:
        return None
    measured = f"Measured on {' of '.join(counts)}"
    if ends := _accuracy_interval(run.after):
        between = " and ".join(ends)
        measured += f"; the accuracy at the end lies between {between} (95 % interval)"
    if (majority := run.after.get("majority")) is not None:
        always = metric("accuracy").text(majority)
        measured += f"; always giving the commonest answer would be right for {always}"
    return f"{measured}."


def memory_parts(runs: Sequence[Run]) -> list[MemoryPart]:
    """Return the parts that ``summary.json`` lists under "memory", then their sum.

    Of several runs, the mean over those that have the list; empty where none has it. A part that
    a method does without is there with a dash: it is what sets the methods apart.
    """
    found = [run.summary["memory"] for run in runs if run.summary.get("memory")]
    if not found:
        return []
    sizes = {name: fmean(split.get(key, 0) for split in found) for key, name in _MEMORY.items()}
    sizes["together"] = total = sum(sizes.values())
    return [
        MemoryPart(name, memory(size), size / total) if size else MemoryPart(name, "–", 0.0)
        for name, size in sizes.items()
    ]


def _change(name: str, label: Metric, before: object, after: object) -> Change:
    """Write one measure before and after."""
    old, new = (float(value) if is_number(value) else None for value in (before, after))
    delta, verdict = "–", "same"
    if old is not None and new is not None:
        delta, verdict = label.change(old, new), label.verdict(old, new)
    was, now = ("–" if value is None else label.text(value) for value in (old, new))
    return Change(name, label, was, now, delta, verdict, old, new)


def _changes(before: dict[str, Any], after: dict[str, Any], subject: Subject) -> list[Change]:
    """Write the scalars of two evaluations of the same data, in reading order."""
    old, new = scalars(before), scalars(after)
    labels = {
        key: metric(f"eval/{key}", subject) for key in ordered(dict.fromkeys([*old, *new]), subject)
    }
    return [
        _change(key, label, old.get(key), new.get(key))
        for key, label in labels.items()
        if not label.is_hidden("page")
    ]


def _both(shifts: Mapping[str, Any]) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Return the measures of other data before and after, {} where there are none."""
    return {n: (v.get("before") or {}, v.get("after") or {}) for n, v in shifts.items()}


def _distribution(name: str) -> str:
    """Return what data is called on the page; names of the user's own stay as they are."""
    return _DISTRIBUTIONS.get(name, name)


def _confusion(counts: list[list[int]], names: list[str], columns: list[str]) -> Confusion:
    cells = [
        Cell(row, column, count, count / sum(line))
        for row, line in enumerate(counts)
        for column, count in enumerate(line)
        if count
    ]
    wrong = sorted((c for c in cells if c.row != c.column), key=lambda c: -c.count)
    largest = [(names[c.row], columns[c.column], c.count, c.share) for c in wrong[:MAX_CONFUSIONS]]
    return Confusion(names, columns, cells, largest)


def _accuracy_interval(measured: dict[str, Any]) -> list[str] | None:
    """Return the ends of the accuracy's interval as written, None where it was not measured."""
    ends = _interval(measured, "accuracy")
    return None if ends is None else [metric("accuracy").text(end) for end in ends]


def _interval(measured: dict[str, Any], name: str) -> list[float] | None:
    pair = [measured.get(f"{name}_low"), measured.get(f"{name}_high")]
    known = [end for end in measured.get(f"{name}_interval") or pair if is_number(end)]
    return known if len(known) == 2 else None


def _most(changes: list[Change], verdict: str) -> list[Change]:
    def size(change: Change) -> float:
        assert change.before_value is not None  # a verdict needs both
        assert change.after_value is not None
        return abs(change.after_value - change.before_value)

    found = [change for change in changes if change.verdict == verdict]
    return sorted(found, key=size, reverse=True)[:MOST_CHANGED]

"""Runs side by side: seeds of one configuration together, differing options, tables of results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from visgrpo.errors import UserError
from visgrpo.metrics import (
    Metric,
    count,
    duration,
    main_keys,
    memory,
    metric,
    ordered,
    scalars,
)
from visgrpo.reporting.run import (
    Run,
    common_subject,
    flatten,
    has_epochs,
    metric_keys,
    positions,
    read_run,
    series,
)

# Options that do not change what a run computes.
_NOT_COMPARED = frozenset({"output", "resume", "changed"})
# What a run has cost: heading and how it is written. The last only where any run has it.
_COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "seconds": ("time", duration),
    "steps": ("steps", "{:.0f}".format),
    "peak_memory_bytes": ("peak memory", memory),
    "sampled_tokens": ("sampled tokens", count),
}
SHARE = 0.99
LONGEST_VARIANT = 40  # of a name made of options: a longer one says less than the folders' names
Write = Callable[[float], str]


@dataclass(frozen=True)
class RunGroup:
    """Runs whose configurations are the same but for seed and output folder: one curve."""

    name: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class TableCell:
    """A main value and, below it, where it came from."""

    main: str
    below: str = ""


def read_runs(paths: Sequence[Path | str]) -> list[Run]:
    """Read the runs to compare.

    Raises:
        UserError: Fewer than two runs, one run twice, or a folder that is not a readable run.
    """
    if len(paths) < 2:
        raise UserError("A comparison needs at least two run folders.")
    resolved = [Path(path).resolve() for path in paths]
    for path, place in zip(paths, resolved, strict=True):
        if resolved.count(place) > 1:
            raise UserError(f'Run "{path}" is given twice. Name each run once.')
    return [read_run(path) for path in paths]


def run_names(runs: Sequence[Run]) -> list[str]:
    """Return the folder name of each run, with its parents where folder names alone are equal."""
    names = [run.name for run in runs]
    return [
        name if names.count(name) == 1 else str(run.path)
        for name, run in zip(names, runs, strict=True)
    ]


def group_by_config(runs: Sequence[Run]) -> list[RunGroup]:
    """Put runs that differ only in seed and output folder together, in order of appearance.

    A run that is still going on stays apart: it would pull down the mean of those that are done.
    """
    found: dict[tuple[object, ...], list[tuple[str, Run]]] = {}
    for name, run in zip(run_names(runs), runs, strict=True):
        identity = (run.finished, run.recipe, run.method, *sorted(_compared_options(run).items()))
        found.setdefault(identity, []).append((name, run))
    groups = [
        RunGroup(_group_name([name for name, _ in members]), tuple(run for _, run in members))
        for members in found.values()
    ]
    differing = differing_options(groups)
    return [_by_variant(group, place, differing) for place, group in enumerate(groups)]


def _by_variant(group: RunGroup, place: int, differing: dict[str, list[str]]) -> RunGroup:
    """Return seeds under the options that tell them from other groups, where these are few."""
    own = {key: values[place] for key, values in differing.items() if values[place] != "–"}
    words = [value if key == "method" else f"{key} {value}" for key, value in own.items()]
    variant = ", ".join(words)
    if len(group.runs) == 1 or not 0 < len(variant) <= LONGEST_VARIANT:
        return group
    return replace(group, name=f"{variant}, {len(group.runs)} seeds")


def differing_options(groups: Sequence[RunGroup]) -> dict[str, list[str]]:
    """Return the options in which the groups differ: {"kl_weight": ["0.04", "0.1"]}."""
    options = [_compared_options(group.runs[0]) for group in groups]
    keys = dict.fromkeys(key for flat in options for key in flat)
    rows = {key: [flat.get(key, "–") for flat in options] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def unlike(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return what makes numbers of these runs incomparable: {"data": ["digits (a)", …]}."""
    found: dict[str, list[str]] = {}
    for word, of in (("data", _data_of), ("rewards", _rewards_of)):
        by_value: dict[str, list[str]] = {}
        for name, run in zip(run_names(runs), runs, strict=True):
            if value := of(run):
                by_value.setdefault(value, []).append(name)
        if len(by_value) > 1:
            found[word] = [f"{value} ({', '.join(names)})" for value, names in by_value.items()]
    return found


def _data_of(run: Run) -> str:
    data = run.config.get("data")
    return "" if data is None else str(data)


def _rewards_of(run: Run) -> str:
    """The rewards that a run was trained on; a supervised one only measures them."""
    reward = run.config.get("reward")
    if run.method == "supervised" or not reward:
        return ""
    return ", ".join(map(str, reward)) if isinstance(reward, list) else str(reward)


def _compared_options(run: Run) -> dict[str, str]:
    return {
        key: value
        for key, value in flatten(run.config).items()
        if key.split(".")[-1] != "seed" and key not in _NOT_COMPARED
    }


def _group_name(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}, {len(names)} seeds"


def named_rows(group: RunGroup, runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """Return each run of a group by its name and, where there are several seeds, all of them."""
    rows = [(name, [run]) for name, run in _named_members(group, runs)]
    return rows if len(rows) == 1 else [*rows, (f"mean ± std: {group.name}", list(group.runs))]


def _named_members(group: RunGroup, runs: Sequence[Run]) -> list[tuple[str, Run]]:
    """Return the runs of a group, each with its name among all that are compared."""
    named = zip(run_names(runs), runs, strict=True)
    return [(name, run) for name, run in named if any(run is member for member in group.runs)]


# ---- results ------------------------------------------------------------------------------------


def comparison_table(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return one row for each run, as plain numbers; None where a run has no such value.

    Columns: run, recipe, method, seed, finished, then <measure>_before and <measure>_after for
    the measures that any of the runs has, then seconds, steps, peak_memory_bytes and
    sampled_tokens.
    """
    rows = []
    for name, run in zip(run_names(runs), runs, strict=True):
        before, after = _measured(run)
        measured = {
            f"{measure}_{when}": values.get(measure)
            for measure in _compared(runs)
            for when, values in (("before", before), ("after", after))
        }
        rows.append(
            {
                "run": name,
                "recipe": run.recipe,
                "method": run.method,
                "seed": run.config.get("seed"),
                "finished": run.finished,
                **measured,
                "seconds": run.seconds,
                "steps": run.steps,
                "peak_memory_bytes": run.summary.get("peak_memory_bytes"),
                "sampled_tokens": run.sampled_tokens,
            }
        )
    return rows


def result_headings(runs: Sequence[Run]) -> list[str]:
    """Return the headings of the columns after "run" and "method"."""
    measures = [row.heading for row in _compared(runs).values()]
    return measures + [_COSTS[key][0] for key in _costs_of(runs)]


def result_rows(group: RunGroup, runs: Sequence[Run]) -> list[tuple[str, list[TableCell]]]:
    """Return the table rows of a group: each run, then their mean when there are several."""
    names = [name for name, _ in _named_members(group, runs)]
    table = [row for row in comparison_table(runs) if row["run"] in names]
    labels, costs = _compared(runs), _costs_of(runs)
    rows = [(row["run"], _run_cells(row, labels, costs)) for row in table]
    if len(table) > 1:
        rows.append((f"mean: {group.name}", _mean_cells(table, labels, costs)))
    return rows


def _compared(runs: Sequence[Run]) -> dict[str, Metric]:
    """Return the measures that at least one of the runs has, in reading order."""
    subject = common_subject(runs)
    found = dict.fromkeys(key for run in runs for values in _measured(run) for key in values)
    labels = {key: metric(f"eval/{key}", subject) for key in ordered(found, subject)}
    return {key: label for key, label in labels.items() if label.is_shown("compare")}


def _measured(run: Run) -> tuple[dict[str, float], dict[str, float]]:
    """Return the measures before and after; of answers, also "accuracy/out" on other data."""
    found = {"before": scalars(run.before), "after": scalars(run.after)}
    if run.subject == "answers":
        for name, values in run.shifts.items():
            for when, measures in found.items():
                if "accuracy" in (shifted := scalars(values.get(when) or {})):
                    measures[f"accuracy/{name}"] = shifted["accuracy"]
    return found["before"], found["after"]


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
    def cell(column: str, write: Write) -> TableCell:
        values = [row[column] for row in table if row[column] is not None]
        if not values:
            return TableCell("–")
        return TableCell(write(fmean(values)), f"{write(min(values))} to {write(max(values))}")

    measured = [cell(f"{key}_after", label.text) for key, label in labels.items()]
    means = [TableCell(cell(key, _COSTS[key][1]).main) for key in costs]
    return [TableCell(table[0]["method"] or "–"), *measured, *means]


# ---- convergence: how soon runs are as good as they end -----------------------------------------


def epochs_to_final(run: Run, key: str, share: float = SHARE) -> float | None:
    """Return the first evaluated epoch at which a metric is within a share of its final value.

    The final value is that of the last evaluation of a finished run, whichever weights were kept.
    Where higher is better the metric must reach ``share`` × final, where lower is better it must
    come down to final / ``share``. There is no interpolation: the answer is an epoch at which the
    run was evaluated, so that it can only be as fine as the evaluations are frequent.

    Returns:
        The epoch; None for a run that is not finished or has no evaluation after its start, and
        where the final value is not positive, since a share of it would say nothing.
    """
    curve = _curve(run, key)
    if curve is None or curve[1][-1] <= 0:
        return None
    final, lower = curve[1][-1], metric(key).better == "lower"
    return next(
        epoch
        for epoch, value in zip(*curve, strict=True)
        if (value <= final / share if lower else value >= share * final)
    )


def convergence_keys(runs: Sequence[Run], metrics: Sequence[str] | None) -> list[str]:
    """Return the metrics to tabulate: those asked for that have a better side, or the main one."""
    asked = metrics or [f"eval/{key}" for key in main_keys()]
    return [
        key
        for key in dict.fromkeys(asked)
        if key.startswith("eval/")
        and metric(key).better != "neither"
        and any(_curve(run, key) for run in runs)
    ]


def convergence_rows(
    group: RunGroup, runs: Sequence[Run], keys: Sequence[str]
) -> list[tuple[str, list[TableCell]]]:
    """Return the rows of a group: each run, then mean ± standard deviation when there are several.

    Each metric has two cells: its final value, and the epochs to 99 % of it.
    """
    rows = named_rows(group, runs)
    return [(name, [cell for key in keys for cell in _cells(key, of)]) for name, of in rows]


def _cells(key: str, runs: Sequence[Run]) -> list[TableCell]:
    curves = [_curve(run, key) for run in runs]
    finals = [None if curve is None else curve[1][-1] for curve in curves]
    epochs = [epochs_to_final(run, key) for run in runs]
    return [
        _mean_and_spread(finals, metric(key).text),
        _mean_and_spread(epochs, lambda value: f"{round(value, 2):g}"),
    ]


def _mean_and_spread(values: list[float | None], write: Write) -> TableCell:
    known = [value for value in values if value is not None]
    if not known:
        return TableCell("–")
    below = "" if len(known) == len(values) else f"{len(known)} of {len(values)} runs"
    if len(known) == 1:
        return TableCell(write(known[0]), below)
    return TableCell(f"{write(fmean(known))} ± {write(stdev(known))}", below)


def _curve(run: Run, key: str) -> tuple[list[float], list[float]] | None:
    """Return epochs and values of a finished run, None if it was not evaluated after its start."""
    if not run.finished or key not in metric_keys(run) or not has_epochs(run):
        return None
    steps, values = series(run, key)
    return (positions(run, steps, "epoch"), values) if steps[-1] > 0 else None

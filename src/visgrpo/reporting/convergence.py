"""How soon runs are as good as they end: epochs to 99 % of the final value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, stdev

from visgrpo.reporting.groups import RunGroup, TableCell, named_members
from visgrpo.reporting.labels import metric
from visgrpo.reporting.run_reader import Run, has_epochs, metric_keys, positions, series

SHARE = 0.99
# What a recipe is judged by: only one of them is logged, as a rule.
_MAIN_METRICS = ("eval/miou", "eval/accuracy", "eval/knn")


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
    if curve is None:
        return None
    epochs, values = curve
    final = values[-1]
    if final <= 0:
        return None
    if metric(key).better == "lower":
        return next(e for e, value in zip(epochs, values, strict=True) if value <= final / share)
    return next(e for e, value in zip(epochs, values, strict=True) if value >= share * final)


def convergence_keys(runs: Sequence[Run], metrics: Sequence[str] | None) -> list[str]:
    """Return the metrics to tabulate: those asked for that have a better side, or the main one."""
    asked = [key for key in metrics or _MAIN_METRICS if key.startswith("eval/")]
    return [
        key
        for key in dict.fromkeys(asked)
        if metric(key).better != "neither" and any(_curve(run, key) for run in runs)
    ]


def convergence_rows(
    group: RunGroup, runs: Sequence[Run], keys: Sequence[str]
) -> list[tuple[str, list[TableCell]]]:
    """Return the rows of a group: each run, then mean ± standard deviation when there are several.

    Each metric has two cells: its final value, and the epochs to 99 % of it.
    """
    members = named_members(group, runs)
    rows = [
        (name, [cell for key in keys for cell in _cells(key, [run], _one)]) for name, run in members
    ]
    if len(members) > 1:
        both = [run for _, run in members]
        cells = [cell for key in keys for cell in _cells(key, both, _mean_and_spread)]
        rows.append((f"mean ± std of {len(members)}", cells))
    return rows


Write = Callable[[float], str]


def _cells(
    key: str, runs: Sequence[Run], cell: Callable[[list[float | None], Write], TableCell]
) -> list[TableCell]:
    curves = [_curve(run, key) for run in runs]
    finals = [None if curve is None else curve[1][-1] for curve in curves]
    epochs = [epochs_to_final(run, key) for run in runs]
    return [cell(finals, metric(key).text), cell(epochs, _epochs)]


def _one(values: list[float | None], write: Write) -> TableCell:
    (value,) = values
    return TableCell("–" if value is None else write(value))


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


def _epochs(value: float) -> str:
    return f"{round(value, 2):g}"

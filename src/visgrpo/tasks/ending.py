"""The end of a training recipe: summary, saved model, plots, page, and a table to read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from visgrpo.reporting import print_measures, write_report
from visgrpo.tasks.session import Session
from visgrpo.training.metrics import peak_memory_bytes
from visgrpo.training.trainer import TrainResult

_SHIFTS_IN_TABLE = ("vlm",)  # recipes with one or two shifts, of which more than accuracy counts


def finish(
    session: Session,
    result: TrainResult,
    *,
    recipe: str,
    method: str,
    model: str,
    data: Mapping[str, Any],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    save: Callable[[Mapping[str, Any]], None],
    baseline: Mapping[str, Any] | None = None,
    retention: Mapping[str, Any] | None = None,
    shifts: Mapping[str, Any] | None = None,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write everything that a finished run leaves behind; returns the summary.

    Args:
        data: its name, and how much each split holds of what it is measured in ("unit", by default
            images).
        more: what else this recipe's summary says.
    """
    summary: dict[str, Any] = {
        "recipe": recipe,
        "method": method,
        "model": model,
        "data": dict(data),
        "steps": result.steps,
        "best_step": result.best_step,
        "kept_step": result.best_step if session.config.keep == "best" else result.steps,
        "validation": result.validation,
        "seconds": round(result.seconds, 3),
        "examples_per_second": round(result.examples / max(result.seconds, 1e-9), 2),
        "peak_memory_bytes": peak_memory_bytes(session.processes.device),
        "before": dict(before),
        "after": dict(after),
    }
    if baseline is not None:
        summary["baseline"] = dict(baseline)
    if retention:
        summary["retention"] = dict(retention)
    if shifts:
        summary["shifts"] = dict(shifts)
    summary.update(more or {})
    if session.processes.is_main:
        save(summary)
        session.run.write_summary(summary)
        if session.config.report:
            write_report(session.run.path)
        print_outcome(summary)
        if not result.best_step and session.config.keep == "best":
            session.say(
                "note: no evaluation was as good as the start's, so the run ends with the start's "
                "weights; --keep last keeps the last ones."
            )
        if session.config.report:
            session.say(f"Page: {session.run.path / 'report.html'}")
        session.say(f"Model: {session.run.path / 'model'}")
    session.processes.finish_trackers()
    session.processes.wait()
    return summary


def print_outcome(summary: Mapping[str, Any]) -> None:
    """Print start, baseline and result side by side on stdout."""
    rows = {"start": summary["before"]}
    if "baseline" in summary:
        rows[summary["baseline"]["name"]] = summary["baseline"]["after"]
    rows[summary["method"]] = summary["after"]
    shifts = summary.get("shifts", {})
    if summary["recipe"] in _SHIFTS_IN_TABLE:
        for name, value in shifts.items():
            rows[f"start, {name}"] = value["before"]
            rows[f"{summary['method']}, {name}"] = value["after"]
        shifts = {}
    data = summary["data"]
    print_measures(f"{data['name']}, {data['test']} held-out {data.get('unit', 'images')}", rows)
    for name, value in summary.get("retention", {}).items():
        print(f"retention, {name}: {value['before']:.3f} before, {value['after']:.3f} after")
    for name, value in shifts.items():
        accuracies = (value[when]["accuracy"] for when in ("before", "after"))
        print("accuracy, {}: {:.3f} before, {:.3f} after".format(name, *accuracies))

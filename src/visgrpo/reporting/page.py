"""The report of one run: RUN/report.html, one file that needs no network and no scripts."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from visgrpo.files import read_json, write_whole
from visgrpo.metrics import count, duration, memory
from visgrpo.reporting import outcome
from visgrpo.reporting.examples import examples, segments
from visgrpo.reporting.figures import (
    curve_figure,
    curve_keys,
    curve_title,
    curve_values,
    is_constant,
    plot_curves,
)
from visgrpo.reporting.groups import RunGroup
from visgrpo.reporting.html import Plot, both_themes, render
from visgrpo.reporting.overoptimization import overoptimization
from visgrpo.reporting.run import Run, flatten, read_run

CONSTANT = "Curves that never move"


def write_report(run_path: Path | str) -> Path:
    """Write ``plots/*.png`` and ``report.html`` into a run directory; return the page's path.

    Raises:
        UserError: The folder is not a run, or one of its files is damaged.
    """
    run = read_run(run_path)
    shown, logged = examples(run)
    tables = outcome.measure_tables(run)
    versions = run.config.get("versions")
    page = render(
        "report.html.j2",
        run=run,
        facts=facts(run),
        headline=headline(run),
        remarks=outcome.remarks(run),
        measure_tables=tables,
        glossary=glossary(tables),
        tested_on=outcome.tested_on(run),
        baseline=outcome.baseline(run),
        per_class=outcome.per_class(run, "accuracy"),
        per_class_iou=outcome.per_class(run, "iou"),
        confusion=outcome.confusion(run),
        retention=outcome.retention(run),
        shifts=outcome.shifts(run),
        distributions=outcome.distributions(run),
        count_confusions=outcome.count_confusions(run),
        memory=outcome.memory_parts([run]),
        overoptimization=overoptimization(
            [RunGroup(run.name, (run,))], run.path / "plots" / "overoptimization.png"
        ),
        plots=_plots(run),
        constant=CONSTANT,
        segments=segments(run),
        examples=shown,
        examples_logged=logged,
        command=repeat_command(run),
        config=flatten({k: v for k, v in run.config.items() if k not in ("versions", "changed")}),
        changed=run.config.get("changed") or [],
        versions=flatten(versions if isinstance(versions, dict) else {}),
    )
    return write_whole(run.path / "report.html", page)


def ended(run: Path, *, report: bool) -> dict[str, Any] | None:
    """Return the summary of a run that has ended, else None.

    Where a kill has taken the page that comes after the summary, it is written now.
    """
    if not (run / "summary.json").exists():
        return None
    if report and (run / "metrics.jsonl").exists() and not (run / "report.html").exists():
        write_report(run)
    return read_json(run / "summary.json")


def headline(run: Run) -> str | None:
    """Return the change of the reward that was trained, then of the run's first other measure.

    None before there is one.
    """
    changes = {
        change.name: change
        for change in outcome.measures(run)
        if change.before_value is not None and change.after_value is not None
    }
    reward = None if run.method == "supervised" else changes.pop("reward", None)
    first = [*([reward] if reward else []), *list(changes.values())[:1]]
    return "; ".join(outcome.in_a_line(run, change) for change in first) or None


def glossary(tables: Mapping[str, Sequence[outcome.Change]]) -> dict[str, str]:
    """Return what the measures of the tables mean, each once, for readers who do not know them."""
    labels = [change.label for changes in tables.values() for change in changes]
    return {label.title: label.about for label in labels if label.about}


def facts(run: Run) -> list[tuple[str, str]]:
    """Return what a reader asks first: recipe, method, model, data, when and how long."""
    written = datetime.fromtimestamp((run.path / "metrics.jsonl").stat().st_mtime)
    found = {
        "Recipe": run.recipe,
        "Method": run.method,
        "Model": run.summary.get("model", run.config.get("model")),
        "Data": _data_name(run),
        **_feedback_facts(run.summary.get("feedback")),
        "Last written": written.strftime("%Y-%m-%d %H:%M"),
        "Time": _written(duration, run.seconds),
        "Steps": run.steps,
        "Best step": run.summary.get("best_step"),
        "Sampled tokens": _written(count, run.sampled_tokens),
        "Tokens per second": _written(count, run.summary.get("tokens_per_second")),
        "Examples per second": _written("{:.1f}".format, run.summary.get("examples_per_second")),
        "Peak memory": _written(memory, run.summary.get("peak_memory_bytes")),
    }
    return [(name, str(value)) for name, value in found.items() if value is not None]


def repeat_command(run: Run) -> str | None:
    """Return the shell command that repeats the run, None when its recipe is not recorded.

    The name of a recipe is its command, which may be two words: "pretrain clip". The repeated run
    needs a folder of its own: a folder that holds a run is refused.
    """
    if run.recipe is None:
        return None
    words = ["visgrpo", *run.recipe.split(), "--config", str(run.path / "config.yaml")]
    return shlex.join([*words, "--output", f"{run.path}-again"])


def _plots(run: Run) -> dict[str, list[Plot]]:
    """Write the run's plots, and return them for the page under the title of their group.

    Those of which every value is the same come last, to be folded away.
    """
    groups: dict[str, list[Plot]] = {"Validation": [], "Training": [], CONSTANT: []}
    paths = plot_curves(run, run.path / "plots")
    for key, path in zip(curve_keys(run), paths, strict=True):
        draw = partial(curve_figure, run, key)
        plot = both_themes(curve_title(key, run.subject), draw, light=path.read_bytes())
        plot = replace(plot, values=curve_values(run, key))
        group = "Validation" if key.startswith("eval/") else "Training"
        groups[CONSTANT if is_constant(run, key) else group].append(plot)
    return {title: plots for title, plots in groups.items() if plots}


def _data_name(run: Run) -> str | None:
    data = run.summary.get("data") or run.config.get("data")
    if not isinstance(data, dict):
        return None if data is None else str(data)
    parts = flatten(data)
    name = parts.pop("name", "")
    rest = ", ".join(f"{key} {value}" for key, value in parts.items())
    return f"{name} ({rest})" if name and rest else name or rest


def _feedback_facts(feedback: dict[str, Any] | None) -> dict[str, str]:
    """Return what a page says of the feedback that a run learned from."""
    if not feedback:
        return {}
    coverage = f"{feedback['coverage']:.1%} of the labels of training images"
    return {
        "Feedback": f"{feedback['matched']:,} {feedback['kind']} from {feedback['source']}",
        "Seen by people": f"{coverage}; the others: {feedback['unknown']}",
    }


def _written(write: Callable[[float], str], value: float | None) -> str | None:
    return None if value is None else write(value)

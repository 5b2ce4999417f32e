"""Pages from finished runs: `visgrpo report` and `visgrpo compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from visgrpo.reporting import Run, compare_runs, read_runs, write_report
from visgrpo.reporting.convergence import convergence_keys, convergence_rows
from visgrpo.reporting.groups import group_by_config
from visgrpo.reporting.labels import metric
from visgrpo.tasks.configs import CompareConfig, ReportConfig
from visgrpo.tasks.ending import print_measures


def report(config: ReportConfig) -> Path:
    """Write RUN/report.html again and return its path."""
    config.check()
    page = write_report(config.run)
    print(page)
    return page


def compare(config: CompareConfig) -> Path:
    """Write the page of several runs, print their outcomes, and return the page's path."""
    config.check()
    page = compare_runs(config.runs, list(config.metric) or None, Path(config.output))
    runs = read_runs(config.runs)
    print_measures("Held-out", {run.name: run.after for run in runs})
    _print_convergence(runs, config.metric)
    print(page)
    return page


def _print_convergence(runs: Sequence[Run], metrics: Sequence[str]) -> None:
    """Print how soon runs were as good as they end, where they were judged by epochs."""
    keys = convergence_keys(runs, metrics)
    if not keys:
        return
    columns = [
        column
        for key in keys
        for column in (f"{metric(key).heading}, final", f"{metric(key).heading}, epochs to 99 %")
    ]
    title = "Epochs to 99 % of the final value, on validation data"
    table = Table("", *columns, title=title, title_justify="left")
    for group in group_by_config(runs):
        for name, cells in convergence_rows(group, runs, keys):
            texts = [f"{cell.main} ({cell.below})" if cell.below else cell.main for cell in cells]
            table.add_row(escape(name), *texts)
    Console(width=None if Console().is_terminal else 100).print(table)

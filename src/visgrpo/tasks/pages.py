"""Pages from finished runs: report, compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from visgrpo.metrics import metric
from visgrpo.reporting import Run, compare_runs, read_runs, write_report
from visgrpo.reporting.console import print_cells, table_of_groups, write_table
from visgrpo.reporting.groups import (
    convergence_keys,
    convergence_rows,
    group_by_config,
    named_rows,
)
from visgrpo.tasks.options import CompareConfig, ReportConfig
from visgrpo.terminal import show, show_table


def report(config: ReportConfig) -> Path:
    """Write RUN/report.html again and return its path."""
    config.check()
    page = write_report(config.run)
    show(str(page))
    return page


def compare(config: CompareConfig) -> Path:
    """Write the page of several runs, print their outcomes, and return the page's path."""
    config.check()
    page = compare_runs(config.runs, list(config.metric) or None, Path(config.output))
    runs = read_runs(config.runs)
    rows = [row for group in group_by_config(runs) for row in named_rows(group, runs)]
    held_out = table_of_groups([(name, [run.after for run in of]) for name, of in rows])
    if config.table:
        write_table(config.table, *held_out)
    show_table(*held_out, title="Held-out", width=120)
    _print_convergence(runs, config.metric)
    show(str(page))
    return page


def _print_convergence(runs: Sequence[Run], metrics: Sequence[str]) -> None:
    """Print how soon runs were as good as they end, where they were judged by epochs."""
    keys = convergence_keys(runs, metrics)
    if not keys:
        return
    headings = [metric(key).heading for key in keys]
    columns = [f"{name}, {what}" for name in headings for what in ("final", "epochs to 99 %")]
    rows = [row for group in group_by_config(runs) for row in convergence_rows(group, runs, keys)]
    print_cells("Epochs to 99 % of the final value, on validation data", columns, rows)

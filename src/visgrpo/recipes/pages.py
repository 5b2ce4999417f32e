"""Pages from finished runs: `visgrpo report` and `visgrpo compare`."""

from __future__ import annotations

from pathlib import Path

from visgrpo.recipes.configs import CompareConfig, ReportConfig
from visgrpo.recipes.ending import print_measures
from visgrpo.reporting import compare_runs, read_runs, write_report


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
    print(page)
    return page

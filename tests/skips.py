"""A plugin of pytest: with VISGRPO_MAY_SKIP set, as in .ci/run, a skipped test fails.

Not for want of hardware or rights, nor for a reason that the variable names, one a line.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import TypeVar

import pytest

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)
HARDWARE_OR_RIGHTS = ("root may write everywhere", "there is a GPU", "not the rights to")


def _judged(report: Report) -> Report:
    named = os.environ.get("VISGRPO_MAY_SKIP")
    if named is None or not report.skipped or hasattr(report, "wasxfail"):
        return report
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not any(allowed in reason for allowed in (*HARDWARE_OR_RIGHTS, *named.splitlines())):
        report.outcome = "failed"
        report.longrepr = f"Nothing may be skipped here for this reason. {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _judged((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _judged((yield))

"""The reliability campaign in short: a few trials of each part, none of which may go wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parent.parent / "benchmarks" / "reliability" / "run.py"


@pytest.mark.slow
@pytest.mark.parametrize(("part", "scale"), [("kills", 0.5), ("words", 0.03), ("disk", 0.5)])
def test_a_few_trials(part: str, scale: float) -> None:
    done = subprocess.run(
        [sys.executable, str(RUN), part, "--scale", str(scale)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout
    assert "| 0 |" in done.stdout
    if "skipped: " in done.stdout:
        pytest.skip(done.stdout.partition("skipped: ")[2].split(" |")[0])

"""Benchmarks run, and write what the project's pages are made from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.slow
def test_label_step_writes_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    arguments = ["--quick", "--shape", "small", "--threads", "1", "--json", str(path)]
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "label_step.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr

    written = json.loads(path.read_text())
    assert set(written) == {"machine", "versions", "rows"}
    assert written["versions"]["torch"]
    names = [row["name"] for row in written["rows"]]
    assert "small sampled cached" in names
    assert "small exact live" in names
    assert "small features cached" in names
    for row in written["rows"]:
        assert row["ratio"] > 0
        assert row["spread"] >= 0
        assert row["memory_ratio"] > 0
        assert f"| {row['name']} |" in done.stdout

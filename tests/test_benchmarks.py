"""Benchmarks run, and write what the project's pages are made from."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


needs_trl = pytest.mark.skipif(find_spec("trl") is None, reason="trl is not installed")


def run(script: str, path: Path, *arguments: str) -> tuple[list[dict[str, Any]], str]:
    """Run a benchmark quickly; return the rows that it wrote to `path`, and what it printed."""
    shared = ["--quick", "--threads", "1", "--json", str(path)]
    done = subprocess.run(
        [sys.executable, BENCHMARKS / script, *shared, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    written = json.loads(path.read_text())
    assert set(written) == {"machine", "versions", "rows"}
    assert written["versions"]["torch"]
    for row in written["rows"]:
        assert f"| {row['name']} |" in done.stdout
    return written["rows"], done.stdout


@pytest.mark.slow
def test_label_step_writes_its_rows(tmp_path: Path) -> None:
    rows, _ = run("label_step.py", tmp_path / "rows.json", "--shape", "small")
    names = [row["name"] for row in rows]
    assert "small sampled cached" in names
    assert "small exact live" in names
    assert "small features cached" in names
    for row in rows:
        assert row["ratio"] > 0
        assert row["spread"] >= 0
        assert row["memory_ratio"] > 0


@pytest.mark.slow
@needs_trl
def test_token_step_agrees_with_trl_and_writes_its_rows(tmp_path: Path) -> None:
    rows, printed = run("token_step.py", tmp_path / "rows.json")
    names = [row["name"] for row in rows]
    image = "tiny, image 16, prompt 112, new 8, group 8"
    assert names == ["gpt2, prompt 32, new 8", "qwen2, prompt 32, new 8", image]
    assert "trl 1." in printed
    for row in rows:
        for part in ("our rollout", "our update", "TRL rollout", "TRL update"):
            assert row[f"{part} ms"] > 0
        assert row["times as fast"] > 0
        assert row["spread"] >= 0
        assert row["our memory MB"] > 0
        assert row["TRL memory MB"] > 0
        assert row["peak share"] > 0
        assert row["verdict"] in ("met", "missed")
    assert rows[2]["bound by tokens"] == pytest.approx(8 * (112 + 8) / (112 + 8 * 8))
    share = rows[2]["times as fast"] / rows[2]["bound by operations"]
    assert rows[2]["share of the latter"] == pytest.approx(share)


@pytest.mark.slow
def test_house_prints_its_table_and_walks() -> None:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "house.py"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    rows = dict(line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:])
    counts = {name: int(count.replace(",", "")) for name, count in rows.items()}
    assert counts["option declarations"] >= counts["option names"] > 100
    assert counts["source lines"] > counts["source files"] > 50
    assert 5 < counts["files on a reward's walk"] < counts["source files"]
    assert 5 < counts["files on the pixels' walk"] < counts["source files"]

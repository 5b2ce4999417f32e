"""The examples about vision-language models run as they stand, but for sizes and places."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import yaml
from running import read_json

from visgrpo.cli import main

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_counting_shapes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["count_shapes.py", "1"])
    runpy.run_path(str(EXAMPLES / "count_shapes.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("0 nll ")
    assert lines[1].startswith("0 reward ")


def test_clevr(seer: Path, counts: Path, other_counts: Path, tmp_path: Path) -> None:
    """With a small model, a few pictures and steps on a CPU."""
    options = yaml.safe_load((EXAMPLES / "clevr.yaml").read_text())
    options |= {"model": str(seer), "data": str(counts), "sft_data": str(counts)}
    options |= {"train": [*options["train"][:2], "layers:0-1"], "max_new_tokens": 16}
    file, output = tmp_path / "clevr.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(options))
    few = "--sft-steps 1 --steps 1 --eval-images 4 --precision fp32 --device cpu --no-report"
    words = ["vlm", "--config", file, "--shifts", other_counts, "--output", output, *few.split()]
    main([str(word) for word in words])
    assert list(read_json(output / "summary.json")["stages"]) == ["sft", "grpo"]
    assert read_json(output / "grpo" / "summary.json")["shifts"]["out"]["after"]["examples"] == 4

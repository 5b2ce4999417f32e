"""The sweeps that come with the project: the example runs, the proofs' files are understood."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from visgrpo.cli import main
from visgrpo.tasks.backbone.options import RepresentationConfig, SegmentationConfig
from visgrpo.tasks.sweep_plan import read_combinations

ROOT = Path(__file__).parents[2]
PROOFS = sorted((ROOT / "benchmarks" / "representation").glob("*.yaml"))


def test_the_example_runs_every_reward(
    vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it stands, but for the backbone and two steps instead of its epochs."""
    options = yaml.safe_load((ROOT / "examples" / "rm_ablation.yaml").read_text())
    del options["epochs"]
    options |= {"model": str(vit), "steps": 2}
    file, output = tmp_path / "ablation.yaml", tmp_path / "sweep"
    file.write_text(yaml.safe_dump(options, sort_keys=False))
    main(f"sweep representation --config {file} --seeds 1 --output {output}".split())
    rows = json.loads((output / "sweep.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == list(options["variants"])
    assert all(0 <= row["measures"]["accuracy"]["mean"] <= 1 for row in rows)
    assert "accuracy + spread" in capsys.readouterr().out


@pytest.mark.parametrize("file", PROOFS, ids=lambda file: file.stem)
def test_the_files_of_the_proofs_are_understood(file: Path) -> None:
    command = "segmentation" if file.stem == "segmentation" else "representation"
    config = SegmentationConfig if command == "segmentation" else RepresentationConfig
    assert len(read_combinations(file, config, command)) > 1

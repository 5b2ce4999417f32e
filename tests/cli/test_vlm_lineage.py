"""Rows that an earlier stage has learned from are measured on by no later one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from running import read_json, see

from visgrpo.cli import main
from visgrpo.tasks.vlm.data import Learned, learned_from, lineage_of

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def runs(
    seer: Path, counts: Path, other_counts: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """SFT on one table with seed 3, GRPO from it on another."""
    folder = tmp_path_factory.mktemp("lineage")
    sft = see("sft", seer, counts, folder / "sft", "--seed", 3)
    return sft, see("grpo", sft, other_counts, folder / "grpo", "--steps", 1)


def examples(capsys: Capture, *words: object) -> int:
    capsys.readouterr()
    main(["evaluate", *map(str, words), "--max-new-tokens", "4", "--json", "-"])
    return json.loads(capsys.readouterr().out)["model"]["examples"]


def test_every_stage_is_remembered(
    runs: tuple[Path, Path], counts: Path, other_counts: Path
) -> None:
    stages = lineage_of(read_json(runs[1] / "model" / "visgrpo.json"))
    assert [(stage.data, stage.seed) for stage in stages] == [
        (str(counts.resolve()), 3),
        (str(other_counts.resolve()), 0),
    ]
    assert learned_from(str(runs[1]), str(counts)) == stages[0]
    assert learned_from(str(runs[0]), str(other_counts)) is None
    assert learned_from(None, str(counts)) is None
    assert lineage_of({}) == []


def test_what_an_earlier_stage_learned_from_is_divided(
    runs: tuple[Path, Path], counts: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, grpo = runs
    assert examples(capsys, grpo, "--data", counts) == 12  # a fifth of 60
    monkeypatch.chdir(counts.parent)
    assert examples(capsys, grpo, "--data", counts.name) == 12  # however it is written


def test_a_later_stage_divides_as_the_earlier_did(
    runs: tuple[Path, Path], counts: Path, tmp_path: Path, capsys: Capture
) -> None:
    run = see("grpo", runs[0], counts, tmp_path / "run", "--steps", 1, "--seed", 8)
    assert f"divided as when {runs[0]} learned from it: seed 3" in capsys.readouterr().err
    assert lineage_of(read_json(run / "model" / "visgrpo.json"))[0] == Learned(
        str(counts.resolve()), 3, 0.05
    )

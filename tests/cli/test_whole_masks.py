"""`--reward miou`, `dice`, `fbeta` and `macro-f1`: what trains, what is said, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import (
    clip_words,
    head,
    read_json,
    refused,
    represent,
    same_tuned_run,
    segment,
    training_lines,
    words,
)
from safetensors.torch import load_file
from torch.testing import assert_close

Capture = pytest.CaptureFixture[str]
EXACT = ["--estimator", "exact", "--keep", "last"]


@pytest.fixture(autouse=True)
def _no_page(no_page: None) -> None:
    """Pages are tested elsewhere."""


def test_every_score_and_scope_trains_another_way(vit: Path, masks: Path, tmp_path: Path) -> None:
    ways = ["miou", "dice", "fbeta:2", "miou --scope image", "miou --scope batch", "miou hard"]
    runs = {
        way: segment(vit, masks, tmp_path / str(i), *EXACT, *f"--reward {way}".split())
        for i, way in enumerate(ways)
    }
    assert len({head(run) for run in runs.values()}) == len(ways)
    for way in ("miou", "miou --scope image"):
        for line in training_lines(runs[way]):
            assert 0 < line["rewards/miou/mean"] == line["reward"] < 1


def test_the_score_rises_on_what_is_trained_and_tested(
    vit: Path, masks: Path, tmp_path: Path
) -> None:
    options = ["--reward", "miou", "--steps", "30", "--learning-rate", "0.02", "--hidden", "16"]
    run = segment(vit, masks, tmp_path / "run", *EXACT, *options, "--decide-at", "pixel")
    lines, summary = training_lines(run), read_json(run / "summary.json")
    assert lines[-1]["reward"] > lines[0]["reward"] + 0.05
    assert summary["after"]["miou"] > summary["before"]["miou"] + 0.05


@pytest.mark.parametrize("scope", ["image", "running"])
def test_accumulation_changes_nothing(scope: str, vit: Path, masks: Path, tmp_path: Path) -> None:
    options = [*EXACT, "--reward", "dice", "--scope", scope]
    whole = segment(vit, masks, tmp_path / "1", *options)
    split = segment(vit, masks, tmp_path / "4", *options, "--accumulation", "4")
    ours, theirs = (load_file(place / "model" / "head.safetensors") for place in (split, whole))
    for tensor in theirs:
        assert_close(ours[tensor], theirs[tensor], atol=1e-4, rtol=1e-3)


def test_a_resumed_run_remembers_its_counts(
    vit: Path, masks: Path, tmp_path: Path, capsys: Capture
) -> None:
    options = [*EXACT, "--reward", "miou", "--save-every", "2", "--eval-every", "2"]
    whole = segment(vit, masks, tmp_path / "whole", *options)
    again = segment(vit, masks, tmp_path / "again", *options)
    for step in (again / "checkpoints").glob("step-000004"):  # as if it had ended after step 2
        for file in step.iterdir():
            file.unlink()
        step.rmdir()
    segment(vit, masks, again, *options, "--resume")
    assert same_tuned_run(again, whole)


def test_macro_f1_of_images(vit: Path, pictures: Path, tmp_path: Path) -> None:
    run = represent(vit, pictures, tmp_path / "run", *EXACT, "--reward", "macro-f1")
    assert all(0 < line["rewards/macro-f1/mean"] < 1 for line in training_lines(run))


REFUSED = {
    "--reward miou": 'Reward "miou" takes --estimator exact',
    "--reward fbeta --estimator exact": 'Reward "fbeta:": write for example "fbeta:2"',
    "--reward fbeta:-1 --estimator exact": 'Reward "fbeta:-1": write for example',
    "--reward miou:2 --estimator exact": 'Reward "miou" takes no argument',
    "--scope batch": "--scope batch is what miou, dice, macro-f1 and fbeta:B are the score of",
}


@pytest.mark.parametrize("options", REFUSED)
def test_refused(options: str, vit: Path, masks: Path, tmp_path: Path, capsys: Capture) -> None:
    given = words("segmentation", vit, masks, tmp_path / "run", *options.split())
    assert REFUSED[options] in refused(capsys, given, notes=True)
    assert not (tmp_path / "run").exists()


def test_refused_where_groups_are_single_labels(
    vit: Path, start: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    given = clip_words(start, pictures, tmp_path / "run", "--reward", "miou")
    assert "is a score of whole masks or batches" in refused(capsys, given, notes=True)
    options = ["--reward", "macro-f1", "--estimator", "exact", "--scope", "image"]
    given = words("representation", vit, pictures, tmp_path / "run", *options)
    assert "--scope image is of masks" in refused(capsys, given, notes=True)

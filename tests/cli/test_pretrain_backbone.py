"""`visgrpo pretrain backbone` end to end on a small picture folder."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from running import metric_lines, read_json, refused, same_run, training_lines, weights

from visgrpo.cli import main
from visgrpo.data.batches import Batch, BatchLoader
from visgrpo.models.backbone import Backbone
from visgrpo.models.load import load_backbone
from visgrpo.models.small import SmallBackbone, build_small_backbone
from visgrpo.training.processes import Processes

SMALL = (
    "--image-size 16 --width 16 --layers 1 --heads 2 --projection 8 --batch-size 16 --steps 6 "
    "--eval-every 3 --log-every 1 --keep last --device cpu"
)
VIT = "--family dinov2 --patch-size 8"
RESNET = "--family resnet --patch-size 8"


def pretrain(data: Path | str, output: Path, options: str = VIT) -> Path:
    words = f"pretrain backbone --data {data} --output {output} {SMALL} {options}"
    main(words.split())
    return output


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its page."""
    return pretrain(pictures, tmp_path_factory.mktemp("backbone") / "run")


def test_a_whole_run_is_left(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    expected = {"config.yaml", "metrics.jsonl", "summary.json", "checkpoints", "model"}
    assert expected | {"report.html", "plots"} <= names
    summary = read_json(run / "summary.json")
    assert (summary["recipe"], summary["steps"]) == ("pretrain backbone", 6)
    for part in ("before", "after"):
        assert set(summary[part]["knn"]) == {"1", "5", "20"}
        assert all(0 <= accuracy <= 1 for accuracy in summary[part]["knn"].values())
    evaluated = [line["step"] for line in metric_lines(run) if "eval/knn" in line]
    assert evaluated == [0, 3, 6]
    assert len(training_lines(run)) == 6


def test_the_model_is_a_plain_transformers_one_that_was_trained(run: Path) -> None:
    from transformers import AutoImageProcessor, AutoModel

    model = AutoModel.from_pretrained(run / "model")
    assert type(model).__name__ == "Dinov2Model"
    processor = AutoImageProcessor.from_pretrained(run / "model", backend="pil")
    assert (processor.crop_size["height"], processor.crop_size["width"]) == (16, 16)
    sizes = SmallBackbone("dinov2", image_size=16, patch_size=8, width=16, layers=1, heads=2)
    start = build_small_backbone(sizes, seed=0).model.state_dict()
    trained = model.state_dict()
    assert trained.keys() == start.keys()
    moved = [name for name in start if not torch.equal(start[name], trained[name])]
    assert {"layernorm.weight", "embeddings.patch_embeddings.projection.weight"} <= set(moved)
    info = read_json(run / "model" / "visgrpo.json")
    assert info["classes"] == ["apple", "leaf", "sky"]
    assert "| k = 5 | 0." in (run / "model" / "README.md").read_text().replace("1.0000", "0.9999")


def test_the_model_loads_as_a_backbone(run: Path) -> None:
    parts = load_backbone(str(run / "model"))
    features = Backbone(parts.model).pooled(torch.zeros(2, 3, 16, 16), "both")
    assert features.shape == (2, 32)


@pytest.mark.parametrize("family", [VIT, RESNET])
def test_an_interrupted_run_goes_on_to_the_bit(
    family: str, pictures: Path, tmp_path: Path, no_page: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pretrain(pictures, tmp_path / "whole", family)
    batches = BatchLoader.batches

    def breaking_off(self: BatchLoader, *steps: Any) -> Iterator[Batch]:
        yield from islice(batches(self, *steps), 4)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BatchLoader, "batches", breaking_off)
        with pytest.raises(SystemExit):
            pretrain(pictures, tmp_path / "broken", family)
    pretrain(pictures, tmp_path / "broken", f"{family} --resume")
    assert same_run(tmp_path / "broken", whole)


def test_options_change_the_weights(
    run: Path, pictures: Path, tmp_path: Path, no_page: None
) -> None:
    ways = ("--positives views", "--seed 1", f"--more-data {pictures}@:24", "--augment crop")
    others = {
        weights(pretrain(pictures, tmp_path / str(number), f"{VIT} {way}"))
        for number, way in enumerate(ways)
    }
    assert len(others | {weights(run)}) == 5


BAD = {
    "equal views": ("--augment", "--augment makes the two views of an image differ"),
    "accumulation": ("--accumulation 2", "--accumulation would change the contrastive loss"),
    "temperature": ("--temperature 0", "--temperature must be above 0, not 0"),
    "projection": ("--projection 0", "--projection must be above 0"),
    "patch": ("--patch-size 5", "--patch-size 5 does not divide --image-size 16"),
    "positives": ("--positives clases", "clases"),
    "family": ("--family vit", "vit"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_one_line(
    name: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, message = BAD[name]
    words = f"pretrain backbone --data {pictures} --output {tmp_path}/run {SMALL} {VIT} {options}"
    assert message in refused(capsys, words.split())
    assert not (tmp_path / "run").exists()


def test_too_few_images_for_the_neighbours(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"pretrain backbone --data {pictures} --output {tmp_path}/run {SMALL} {VIT}"
    few = "--train-slice :18"
    assert "18 images, too few for the votes of 20" in refused(capsys, f"{words} {few}".split())
    assert not (tmp_path / "run").exists()


def test_several_processes(
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Processes, "world_size", 2)
    words = f"pretrain backbone --data {pictures} --output {tmp_path}/run {SMALL} {VIT}"
    assert "runs in one process" in refused(capsys, words.split())
    assert not (tmp_path / "run").exists()

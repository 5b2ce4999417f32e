"""A frozen backbone in `visgrpo representation`: encoded once, and never for another question."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from running import read_json, represent, same_tuned_run

from visgrpo.models.backbone import Backbone

PROBES = ["--probe", "knn", "softmax-regression"]
LAST = ["--keep", "last"]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of the encoder took, in this test."""
    calls: list[int] = []
    forward = Backbone.forward

    def counted(self: Backbone, pixels: torch.Tensor) -> Any:
        calls.append(len(pixels))
        return forward(self, pixels)

    monkeypatch.setattr(Backbone, "forward", counted)
    return calls


def test_a_frozen_backbone_is_asked_once(
    vit: Path, pictures: Path, tmp_path: Path, encoded: list[int], no_page: None
) -> None:
    options = ["--cache", str(tmp_path / "cache"), "--shifts", "grey", *LAST, *PROBES]
    first = represent(vit, pictures, tmp_path / "1", *options)
    assert sum(encoded) == 48 + 18 + 18 + 18  # train, validation, test and its grey copy
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}
    assert len(files) == 1
    encoded.clear()
    second = represent(vit, pictures, tmp_path / "2", *options)
    assert not encoded
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()} == files
    assert same_tuned_run(first, second)


def test_the_cache_does_not_answer_for_another_question(
    vit: Path, resnet: Path, pictures: Path, tmp_path: Path, encoded: list[int], no_page: None
) -> None:
    cache = ["--cache", str(tmp_path / "cache"), "--steps", "1"]
    represent(vit, pictures, tmp_path / "1", *cache)
    other = tmp_path / "larger"
    shutil.copytree(vit, other)
    settings = read_json(other / "preprocessor_config.json")
    settings |= {"crop_size": {"height": 24, "width": 24}, "size": {"shortest_edge": 24}}
    (other / "preprocessor_config.json").write_text(json.dumps(settings))
    moved = tmp_path / "moved"
    shutil.copytree(pictures, moved)
    (moved / "train" / "sky" / "000.png").write_bytes(
        (moved / "train" / "leaf" / "000.png").read_bytes()
    )
    for number, (model, data, options, count) in enumerate(
        (
            (resnet, pictures, [], 84),
            (vit, pictures, ["--pool", "mean"], 84),
            (other, pictures, [], 84),
            (vit, moved, [], 84),
            (vit, pictures, ["--train-slice", ":40"], 0),  # of the same images
            (vit, pictures, ["--hidden", "4", "--seed", "5"], 0),
        )
    ):
        encoded.clear()
        represent(model, data, tmp_path / f"other-{number}", *cache, *options)
        assert sum(encoded) == count, (model, options)


def test_augmented_images_are_encoded_in_every_step(
    vit: Path, pictures: Path, tmp_path: Path, encoded: list[int], no_page: None
) -> None:
    options = ["--augment", "flip", "--eval-every", "4", "--cache", str(tmp_path / "cache")]
    represent(vit, pictures, tmp_path / "run", *options)
    assert encoded.count(8) == 4  # one batch a step
    assert not (tmp_path / "cache").exists()  # no probes, so nothing that stays as it is


def test_probes_beside_augmentation_use_plain_images(
    vit: Path, pictures: Path, tmp_path: Path, no_page: None
) -> None:
    plain = represent(vit, pictures, tmp_path / "plain", *PROBES)
    other = represent(vit, pictures, tmp_path / "other", "--augment", "crop", "color", *PROBES)
    ours, theirs = (read_json(run / "summary.json")["before"] for run in (other, plain))
    for name in ("knn", "softmax_regression", "alignment", "uniformity"):
        assert ours[name] == theirs[name]

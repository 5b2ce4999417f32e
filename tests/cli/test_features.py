"""`visgrpo features`: what a backbone makes of labelled images, in files of two kinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from running import read_json, refused

from visgrpo.cli import main
from visgrpo.data.read import read_split
from visgrpo.models.backbone import Backbone
from visgrpo.models.load import load_backbone

Capture = pytest.CaptureFixture[str]


def given(model: Path, data: Path, output: Path, *more: str) -> list[str]:
    usual = ["--data", str(data), "--output", str(output), "--device", "cpu"]
    return ["features", str(model), *usual, *more]


@pytest.mark.parametrize("pool", ["cls", "both"])
def test_features_are_the_backbone_s(
    pool: str, vit: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "feats.npz"
    main(given(vit, pictures, file, "--pool", pool))
    said = capsys.readouterr().out
    assert said.startswith(f"{file}: 18 images of ")
    assert said.endswith(f", {32 if pool == 'both' else 16} features each.\n")
    parts, rows = load_backbone(str(vit)), read_split(str(pictures), "test")
    pixels = torch.stack([parts.preprocess(image) for image in rows.images])
    with torch.no_grad():
        expected = Backbone(parts.model).eval().pooled(pixels, pool)  # type: ignore[arg-type]
    with np.load(file) as stored:
        assert stored.files == ["features", "labels", "classes"]
        np.testing.assert_allclose(stored["features"], expected, atol=1e-6)
        assert stored["features"].dtype == np.float32
        assert stored["labels"].tolist() == rows.labels.tolist()
        assert stored["classes"].tolist() == ["apple", "leaf", "sky"]


def test_parquet_and_the_tower_of_a_clip(start: Path, pictures: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    for name in ("a.npz", "a.parquet"):
        main(given(start, pictures, tmp_path / name, "--split", "validation"))
    table = load_dataset("parquet", data_files=str(tmp_path / "a.parquet"), split="train")
    with np.load(tmp_path / "a.npz") as stored:
        assert np.array_equal(np.asarray(table["features"], dtype=np.float32), stored["features"])
        assert list(table["label"]) == stored["labels"].tolist()
        assert list(table["class"]) == stored["classes"][stored["labels"]].tolist()


def test_refusals(vit: Path, pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "there.npz"
    file.write_bytes(b"")
    assert "is there already" in refused(capsys, given(vit, pictures, file))
    line = refused(capsys, given(vit, pictures, tmp_path / "x.csv"))
    assert "name a file that ends in .npz or .parquet" in line
    assert "Name a file" in refused(capsys, ["features", str(vit), "--data", str(pictures)])


def test_weighted_neighbours_and_a_report_beside_the_usual_measures(
    vit: Path, start: Path, pictures: Path, tmp_path: Path
) -> None:
    file = tmp_path / "found.json"
    words = ["--data", str(pictures), "--device", "cpu", "--json", str(file)]
    main(["evaluate", str(vit), *words, "--probe", "knn", "knn-weighted"])
    found = read_json(file)["model"]
    assert found["knn_weighted"].keys() == found["knn"].keys() == {"1", "5", "20"}
    assert found["knn_weighted"]["1"] == found["knn"]["1"]
    file.unlink()
    main(["evaluate", str(start), *words])
    found = read_json(file)["model"]
    report = found["classification_report"]
    assert list(report) == ["apple", "leaf", "sky", "accuracy", "macro avg", "weighted avg"]
    assert report["accuracy"] == pytest.approx(found["accuracy"])
    assert report["macro avg"]["recall"] == pytest.approx(found["balanced_accuracy"])
    assert found["macro_f1"] == report["macro avg"]["f1-score"]

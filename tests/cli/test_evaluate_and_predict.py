"""Which rows `visgrpo evaluate` takes, and images of odd shapes for `visgrpo predict`."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from running import refused

from making import CLASSES, picture, write_pictures
from visgrpo.cli import main
from visgrpo.data.read import read, read_split
from visgrpo.models.clip import ClipClassifier
from visgrpo.models.load import load_clip

OWN = {"seed": 3, "validation_fraction": 0.25, "train_slice": "6:"}


@pytest.fixture(scope="module")
def undivided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures without a validation or test split."""
    return write_pictures(tmp_path_factory.mktemp("undivided"), {"train": 20})


@pytest.fixture
def tuned(start: Path, undivided: Path, tmp_path: Path) -> Path:
    """A model that says it was tuned on those pictures, with settings of its own."""
    folder = tmp_path / "model"
    shutil.copytree(start, folder)
    info = json.loads((folder / "visgrpo.json").read_text())
    info["learned"].append({"data": str(undivided.resolve()), **OWN})
    (folder / "visgrpo.json").write_text(json.dumps(info))
    return folder


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The files of every evaluation; the model itself is left out."""
    files: list[list[str]] = []

    def logits_of(classifier: Any, dataset: Any, *_: Any, **__: Any) -> torch.Tensor:
        files.append(list(dataset.columns["file"]))
        return torch.zeros(len(dataset), len(dataset.classes))

    monkeypatch.setattr("visgrpo.tasks.clip.use.logits_of", logits_of)
    return files


def validation_files(data: Path, **division: Any) -> list[str]:
    return list(read(str(data), **division).validation.columns["file"])


@pytest.mark.parametrize(
    ("options", "division"),
    [
        ("", OWN),
        ("--seed 5", OWN | {"seed": 5}),
        ("--validation-fraction 0.4", OWN | {"validation_fraction": 0.4}),
        ("--train-slice :", OWN | {"train_slice": None}),
        ("--train-slice :30 --seed 0", OWN | {"train_slice": ":30", "seed": 0}),
    ],
)
def test_the_validation_rows_are_those_of_the_models_run(
    options: str,
    division: dict[str, Any],
    tuned: Path,
    undivided: Path,
    evaluated: list[list[str]],
) -> None:
    words = ["evaluate", str(tuned), "--data", f"{undivided}/", "--split", "validation"]
    main([*words, *options.split()])
    assert evaluated == [validation_files(undivided, **division)]
    main([*words[:-1], "validation[:4]", *options.split()])
    assert evaluated[1] == evaluated[0][:4]


def test_a_model_of_other_data_brings_no_division(
    start: Path, tuned: Path, undivided: Path, tmp_path: Path, evaluated: list[list[str]]
) -> None:
    elsewhere = shutil.copytree(undivided, tmp_path / "elsewhere")
    for model, data in [(tuned, elsewhere), (start, undivided)]:
        main(["evaluate", str(model), "--data", str(data), "--split", "validation"])
    assert evaluated == [validation_files(undivided, seed=0)] * 2


def test_training_rows_are_not_sliced_by_the_run(
    tuned: Path, undivided: Path, evaluated: list[list[str]]
) -> None:
    main(["evaluate", str(tuned), "--data", str(undivided), "--split", "train"])
    assert evaluated == [list(read_split(str(undivided), "train").columns["file"])]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--train-slice 6:", 'For training rows, write --split "train[6:]"'),
        ("--split train --train-slice 6:", 'For training rows, write --split "train[6:]"'),
        ("--split validation --train-slice six", '"six" is no slice of rows'),
        ("--seed -1", "--seed must not be negative"),
        ("--validation-fraction 1", "--validation-fraction 1.0 must lie between 0 and 1"),
    ],
)
def test_divisions_that_cannot_be(
    options: str,
    message: str,
    start: Path,
    undivided: Path,
    no_model: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["evaluate", start, "--data", undivided, *options.split()]
    assert message in refused(capsys, words)


@pytest.fixture
def uncropped(start: Path, tmp_path: Path) -> Path:
    """The start with an image processor that keeps the image's shape."""
    folder = tmp_path / "uncropped"
    shutil.copytree(start, folder)
    file = folder / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    settings |= {"do_center_crop": False, "size": {"shortest_edge": 16}}
    file.write_text(json.dumps(settings))
    return folder


def test_predict_leaves_out_images_that_the_model_cannot_take(
    uncropped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    square, wide = tmp_path / "square.png", tmp_path / "wide.png"
    picture(0, 0).save(square)
    picture(0, 0).resize((24, 16)).save(wide)
    main(["predict", str(uncropped), str(square), str(wide), "--device", "cpu"])
    said = capsys.readouterr()
    assert f'left out: Image "{wide}" is 24 × 16 pixels' in said.err
    assert "the model takes 16 × 16" in said.err
    assert str(square) in said.out
    line = refused(capsys, ["predict", uncropped, wide, "--device", "cpu"])  # none is left
    assert f'Image "{wide}" is 24 × 16 pixels' in line


def test_predict_takes_a_folder_and_writes_a_table(
    start: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, table = tmp_path / "photos", tmp_path / "answers.csv"
    shutil.copytree(pictures / "test", folder)
    (folder / "broken.png").write_bytes(b"no picture")
    words = ["predict", str(start), str(folder), "--top-k", "2", "--device", "cpu"]
    main([*words, "--table", str(table), "--json", "-"])
    answers = json.loads(capsys.readouterr().out)
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    assert len(rows) == len(answers) == 1 + len(list(pictures.glob("test/*/*.png")))
    for row, answer in zip(rows, answers, strict=True):
        assert row["image"] == answer["image"]
        if "error" in answer:
            assert row["image"] == str(folder / "broken.png")
            assert row["error"] == answer["error"]
            continue
        assert [row["classes 1"], row["classes 2"]] == answer["classes"]
        assert float(row["probabilities 2"]) == answer["probabilities"][1]
    assert "ends in .csv, .tex, .md" in refused(capsys, [*words, "--table", "answers.xls"])


def test_predict_takes_images_one_by_one(
    uncropped: Path, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images of several sizes, with and without a centre crop; against one batch by hand."""
    files = []
    for label, side in enumerate((16, 32, 7)):
        files.append(tmp_path / f"{side}.png")
        picture(label, 0).resize((side, side)).save(files[-1])
    for model in (uncropped, start):
        capsys.readouterr()
        main(["predict", str(model), *map(str, files), "--json", "-", "--device", "cpu"])
        answers = json.loads(capsys.readouterr().out)
        parts = load_clip(str(model))
        classifier = ClipClassifier(
            parts.model, parts.tokenizer, CLASSES, parts.info["templates"]
        ).eval()
        pixels = torch.stack([parts.preprocess(Image.open(file).convert("RGB")) for file in files])
        with torch.no_grad():
            expected_NK = classifier(pixels).softmax(-1)
        for answer, expected_K in zip(answers, expected_NK.tolist(), strict=True):
            found = dict(zip(answer["classes"], answer["probabilities"], strict=True))
            assert [found[name] for name in CLASSES] == pytest.approx(expected_K, abs=1e-5)

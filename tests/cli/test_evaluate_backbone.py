"""`visgrpo evaluate` on backbones, with a head and without."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from running import read_json, refused, represent, segment
from safetensors.torch import load_file, save_file
from sklearn.metrics import accuracy_score, jaccard_score
from sklearn.neighbors import KNeighborsClassifier

from making import CLASSES, IGNORED, MASK_CLASSES, write_pictures
from visgrpo.cli import main
from visgrpo.data.read import read
from visgrpo.models.backbone import Backbone
from visgrpo.models.load import load_backbone, load_representation

Capture = pytest.CaptureFixture[str]
LAST = ["--keep", "last"]
PROBES = ["--probe", "knn", "--probe", "softmax-regression"]
PROBED = {
    "knn",
    "softmax_regression",
    "softmax_regression_fit",
    "alignment",
    "uniformity",
}


@pytest.fixture(scope="module", autouse=True)
def no_pages() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("visgrpo.tasks.run.write_report", lambda path: path)
        yield


@pytest.fixture(scope="module")
def run(vit: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier, with everything measured by its own run."""
    options = ["--probe", "knn", "softmax-regression", "--shifts", "blur", "noise"]
    folder = tmp_path_factory.mktemp("classifier") / "run"
    return represent(vit, pictures, folder, *options, *LAST, "--train", "full")


@pytest.fixture(scope="module")
def mask_run(vit: Path, masks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return segment(vit, masks, tmp_path_factory.mktemp("segmenter") / "run", *LAST)


def evaluate(capsys: Capture, model: Path, data: Path | str, *options: str) -> dict[str, Any]:
    """Return the JSON; standard error is kept in it under "notes"."""
    capsys.readouterr()
    words = ["evaluate", str(model), "--data", str(data), "--json", "-", "--device", "cpu"]
    main([*words, *options])
    captured = capsys.readouterr()
    return {**json.loads(captured.out), "notes": captured.err}


def copy_with(model: Path, folder: Path, **info: Any) -> Path:
    """Copy a model folder and change what visgrpo says of it."""
    shutil.copytree(model, folder)
    told = read_json(folder / "visgrpo.json") | info
    (folder / "visgrpo.json").write_text(json.dumps(told))
    return folder


# Heads for whole images


def test_the_head_is_measured_as_by_its_run(run: Path, pictures: Path, capsys: Capture) -> None:
    results = evaluate(capsys, run / "model", pictures)
    after = read_json(run / "summary.json")["after"]
    assert results.keys() == {"model", "notes"}
    assert results["notes"] == ""
    of_evaluate = {"macro_f1", "classification_report", "weakest_images"}
    assert results["model"].keys() == (after.keys() - PROBED - {"kl"}) | of_evaluate
    for name in ("accuracy", "nll", "ece", "per_class_accuracy"):
        assert results["model"][name] == pytest.approx(after[name], abs=1e-6)
    assert results["model"]["confusion"] == after["confusion"]


def test_features_and_shifts_are_measured_as_by_its_run(
    run: Path, vit: Path, pictures: Path, capsys: Capture
) -> None:
    options = [*PROBES, "--shifts", "blur", "noise", "--start", str(vit)]
    results = evaluate(capsys, run / "model", pictures, *options)
    summary = read_json(run / "summary.json")
    for row, part in (("start", "before"), ("model", "after")):
        for name in PROBED:
            assert results[row][name] == pytest.approx(summary[part][name], abs=1e-6)
    assert set(results["model"]) >= {"accuracy", "shifts"}
    assert results["model"]["shifts"].keys() == {"blur", "noise"}
    for name, shifted in results["model"]["shifts"].items():
        assert shifted["accuracy"] == summary["shifts"][name]["after"]["accuracy"]
    # The start has no head: its features are asked.
    assert "accuracy" not in results["start"]
    assert results["start"]["shifts"]["blur"].keys() == {"knn", "alignment", "uniformity"}


def test_probes_learn_from_the_rows_of_the_models_own_run(
    vit: Path, tmp_path: Path, capsys: Capture
) -> None:
    data = write_pictures(tmp_path / "undivided", {"train": 20})
    division = ["--seed", "3", "--validation-fraction", "0.25", "--train-slice", "6:"]
    options = [*division, "--probe", "knn", "--shifts", "noise"]
    represent(vit, data, tmp_path / "run", *LAST, *options)
    summary = read_json(tmp_path / "run" / "summary.json")
    model = tmp_path / "run" / "model"
    found = evaluate(capsys, model, f"{data}/", "--probe", "knn", "--shifts", "noise")["model"]
    assert found["uniformity"] == pytest.approx(summary["after"]["uniformity"], abs=1e-6)
    assert found["knn"] == summary["after"]["knn"]
    assert found["shifts"]["noise"]["accuracy"] == summary["shifts"]["noise"]["after"]["accuracy"]
    elsewhere = shutil.copytree(data, tmp_path / "elsewhere")
    rows = ["--seed", "3", "--validation-fraction", "0.25", "--train-slice", "6:"]
    same = evaluate(capsys, model, elsewhere, "--probe", "knn", *rows)["model"]
    assert same["knn"] == found["knn"]


def test_kl_is_to_the_starts_answers(
    run: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    model = run / "model"
    start = shutil.copytree(model, tmp_path / "start")
    tensors = load_file(start / "head.safetensors")
    tensors["output.bias"] += torch.tensor([0.5, 0.0, -0.5])
    save_file(tensors, start / "head.safetensors")
    results = evaluate(capsys, model, pictures, "--start", str(start))
    images = read(str(pictures)).test.images
    log_p, log_q = (log_probabilities(folder, images) for folder in (model, start))
    kl = (log_p.exp() * (log_p - log_q)).sum(dim=1).mean().item()
    assert kl > 0
    assert results["model"]["kl"] == pytest.approx(kl, rel=1e-4)
    assert results["start"]["kl"] == 0


def log_probabilities(folder: Path, images: Any) -> torch.Tensor:
    model, parts = load_representation(folder)
    pixels = torch.stack([parts.preprocess(image) for image in images])
    with torch.no_grad():
        return model(pixels).double().log_softmax(dim=-1)


def test_classes_may_stand_in_another_order(
    run: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    order = [2, 0, 1]
    other = copy_with(run / "model", tmp_path / "other", classes=[CLASSES[k] for k in order])
    tensors = load_file(other / "head.safetensors")
    for name in ("output.weight", "output.bias"):
        tensors[name] = tensors[name][order].contiguous()
    save_file(tensors, other / "head.safetensors")
    expected = evaluate(capsys, run / "model", pictures)
    assert evaluate(capsys, other, pictures) == expected


@pytest.mark.parametrize("options", [[], ["--probe", "knn"]])
def test_a_head_of_other_classes_is_not_asked(
    options: list[str], run: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    renamed = shutil.copytree(pictures, tmp_path / "renamed")
    for folder in renamed.glob("*/sky"):
        folder.rename(folder.with_name("sea"))
    results = evaluate(capsys, run / "model", renamed, *options)
    assert results["notes"] == (
        f"note: {renamed} has other classes than the head of {run}/model: only its features are "
        "measured.\n"
    )
    left_out = {name for name in PROBED if options and name.startswith("softmax")}
    assert results["model"].keys() == PROBED - left_out


def test_the_table_tells_every_row(run: Path, vit: Path, pictures: Path, capsys: Capture) -> None:
    words = ["evaluate", str(run / "model"), "--data", str(pictures), "--shifts", "grey"]
    main([*words, "--start", str(vit), "--probe", "knn"])
    printed = capsys.readouterr().out
    for row in ("start", "start, grey", "model", "model, grey"):
        assert f"│ {row} " in printed
    assert "Weakest classes: " in printed


# Backbones alone


@pytest.mark.parametrize("pool", ["cls", "mean", "both"])
def test_neighbours_of_a_backbone_without_a_head(
    pool: str, vit: Path, pictures: Path, capsys: Capture
) -> None:
    options = [] if pool == "cls" else ["--pool", pool]
    results = evaluate(capsys, vit, pictures, "--probe", "knn", *options)["model"]
    assert results.keys() == {"knn", "alignment", "uniformity"}
    parts, splits = load_backbone(str(vit)), read(str(pictures))
    backbone = Backbone(parts.model).eval()

    def features(images: Any) -> np.ndarray:
        pixels = torch.stack([parts.preprocess(image) for image in images])
        with torch.no_grad():
            return backbone.pooled(pixels, pool).numpy()  # type: ignore[arg-type]

    nearest = KNeighborsClassifier(n_neighbors=1, metric="cosine")
    nearest.fit(features(splits.train.images), splits.train.labels)
    expected = nearest.score(features(splits.test.images), splits.test.labels)
    assert results["knn"]["1"] == pytest.approx(expected)


def test_a_backbone_without_a_head_is_probed_unasked(
    resnet: Path, pictures: Path, capsys: Capture
) -> None:
    results = evaluate(capsys, resnet, pictures, "--split", "test[:12]", "--shifts", "jpeg")
    assert results["model"].keys() == PROBED | {"shifts"}
    assert results["model"]["shifts"]["jpeg"]["knn"].keys() == {"1", "5", "20"}
    assert results["notes"] == ""


# Heads for masks


def test_masks_against_scikit_learn(mask_run: Path, masks: Path, capsys: Capture) -> None:
    model, parts = load_representation(mask_run / "model")
    truth, answers = [], []
    for file in sorted((masks / "test" / "images").iterdir()):
        pixels = parts.preprocess.for_dense()(Image.open(file))
        with torch.no_grad():
            logits_NHWK = model.upsample(model(pixels[None]), (16, 16))
        ids_HW = np.array(Image.open(masks / "test" / "masks" / file.name))
        truth.append(ids_HW[ids_HW != IGNORED])
        answers.append(logits_NHWK[0].argmax(-1).numpy()[ids_HW != IGNORED])
    iou_K = jaccard_score(np.hstack(truth), np.hstack(answers), average=None, zero_division=0)
    results = evaluate(capsys, mask_run / "model", masks)["model"]
    assert list(results["per_class_iou"]) == list(MASK_CLASSES)
    assert list(results["per_class_iou"].values()) == pytest.approx(iou_K)
    expected = accuracy_score(np.hstack(truth), np.hstack(answers))
    assert results["pixel_accuracy"] == pytest.approx(expected)


def test_a_segmenter_is_compared_with_its_start(
    mask_run: Path, vit: Path, masks: Path, tmp_path: Path, capsys: Capture
) -> None:
    again = segment(mask_run / "model", masks, tmp_path / "again", *LAST)
    results = evaluate(capsys, again / "model", masks, "--start", str(mask_run / "model"))
    summary = read_json(again / "summary.json")
    for row, part in (("start", "before"), ("model", "after")):
        assert results[row]["miou"] == pytest.approx(summary[part]["miou"], abs=1e-6)
    main(["evaluate", str(again / "model"), "--data", str(masks)])
    printed = capsys.readouterr().out
    assert "mIoU" in printed
    assert "Weakest classes: " in printed


def test_the_models_image_size_is_taken(
    vit: Path, masks: Path, tmp_path: Path, capsys: Capture
) -> None:
    model = segment(vit, masks, tmp_path / "run", "--image-size", "8", "12") / "model"
    pixels = evaluate(capsys, model, masks)["model"]["pixels"]
    assert 9 * 8 * 10 <= pixels <= 9 * 8 * 12  # but the column without labels
    assert evaluate(capsys, model, masks, "--image-size", "16", "16")["model"]["pixels"] == 2160


def test_mask_rows_are_divided_as_in_the_models_run(
    mask_run: Path, masks: Path, tmp_path: Path, capsys: Capture
) -> None:
    undivided = tmp_path / "undivided"
    shutil.copytree(masks / "train", undivided)
    shutil.copy(masks / "classes.txt", undivided)
    options = ["--seed", "3", "--validation-fraction", "0.25", "--train-slice", ":12"]
    own = {"seed": 3, "validation_fraction": 0.25, "train_slice": ":12"}
    learned = [{"data": str(undivided.resolve()), **own}]
    model = copy_with(mask_run / "model", tmp_path / "model", learned=learned)
    rows = ["--split", "validation"]
    found = evaluate(capsys, model, undivided, *rows)["model"]
    assert found["pixels"] == 3 * 16 * 15
    assert found == evaluate(capsys, mask_run / "model", undivided, *rows, *options)["model"]
    one = evaluate(capsys, model, undivided, "--split", "validation[:1]")["model"]
    assert one["pixels"] == 16 * 15


# What does not go together


REFUSED = {
    "templates, head": ("classifier", "--templates a_{}", "it has no text tower. It is for a CLIP"),
    "templates, no head": ("backbone", "--templates a_{}", "a backbone without a head: it has no"),
    "pool, head": ("classifier", "--pool mean", "--pool does not go with"),
    "pool, masks": ("segmenter", "--pool mean", "It is for a backbone without a head."),
    "alpha, head": ("classifier", "--alpha 0.5 --start m", "a head begins at random"),
    "alpha, masks": ("segmenter", "--alpha 0.5 --start m", "a head begins at random"),
    "masks, head": ("classifier", "--mask-column m", "It is for a backbone with a segmentation"),
    "labels, masks": ("segmenter", "--label-column m", "--label-column does not go with"),
    "probe, masks": ("segmenter", "--probe knn", "--probe does not go with"),
    "shifts, masks": ("segmenter", "--shifts blur", "--shifts does not go with"),
    "batch, masks": ("segmenter", "--batch-size 8", "fit into fixed memory"),
    "masks, clip": ("clip", "--mask-column m", "a CLIP or SigLIP model. It is for a backbone with"),
    "probe, clip": ("clip", "--probe knn", "--probe does not go with"),
    "size, clip": ("clip", "--image-size 8 8", "--image-size does not go with"),
    "no probe": ("backbone", "--probe none", "softmax-regression"),
    "unknown shift": ("backbone", "--shifts blurr", "--shifts"),
    "no size": ("segmenter", "--image-size 0 8", "--image-size takes height and width"),
    "probed train rows": ("backbone", "--split train", "give --split test, perhaps sliced"),
    "probed validation": ("classifier", "--probe knn --split validation", "not validation."),
    "sliced for nothing": ("classifier", "--train-slice :9", "--split validation or --probe"),
    "ignored class": (
        "segmenter",
        "--ignore-index 1",
        "--ignore-index 1 is also the id",
    ),
    "ignored nothing": ("segmenter", "--ignore-index 254", "its mask has class id 255"),
    "no class names": ("segmenter", "--classes-file no.txt", "there is no no.txt"),
    "start without a head": (
        "segmenter",
        "--start BACKBONE",
        "give a backbone with a segmentation head",
    ),
    "start of another kind": (
        "segmenter",
        "--start CLASSIFIER",
        "give a backbone with a segmentation head",
    ),
    "start that is not there": ("classifier", "--start ./nothing", "./nothing"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_do_not_go_with_the_model(
    name: str,
    run: Path,
    mask_run: Path,
    vit: Path,
    start: Path,
    pictures: Path,
    masks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    folders = {
        "classifier": run / "model",
        "segmenter": mask_run / "model",
        "backbone": vit,
        "clip": start,
    }
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    shutil.copy(vit / "config.json", tmp_path / "m")
    kind, options, message = REFUSED[name]
    words = [str(folders.get(word.lower(), word)) for word in options.split()]
    data = masks if kind == "segmenter" else pictures
    assert message in refused(capsys, ["evaluate", folders[kind], "--data", data, *words])


def test_masks_of_other_classes_are_refused(
    mask_run: Path, masks: Path, tmp_path: Path, capsys: Capture
) -> None:
    names = tmp_path / "names.txt"
    words = ["evaluate", mask_run / "model", "--data", masks, "--classes-file", names]
    names.write_text("background\nleaf\napple\n")
    line = refused(capsys, words)
    assert 'Class 1 is "apple" to the head of' in line
    assert 'and "leaf" in' in line
    names.write_text("background\napple\nleaf\nsky\n")
    assert 'Class 3 is "nothing" to the head of' in refused(capsys, words)

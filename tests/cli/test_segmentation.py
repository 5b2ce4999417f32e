"""`visgrpo segmentation` end to end: a small random backbone on small pictures with masks."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from running import (
    head,
    metric_lines,
    read_json,
    read_lines,
    same_tuned_run,
    segment,
    training_lines,
    weights,
)
from safetensors.torch import load_file
from sklearn.metrics import confusion_matrix

from making import IGNORED, MASK_CLASSES, MASKS, masked_picture, write_masks
from visgrpo.errors import UserError
from visgrpo.models.backbone import Backbone, Segmenter
from visgrpo.models.load import load_representation
from visgrpo.tasks.backbone.options import SegmentationConfig
from visgrpo.tasks.backbone.segmentation import rewards_of

LAST = ["--keep", "last"]
MEASURES = {"miou", "pixel_accuracy", "mean_class_accuracy", "per_class_iou"}
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(vit: Path, masks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run with its page, long enough to answer with more than one class."""
    options = [*LAST, "--steps", "12", "--learning-rate", "0.02", "--eval-every", "4"]
    return segment(vit, masks, tmp_path_factory.mktemp("whole") / "run", *options)


def ious_K(truth: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """IoU of every class over labelled pixels; NaN where a class is neither there nor answered."""
    labelled = truth != IGNORED
    counts_KK = confusion_matrix(
        truth[labelled], answers[labelled], labels=range(len(MASK_CLASSES))
    )
    union_K = counts_KK.sum(axis=0) + counts_KK.sum(axis=1) - counts_KK.diagonal()
    return np.where(union_K > 0, counts_KK.diagonal() / np.maximum(union_K, 1), np.nan)


# What a run leaves


def test_everything_is_in_the_run_directory(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    files = {"config.yaml", "metrics.jsonl", "segments.jsonl", "palette.json", "summary.json"}
    assert names == files | {"report.html", "checkpoints", "samples", "model", "plots"}
    summary = read_json(run / "summary.json")
    assert (summary["recipe"], summary["steps"]) == ("segmentation", 12)
    assert summary["data"]["classes"] == 3
    for part in ("before", "after"):
        assert set(summary[part]) >= MEASURES
        assert list(summary[part]["per_class_iou"]) == list(MASK_CLASSES)
    assert summary["after"]["miou"] > summary["before"]["miou"]


def test_metrics(run: Path) -> None:
    lines = metric_lines(run)
    assert all(line["epoch"] == round(line["step"] / 3, 4) for line in lines)
    evaluated = [line for line in lines if "eval/miou" in line]
    assert [line["step"] for line in evaluated] == [0, 4, 8, 12]
    assert {"eval/pixel_accuracy", "eval/mean_class_accuracy"} <= set(evaluated[0])
    assert {"reward", "rewards/hard/mean", "accuracy"} <= set(training_lines(run)[0])


def test_the_model_reloads_and_gives_the_measures_of_the_summary(
    run: Path, vit: Path, masks: Path
) -> None:
    from transformers import AutoModel

    segmenter, parts = load_representation(run / "model")
    assert isinstance(segmenter, Segmenter)
    folder = masks / "test"
    images = [Image.open(file) for file in sorted((folder / "images").iterdir())]
    truth = np.stack([np.array(Image.open(f)) for f in sorted((folder / "masks").iterdir())])
    pixels = torch.stack([parts.preprocess(image) for image in images])
    with torch.no_grad():
        logits_NHWK = segmenter.upsample(segmenter(pixels), (16, 16))
        tokens = AutoModel.from_pretrained(run / "model").eval()(pixels).last_hidden_state
        features_NHWD = segmenter.features(pixels)
    torch.testing.assert_close(features_NHWD.flatten(1, 2), tokens[:, 1:], atol=1e-5, rtol=1e-5)
    iou_K = ious_K(truth, logits_NHWK.argmax(dim=-1).numpy())
    after = read_json(run / "summary.json")["after"]
    assert list(after["per_class_iou"].values()) == pytest.approx(iou_K.tolist(), abs=1e-6)
    assert after["miou"] == pytest.approx(iou_K.mean(), abs=1e-6)
    nll = torch.nn.functional.cross_entropy(
        logits_NHWK.permute(0, 3, 1, 2), torch.from_numpy(truth).long(), ignore_index=IGNORED
    )
    assert after["nll"] == pytest.approx(nll.item(), abs=1e-5)
    assert weights(run) == (vit / "model.safetensors").read_bytes()
    info = read_json(run / "model" / "visgrpo.json")
    assert (info["task"], info["classes"]) == ("segmentation", list(MASK_CLASSES))


def test_the_pictures_show_what_the_lines_say(run: Path) -> None:
    palette = read_json(run / "palette.json")
    assert list(palette) == list(MASK_CLASSES)
    colours = {tuple(bytes.fromhex(colour[1:])): k for k, colour in enumerate(palette.values())}
    assert len(colours) == len(MASK_CLASSES)

    def ids(name: str) -> np.ndarray:
        pixels = np.array(Image.open(run / name).convert("RGB"))
        return np.array([[colours.get(tuple(p), IGNORED) for p in row] for row in pixels.tolist()])

    lines = read_lines(run / "segments.jsonl")
    assert [line["index"] for line in lines] == [0, 1, 2, 3, 5, 6, 7, 8]  # 8 of 9, evenly
    first_test = MASKS["train"] + MASKS["val"] + 1
    for line in lines:
        image, truth = masked_picture(1 + line["index"] % 2, first_test + line["index"])
        assert np.array_equal(np.array(Image.open(run / line["image"])), np.array(image))
        assert np.array_equal(ids(line["truth"]), truth)
        for when in ("before", "after"):
            iou_K = ious_K(truth, ids(line[when]))
            assert line["iou"][when] == pytest.approx(np.nanmean(iou_K), abs=1e-6)


def test_shapes_run_out_of_the_box(vit: Path, tmp_path: Path, no_page: None) -> None:
    run = segment(vit, "shapes", tmp_path / "run", "--train-slice", ":8", "--steps", "1")
    assert read_json(run / "summary.json")["data"]["train"] == 8
    assert "background" in read_json(run / "summary.json")["after"]["per_class_iou"]


# Every option does something, and only what it says

WAYS = {
    "exact": "--estimator exact",
    "pixels": "--decide-at pixel",
    "accuracy alone": "--reward hard",
    "spread": "--reward hard spread",
    "no division": "--scale none",
    "weights": "--reward-weights 0.5 1",
    "equal background": "--background-reward 1",
    "other background": "--background leaf",
    "entropy": "--entropy-weight 0.5",
    "linear": "--hidden 0",
    "seed": "--seed 1",
    "passes": "--inner-passes 2",
    "minibatches": "--minibatches 2",
    "augmented": "--augment crop flip color",
    "larger": "--image-size 24 20",
    "supervised": "--method supervised",
    "last block": "--train last-blocks",
    "all": "--train full",
    "adapters": "--train lora --lora-rank 2",
}


@pytest.fixture(scope="module")
def ways(vit: Path, masks: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("ways")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("visgrpo.tasks.run.write_report", lambda path: path)
        return {"": segment(vit, masks, folder / "plain", *LAST)} | {
            name: segment(vit, masks, folder / name, *LAST, *way.split())
            for name, way in WAYS.items()
        }


def test_every_option_changes_the_head(ways: dict[str, Path]) -> None:
    assert len({head(place) for place in ways.values()}) == len(WAYS) + 1


def test_only_what_should_train_does(ways: dict[str, Path]) -> None:
    tuned = {name for name, run in ways.items() if weights(run) != weights(ways[""])}
    assert tuned == {"last block", "all", "adapters"}


def test_the_background_is_the_first_class_by_its_name(
    ways: dict[str, Path], vit: Path, masks: Path, tmp_path: Path, no_page: None
) -> None:
    named = segment(vit, masks, tmp_path / "named", *LAST, "--background", "background")
    assert same_tuned_run(named, ways[""])
    file = tmp_path / "names.txt"
    file.write_text("wall\napple\nleaf\n")
    other = segment(vit, masks, tmp_path / "wall", *LAST, "--classes-file", str(file))
    assert head(other) == head(ways["equal background"])


def test_the_background_earns_half(ways: dict[str, Path]) -> None:
    half, whole = (training_lines(ways[name])[0] for name in ("", "equal background"))
    assert half["rewards/hard/mean"] < whole["rewards/hard/mean"]
    assert half["rewards/uniformity/mean"] == pytest.approx(whole["rewards/uniformity/mean"])


def test_no_pictures(vit: Path, masks: Path, tmp_path: Path, no_page: None) -> None:
    run = segment(vit, masks, tmp_path / "run", "--pictures", "0", "--steps", "1")
    assert not {"segments.jsonl", "palette.json", "samples"} & {p.name for p in run.iterdir()}


def test_pictures_of_resized_images(ways: dict[str, Path]) -> None:
    for line in read_lines(ways["larger"] / "segments.jsonl"):
        for what in ("image", "truth", "before", "after"):
            assert np.array(Image.open(ways["larger"] / line[what])).shape == (24, 20, 3)


def test_a_convnet_segments_too(
    resnet: Path, masks: Path, tmp_path: Path, no_page: None, capsys: Capture
) -> None:
    options = ["--train", "full", "--augment", "flip", *LAST, "--image-size", "20", "30"]
    run = segment(resnet, masks, tmp_path / "run", *options)
    assert weights(run) != (resnet / "model.safetensors").read_bytes()
    note = "note: images of 20 × 30 pixels are padded to 24 × 32"
    assert note in capsys.readouterr().err


def test_a_class_that_is_nowhere(
    vit: Path, masks: Path, tmp_path: Path, no_page: None, capsys: Capture
) -> None:
    data = tmp_path / "data"
    shutil.copytree(masks, data)
    (data / "classes.txt").write_text("background\napple\nleaf\nghost\n")
    options = [*LAST, "--steps", "20", "--learning-rate", "0.05"]
    run = segment(vit, data, tmp_path / "run", *options)
    assert "1 of the 4 classes is on no pixel" in capsys.readouterr().err
    after = read_json(run / "summary.json")["after"]
    assert after["per_class_iou"]["ghost"] is None
    there = [iou for iou in after["per_class_iou"].values() if iou is not None]
    assert after["miou"] == pytest.approx(np.mean(there))


# Splitting the work changes nothing

SPLIT = {
    "plain": "",
    "pixels": "--decide-at pixel",
    "supervised": "--method supervised",
    "minibatches, stale": "--minibatches 2 --inner-passes 2 --refresh-every epoch",
    "full": "--train full",
}


@pytest.mark.parametrize("name", SPLIT)
def test_accumulation_changes_nothing(name: str, vit: Path, tmp_path: Path, no_page: None) -> None:
    data = write_masks(tmp_path / "data")
    for number, file in enumerate(sorted((data / "train" / "masks").iterdir())):
        ids_HW = np.array(Image.open(file))
        ids_HW[: number % 12] = IGNORED  # images have different numbers of labelled pixels
        Image.fromarray(ids_HW).save(file)
    options = [*LAST, *SPLIT[name].split()]
    whole = segment(vit, data, tmp_path / "1", *options)
    split = segment(vit, data, tmp_path / "4", *options, "--accumulation", "4")
    ours, theirs = (load_file(place / "model" / "head.safetensors") for place in (split, whole))
    for tensor in theirs:
        torch.testing.assert_close(ours[tensor], theirs[tensor], atol=1e-4, rtol=1e-3)
    for our, their in zip(training_lines(split), training_lines(whole), strict=True):
        assert our["loss"] == pytest.approx(their["loss"], abs=1e-5)
        assert our["grad_norm"] == pytest.approx(their["grad_norm"], rel=1e-3)


# Features that were computed once


def test_a_frozen_backbone_is_asked_once(
    vit: Path,
    masks: Path,
    tmp_path: Path,
    no_page: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []
    forward = Backbone.forward

    def counted(self: Backbone, pixels: torch.Tensor) -> Any:
        calls.append(len(pixels))
        return forward(self, pixels)

    monkeypatch.setattr(Backbone, "forward", counted)
    cache = ["--cache", str(tmp_path / "cache"), *LAST]
    images = sum(MASKS.values())
    first = segment(vit, masks, tmp_path / "1", *cache)
    assert sum(calls) == images
    calls.clear()
    assert same_tuned_run(segment(vit, masks, tmp_path / "2", *cache), first)
    assert not calls
    segment(vit, masks, tmp_path / "3", *cache, "--image-size", "24", "24")
    assert sum(calls) == images


def test_other_masks_of_the_same_images_are_seen(
    vit: Path, masks: Path, tmp_path: Path, no_page: None
) -> None:
    """Masks are no part of what is cached, whatever names the features."""
    data = tmp_path / "data"
    shutil.copytree(masks, data)
    cache = ["--cache", str(tmp_path / "cache"), *LAST]
    first = segment(vit, data, tmp_path / "1", *cache)
    for file in (data / "train" / "masks").iterdir():
        ids_HW = np.array(Image.open(file))
        Image.fromarray(np.where(ids_HW == 1, 2, ids_HW).astype(np.uint8)).save(file)
    assert head(segment(vit, data, tmp_path / "2", *cache)) != head(first)


# What else can be asked for


def test_the_supervised_baseline_is_the_supervised_run(
    vit: Path, masks: Path, tmp_path: Path, ways: dict[str, Path], no_page: None
) -> None:
    run = segment(vit, masks, tmp_path / "run", *LAST, "--baseline")
    assert same_tuned_run(run / "baseline", ways["supervised"])
    assert same_tuned_run(run, ways[""])
    summary = read_json(run / "summary.json")
    assert summary["baseline"]["after"] == read_json(run / "baseline" / "summary.json")["after"]


MINE = """
def right(masks, *, label, **_):
    return (masks == label[:, None]).float().flatten(2).mean(2)
right.scope = "mask"
"""


@pytest.mark.parametrize("decide_at", ["patch", "pixel"])
def test_whole_masks_earn_what_a_function_pays(
    decide_at: str, vit: Path, masks: Path, tmp_path: Path, no_page: None, capsys: Capture
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    mine = ["--reward", f"{tmp_path / 'mine.py'}:right", "--decide-at", decide_at]
    drawn = [*mine, "--estimator", "sampled", "--group-size", "6", "--select", "reward"]
    more = ["--steps", "20", "--learning-rate", "0.02", "--eval-every", "10", "--inner-passes", "2"]
    run = segment(vit, masks, tmp_path / "run", *drawn, *more)
    assert "each of 6 whole masks earns one number" in capsys.readouterr().err
    summary = read_json(run / "summary.json")
    for measures in (summary["before"], summary["after"]):
        pixels = np.array(Image.open(masks / "test" / "masks" / "000.png")).size
        right = measures["pixel_accuracy"] * measures["pixels"] / pixels / measures["examples"]
        assert measures["reward"] == pytest.approx(right, abs=1e-6)
    assert summary["after"]["reward"] > summary["before"]["reward"] + 0.1
    assert {"rewards/right/mean", "reward_std", "entropy"} <= training_lines(run)[-1].keys()
    with pytest.raises(SystemExit):
        segment(vit, masks, tmp_path / "other", *mine)
    assert (
        'Reward "right" asks for whole masks or sets, and groups here are'
        in capsys.readouterr().err
    )
    with pytest.raises(SystemExit):
        segment(vit, masks, tmp_path / "other", "--estimator", "sampled")
    assert '"hard" is of single labels, and whole masks or sets' in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_finished_run_goes_on_with_its_head(
    run: Path, masks: Path, tmp_path: Path, no_page: None, capsys: Capture
) -> None:
    more = segment(run / "model", masks, tmp_path / "more", "--steps", "1")
    assert f"The head of {run / 'model'} is kept" in capsys.readouterr().err
    before = read_json(more / "summary.json")["before"]
    assert before == read_json(run / "summary.json")["after"]


def test_a_bad_pair_can_be_left_out(
    vit: Path, masks: Path, tmp_path: Path, no_page: None, capsys: Capture
) -> None:
    data = tmp_path / "data"
    shutil.copytree(masks, data)
    (data / "train" / "images" / "003.png").write_text("not an image")
    run = segment(vit, data, tmp_path / "run", "--skip-bad-images", "--steps", "1")
    assert read_json(run / "summary.json")["data"]["train"] == MASKS["train"] - 1
    messages = capsys.readouterr().err
    assert "data/train: left out 1 unusable row(s):" in messages
    assert "003.png" in messages


def test_a_background_reward_needs_a_background() -> None:
    config = SegmentationConfig(background_reward=0.25)
    with pytest.raises(UserError, match=r'first class is "sky", not background or null; name'):
        rewards_of(config, ("sky", "leaf"))
    named = rewards_of(replace(config, background="leaf"), ("sky", "leaf"))
    truth, classes = torch.tensor([0, 1]), torch.arange(2).expand(2, -1)
    p_NK = torch.full((2, 2), 0.5)
    rewards_NGR = named(classes, label=truth, probabilities=p_NK, classes=("sky", "leaf"))
    assert rewards_NGR[..., 0].tolist() == [[1, 0], [0, 0.25]]

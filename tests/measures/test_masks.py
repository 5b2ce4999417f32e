"""Segmentation measures against scikit-learn, torchmetrics and values by hand; and the palette."""

from __future__ import annotations

import json

import numpy as np
import pytest
import sklearn.metrics as skm
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from visgrpo.errors import UserError
from visgrpo.measures.masks import (
    add_to_confusion,
    class_colours,
    colour_mask,
    hex_palette,
    segmentation_measures,
)

K = 6
CLASSES = tuple(f"class {k}" for k in range(K))
IGNORE = 255


def confusion_of(answers: torch.Tensor, truth: torch.Tensor, classes: int = K) -> torch.Tensor:
    confusion_KK = torch.zeros(classes, classes, dtype=torch.int64)
    add_to_confusion(confusion_KK, answers, truth, IGNORE)
    return confusion_KK


def example(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks of 4 images: class 4 is answered but never true, class 5 is neither."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(K - 2, (4, 9, 7), generator=generator)
    noise = torch.randint(K - 1, (4, 9, 7), generator=generator)
    answers = torch.where(torch.rand(truth.shape, generator=generator) < 0.6, truth, noise)
    truth[torch.rand(truth.shape, generator=generator) < 0.2] = IGNORE
    return answers, truth


def test_by_hand() -> None:
    """IoU: a 2/4, b 1/3, c 0/1 (answered, never true), d none."""
    truth = torch.tensor([[0, 0, 0], [1, 1, 0], [IGNORE, IGNORE, IGNORE]])
    answers = torch.tensor([[0, 0, 2], [1, 0, 1], [0, 1, 3]])
    truth[1, 2] = IGNORE
    confusion_KK = confusion_of(answers, truth, classes=4)
    assert confusion_KK.tolist() == [[2, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    measures = segmentation_measures(confusion_KK, ("a", "b", "c", "d"))
    assert measures["per_class_iou"] == {"a": 0.5, "b": 0.5, "c": 0.0, "d": None}
    assert measures["per_class_pixels"] == {"a": 3, "b": 2, "c": 0, "d": 0}
    assert measures["miou"] == pytest.approx(1 / 3)
    assert measures["pixel_accuracy"] == pytest.approx(3 / 5)
    assert measures["mean_class_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert measures["pixels"] == 5


def test_three_by_three_counts() -> None:
    confusion_KK = torch.tensor([[50, 5, 5], [10, 20, 0], [0, 5, 5]])
    measures = segmentation_measures(confusion_KK, ("sky", "sea", "sail"))
    assert measures["per_class_iou"] == pytest.approx({"sky": 5 / 7, "sea": 0.5, "sail": 1 / 3})
    assert measures["miou"] == pytest.approx((5 / 7 + 1 / 2 + 1 / 3) / 3)
    assert measures["pixel_accuracy"] == pytest.approx(0.75)
    assert measures["mean_class_accuracy"] == pytest.approx((5 / 6 + 2 / 3 + 1 / 2) / 3)
    assert json.loads(json.dumps(measures, allow_nan=False)) == measures


def test_against_sklearn() -> None:
    answers, truth = example()
    labelled = truth != IGNORE
    flat_truth, flat_answers = truth[labelled].numpy(), answers[labelled].numpy()
    confusion_KK = confusion_of(answers, truth)
    theirs = skm.confusion_matrix(flat_truth, flat_answers, labels=np.arange(K))
    assert confusion_KK.tolist() == theirs.tolist()
    measures = segmentation_measures(confusion_KK, CLASSES)
    iou = list(measures["per_class_iou"].values())
    # Class 5 is in neither, where scikit-learn would write 0.
    assert iou[5] is None
    seen = np.arange(5)
    expected = skm.jaccard_score(flat_truth, flat_answers, labels=seen, average=None)
    assert iou[:5] == pytest.approx(expected.tolist())
    assert iou[4] == 0
    assert measures["miou"] == pytest.approx(expected.mean())
    assert measures["pixel_accuracy"] == pytest.approx(skm.accuracy_score(flat_truth, flat_answers))
    recalls = skm.recall_score(flat_truth, flat_answers, labels=np.arange(4), average=None)
    assert measures["mean_class_accuracy"] == pytest.approx(recalls.mean())


def test_against_torchmetrics() -> None:
    """torchmetrics also leaves a class of empty union out of its macro mean; alone it writes 0."""
    answers, truth = example(1)
    measures = segmentation_measures(confusion_of(answers, truth), CLASSES)
    per_class = MulticlassJaccardIndex(K, average="none", ignore_index=IGNORE)(answers, truth)
    ours = [0.0 if iou is None else iou for iou in measures["per_class_iou"].values()]
    assert ours == pytest.approx(per_class.tolist())
    assert measures["per_class_iou"]["class 5"] is None
    mean = MulticlassJaccardIndex(K, average="macro", ignore_index=IGNORE)(answers, truth)
    assert measures["miou"] == pytest.approx(mean.item())


def test_counts_add_up_over_batches() -> None:
    answers, truth = example(2)
    confusion_KK = torch.zeros(K, K, dtype=torch.int64)
    for row in range(len(truth)):
        add_to_confusion(confusion_KK, answers[row], truth[row], IGNORE)
    assert torch.equal(confusion_KK, confusion_of(answers, truth))


def test_an_ignore_index_that_is_a_class_leaves_that_class_out() -> None:
    confusion_KK = torch.zeros(2, 2, dtype=torch.int64)
    add_to_confusion(confusion_KK, torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 0)
    assert confusion_KK.tolist() == [[0, 0], [0, 1]]


def test_masks_of_small_integers() -> None:
    answers, truth = example(3)
    small = confusion_of(answers.to(torch.uint8), truth.to(torch.uint8))
    assert torch.equal(small, confusion_of(answers, truth))


def test_mistakes() -> None:
    answers, truth = example()
    with pytest.raises(UserError, match=r"Answers \(4, 9\) and truth \(4, 9, 7\) differ in shape"):
        confusion_of(answers[..., 0], truth)
    with pytest.raises(UserError, match=r"truth has class id 6; ids go from 0 to 5"):
        confusion_of(answers, truth.clamp(max=K))
    with pytest.raises(UserError, match=r"answers has class id -1"):
        confusion_of(answers - 1, truth)
    with pytest.raises(UserError, match="no pixel has a label"):
        segmentation_measures(confusion_of(answers, torch.full_like(truth, IGNORE)), CLASSES)
    confusion_KK = confusion_of(answers, truth)
    with pytest.raises(UserError, match="5 class names for a confusion matrix of 6 classes"):
        segmentation_measures(confusion_KK, CLASSES[1:])
    with pytest.raises(UserError, match="Two classes have the same name"):
        segmentation_measures(confusion_KK, (*CLASSES[1:], "class 1"))


@pytest.mark.parametrize(("count", "apart"), [(2, 100), (21, 45), (60, 20), (256, 9)])
def test_colours_are_distinct_and_stay_as_classes_are_added(count: int, apart: float) -> None:
    colours = class_colours(count)
    assert (colours.shape, colours.dtype) == ((count, 3), np.uint8)
    white = np.full((1, 3), 255)
    points = np.vstack([colours, white]).astype(float)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    assert distances[~np.eye(count + 1, dtype=bool)].min() > apart
    assert colours.tolist() == class_colours(300)[:count].tolist()
    assert colours[0].max() - colours[0].min() == 0
    assert colours[0].max() < 64


def test_masks_are_painted_in_the_colours_of_the_palette() -> None:
    names = ("ground", "cat", "dog")
    palette = hex_palette(names)
    assert list(palette) == list(names)
    painted = colour_mask(np.array([[0, 2, IGNORE], [1, 1, 0]], dtype=np.uint8), names)
    pixels = np.asarray(painted)
    assert (painted.mode, painted.size) == ("RGB", (3, 2))
    written = [["#" + "".join(f"{v:02x}" for v in pixel) for pixel in row] for row in pixels]
    ground, cat, dog = palette.values()
    assert written == [[ground, dog, "#ffffff"], [cat, cat, ground]]
    outside = np.asarray(colour_mask(np.array([[-1, 3]]), names))
    assert (outside == 255).all()

"""Masks: how well they are predicted, a segmenter on held-out images, a colour for each class."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visgrpo.data.batches import Batch, InputFunction
from visgrpo.data.table import Table
from visgrpo.errors import UserError
from visgrpo.measures.classification import check_names
from visgrpo.measures.held_out import score_of_counts
from visgrpo.measures.over import Team, batches, sums_over
from visgrpo.models.backbone import Segmenter
from visgrpo.objectives.counts import Counts
from visgrpo.rewards.sets import RewardSet

LOGITS_AT_ONCE = 2**24
"""Logits of pixels that exist at one time: 64 MiB of float32."""
ROWS_AT_ONCE = 64
SOME_LOGITS = 2**21
"""Logits of pixels that are kept to fit biases by."""
FIRST_CLASS = (45, 45, 45)
"""Class 0 is the background in most data sets: dark, so that the others stand out."""
NO_CLASS = (255, 255, 255)
"""Pixels without a label."""
ROOT = 1.2207440846057596
"""The real root above 1 of x⁴ = x + 1, which spreads points evenly in three dimensions."""


def add_to_confusion(
    confusion_KK: Tensor, answers: Tensor, truth: Tensor, ignore_index: int
) -> None:
    """Count the pixels of some masks, on their device, into a confusion matrix, in place.

    Args:
        confusion_KK: int64 counts; rows are the truth, columns the answers.
        answers: class ids, any shape.
        truth: class ids of the same shape, or `ignore_index` where a pixel has no label.
        ignore_index: pixels with this truth are not counted, whatever the answer.

    Raises:
        UserError: the shapes differ, or an id is neither a class nor `ignore_index`.
    """
    if answers.shape != truth.shape:
        raise UserError(
            f"Answers {tuple(answers.shape)} and truth {tuple(truth.shape)} differ in shape: "
            "upsample the logits to the size of the masks first."
        )
    K = len(confusion_KK)
    labelled = truth != ignore_index
    truth_P, answers_P = truth[labelled].long(), answers[labelled].long()
    _check_ids(truth_P, "truth", K)
    _check_ids(answers_P, "answers", K)
    counts = torch.bincount(truth_P * K + answers_P, minlength=K * K)
    confusion_KK += counts.reshape(K, K).to(confusion_KK.device)


def segmentation_measures(confusion_KK: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Measure a segmentation by the counts of all its labelled pixels.

    With n_ij pixels of class i that were answered j:

        IoU_k          = n_kk / (Σ_j n_kj + Σ_i n_ik - n_kk)
        class accuracy = n_kk / Σ_j n_kj

    (Long, Shelhamer and Darrell 2015, "Fully convolutional networks for semantic segmentation",
    section 5.) The counts are summed over images before dividing, so that an image weighs as much
    as it has labelled pixels.

    A class that is neither in the truth nor among the answers has no IoU: it is None and left out
    of the mean. A class that is answered but not in the truth has IoU 0, which counts. Class
    accuracy is averaged over the classes that are in the truth.

    Args:
        confusion_KK: counts of `add_to_confusion`.
        classes: the K class names, position = class id.

    Returns:
        Plain numbers, ready for JSON: `miou`, `pixel_accuracy`, `mean_class_accuracy`,
        `per_class_iou` ({class: IoU or None}), `per_class_pixels` of the truth, and `pixels`, the
        number of labelled pixels.

    Raises:
        UserError: class names do not fit the matrix, or no pixel was counted.
    """
    K = len(confusion_KK)
    check_names(classes, K, "a confusion matrix")
    counts_KK = confusion_KK.cpu().double()  # whole numbers are exact up to 2^53 pixels
    pixels = int(confusion_KK.sum())
    if pixels == 0:
        raise UserError(
            "Nothing to evaluate: no pixel has a label. Check the masks and the ignore index."
        )
    right_K, truth_K = counts_KK.diagonal(), counts_KK.sum(dim=1)
    union_K = truth_K + counts_KK.sum(dim=0) - right_K
    here_K, seen_K = truth_K > 0, union_K > 0
    iou_K = right_K / union_K  # NaN where the union is empty: those are replaced by None below
    return {
        "miou": iou_K[seen_K].mean().item(),
        "pixel_accuracy": right_K.sum().item() / pixels,
        "mean_class_accuracy": (right_K[here_K] / truth_K[here_K]).mean().item(),
        "per_class_iou": {
            name: iou if seen else None
            for name, iou, seen in zip(classes, iou_K.tolist(), seen_K.tolist(), strict=True)
        },
        "per_class_pixels": dict(zip(classes, map(int, truth_K.tolist()), strict=True)),
        "pixels": pixels,
    }


def rewards_of_answers(
    rewards: RewardSet, confusion_KK: Tensor, classes: Sequence[str]
) -> dict[str, float]:
    """Return what answers earn: `reward`, and `cost` where a reward is one.

    Rewards of labels are means over pixels; scores of counts are of all pixels together.
    """
    counts_KK, reward = confusion_KK.cpu().double(), 0.0
    if rewards.counted:
        counts = counts_KK.diagonal(), counts_KK.sum(dim=1), counts_KK.sum(dim=0)
        reward += score_of_counts(rewards, Counts(*(each[None] for each in counts)))
    if rewards.of_labels is not None:
        every_K = torch.arange(len(classes))
        table_KKR = rewards.of_labels(
            every_K.expand(len(classes), -1),
            label=every_K,
            probabilities=torch.eye(len(classes)),
            classes=classes,
        )
        table_KK = (table_KKR @ rewards.of_labels.weights_R).double()
        reward += ((counts_KK * table_KK).sum() / counts_KK.sum()).item()
    costs_KK = rewards.costs()
    if costs_KK is None:
        return {"reward": reward}
    cost = (counts_KK * costs_KK.cpu()).sum() / counts_KK.sum()
    return {"reward": reward, "cost": cost.item()}


def _check_ids(ids_P: Tensor, what: str, K: int) -> None:
    outside_P = (ids_P < 0) | (ids_P >= K)
    if outside_P.any():
        raise UserError(
            f"The {what} has class id {int(ids_P[outside_P][0])}; ids go from 0 to {K - 1}."
        )


@dataclass(frozen=True)
class HeldOutMasks:
    """Evaluates a segmenter at every labelled pixel of a data set, in the precision it trains in.

    Its methods raise UserError for logits that are not finite.

    Attributes:
        inputs: makes what the segmenter takes together with the mask.
        rewards: that answers are measured by; None for none.
        biases_K: added to the logits; None for none.
    """

    segmenter: Segmenter
    dataset: Table
    inputs: InputFunction
    processes: Team
    rewards: RewardSet | None = None
    biases_K: Tensor | None = None

    def now(self) -> dict[str, Any]:
        """Return all measures: those of `segmentation_measures`, `nll`, nats per pixel, and
        `examples`, the number of images."""
        K = len(self.dataset.classes)
        zeros = torch.zeros(K, K, dtype=torch.int64), *torch.zeros(2, dtype=torch.float64)
        training = self.segmenter.training
        self.segmenter.eval()
        confusion_KK, nll, earned = sums_over(
            self._sums, zeros, self.dataset, self.inputs, self.processes, batch_size=ROWS_AT_ONCE
        )
        self.segmenter.train(training)
        measures = segmentation_measures(confusion_KK, self.dataset.classes)
        if self.rewards is not None and self.rewards.of_masks:
            measures["reward"] = earned.item() / len(self.dataset)
        elif self.rewards is not None:
            measures |= rewards_of_answers(self.rewards, confusion_KK, self.dataset.classes)
        return {
            "examples": len(self.dataset),
            **measures,
            "nll": nll.item() / measures["pixels"],
        }

    def scalars(self) -> dict[str, float]:
        """Return the measures of now that are one number."""
        measures = self.now()
        names = ("miou", "pixel_accuracy", "mean_class_accuracy", "reward", "cost", "nll")
        return {name: measures[name] for name in names if name in measures}

    @torch.no_grad()
    def answers(self, rows: Sequence[int]) -> list[np.ndarray]:
        """Return the answered class ids (H, W) of some rows, as the segmenter sees them."""
        training = self.segmenter.training
        self.segmenter.eval()
        answers: list[np.ndarray] = []
        chosen = np.array(rows, dtype=np.int64)
        for batch in batches(self.dataset, self.inputs, self.processes, ROWS_AT_ONCE, chosen):
            for logits_NHWK, _ in self._predictions(batch):
                answers += list(logits_NHWK.argmax(dim=-1).cpu().numpy())
        self.segmenter.train(training)
        return answers

    @torch.no_grad()
    def some_pixels(self) -> tuple[Tensor, Tensor]:
        """Return logits (P, K) and labels (P,) of labelled pixels, evenly spaced in every image."""
        training = self.segmenter.training
        self.segmenter.eval()
        each = max(1, SOME_LOGITS // len(self.dataset.classes) // len(self.dataset))
        logits, labels = [], []
        for batch in batches(self.dataset, self.inputs, self.processes, ROWS_AT_ONCE):
            for some_NHWK, some_NHW in self._predictions(batch):
                for logits_HWK, truth_HW in zip(some_NHWK, some_NHW, strict=True):
                    known = truth_HW != self.dataset.ignore_index
                    step = max(1, -(-int(known.sum()) // each))
                    logits.append(logits_HWK[known][::step].cpu())
                    labels.append(truth_HW[known][::step].cpu())
        self.segmenter.train(training)
        return torch.cat(logits), torch.cat(labels)

    def _sums(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Counts (K, K) of the pixels of some images, and the sums of their NLL and of what their
        likeliest masks earn, in float64; 0 where no reward is of whole masks."""
        K, ignore = len(self.dataset.classes), self.dataset.ignore_index
        confusion_KK = torch.zeros(K, K, dtype=torch.int64, device=batch.inputs.device)
        nll, earned = torch.zeros(2, dtype=torch.float64, device=batch.inputs.device)
        for logits_NHWK, truth_NHW in self._predictions(batch):
            add_to_confusion(confusion_KK, logits_NHWK.argmax(dim=-1), truth_NHW, ignore)
            nll_NHW = torch.nn.functional.cross_entropy(
                logits_NHWK.permute(0, 3, 1, 2), truth_NHW, ignore_index=ignore, reduction="none"
            )
            nll += nll_NHW.double().sum()
            if self.rewards is not None and self.rewards.of_masks:
                rewards_N1R = self.rewards(
                    logits_NHWK.argmax(dim=-1)[:, None],
                    label=truth_NHW,
                    probabilities=logits_NHWK.softmax(dim=-1),
                    classes=self.dataset.classes,
                )
                earned += (
                    rewards_N1R.double() @ self.rewards.weights_R.to(rewards_N1R).double()
                ).sum()
        return confusion_KK, nll, earned

    def _predictions(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield logits (n, H, W, K) and masks (n, H, W), a few images at a time."""
        with self.processes.autocast():
            grid_NhwK = self.segmenter(batch.inputs)
        size = batch.labels_N.shape[1:]
        at_once = max(1, LOGITS_AT_ONCE // (size.numel() * grid_NhwK.shape[-1]))
        for grid, masks in zip(
            grid_NhwK.split(at_once), batch.labels_N.split(at_once), strict=True
        ):
            logits_NHWK = self.segmenter.upsample(grid, size)
            if not logits_NHWK.isfinite().all():
                raise UserError(
                    f"NaN or infinity in the logits of {self.dataset.name}: the model has "
                    "diverged; try a lower learning rate."
                )
            if self.biases_K is not None:
                logits_NHWK = logits_NHWK + self.biases_K.to(logits_NHWK)
            yield logits_NHWK, masks


# ---- colours ------------------------------------------------------------------------------------


def class_colours(count: int) -> np.ndarray:
    """Return distinct colours for `count` classes, (count, 3) uint8.

    Hue, lightness and saturation of class k are the fractional parts of k/x, k/x² and k/x³
    (Roberts 2018, "The unreasonable effectiveness of quasirandom sequences"): hue alone does not
    tell a hundred classes apart. The colour of a class does not depend on how many follow it.
    """
    colours = [FIRST_CLASS, *(_colour(k) for k in range(1, count))]
    return np.array(colours[:count], dtype=np.uint8).reshape(count, 3)


def hex_palette(classes: Sequence[str]) -> dict[str, str]:
    """Return {class: "#rrggbb"}, the content of a run's palette.json."""
    colours = class_colours(len(classes)).tolist()
    return {
        name: f"#{red:02x}{green:02x}{blue:02x}"
        for name, (red, green, blue) in zip(classes, colours, strict=True)
    }


def colour_mask(ids_HW: np.ndarray, classes: Sequence[str]) -> Image.Image:
    """Paint a mask of class ids (H, W); ids that are no class (an ignore index) are white."""
    K = len(classes)
    colours = np.vstack([class_colours(K), np.array([NO_CLASS], dtype=np.uint8)])
    known_HW = (ids_HW >= 0) & (ids_HW < K)
    return Image.fromarray(colours[np.where(known_HW, ids_HW, K)])


def _colour(k: int) -> tuple[int, int, int]:
    hue, light, strong = ((k / ROOT**power) % 1 for power in (1, 2, 3))
    # Neither so light nor so dark that it is taken for "no class" or for class 0.
    red, green, blue = colorsys.hls_to_rgb(hue, 0.35 + 0.43 * light, 0.45 + 0.5 * strong)
    return round(255 * red), round(255 * green), round(255 * blue)

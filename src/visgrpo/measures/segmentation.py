"""How well masks are predicted: pixel accuracy and intersection over union, from one count table.

A confusion matrix is all that the measures need: K × K counts, whatever the number of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from visgrpo.errors import UserError


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
        `per_class_iou` ({class: IoU or None}) and `pixels`, the number of labelled pixels.

    Raises:
        UserError: class names do not fit the matrix, or no pixel was counted.
    """
    K = len(confusion_KK)
    if len(classes) != K:
        raise UserError(f"{len(classes)} class names for a confusion matrix of {K} classes.")
    if len(set(classes)) != K:
        raise UserError("Two classes have the same name: give each class its own.")
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
        "pixels": pixels,
    }


def _check_ids(ids_P: Tensor, what: str, K: int) -> None:
    outside_P = (ids_P < 0) | (ids_P >= K)
    if outside_P.any():
        raise UserError(
            f"The {what} has class id {int(ids_P[outside_P][0])}; ids go from 0 to {K - 1}."
        )

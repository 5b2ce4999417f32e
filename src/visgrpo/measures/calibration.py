"""Does a classifier know how often it is right? Calibration of the top label."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visgrpo.errors import UserError


@dataclass(frozen=True)
class Reliability:
    """The bins of a reliability diagram: bin b holds confidences in (lower[b], upper[b]].

    `confidence` and `accuracy` are means over a bin, None where it is empty.
    """

    lower: list[float]
    upper: list[float]
    count: list[int]
    confidence: list[float | None]
    accuracy: list[float | None]


def reliability(probabilities_MK: Tensor, labels_M: Tensor, bins: int = 15) -> Reliability:
    """Bin examples by their confidence, the probability of the most probable class.

    Args:
        probabilities_MK: class probabilities; each row sums to 1.
        labels_M: true class ids.
        bins: number of equal-width bins of (0, 1], each closed on the right.

    Raises:
        UserError: shapes do not fit, labels are no class ids, or the rows are no probabilities.
    """
    if bins < 1:
        raise UserError(f"The number of bins is {bins}: it must be at least 1.")
    check_labels(probabilities_MK, labels_M, "probabilities")
    probabilities_MK = probabilities_MK.detach().cpu().double()
    sums_M = probabilities_MK.sum(dim=1)
    # Written so that NaN fails too. float32 rows of thousands of classes sum to 1 within 1e-3.
    if not ((probabilities_MK >= 0).all() and ((sums_M - 1).abs() <= 1e-3).all()):
        raise UserError("Each row of probabilities must be ≥ 0 and sum to 1: apply a softmax.")
    confidence_M, predicted_M = probabilities_MK.max(dim=1)
    return bin_confidences(confidence_M, predicted_M == labels_M.cpu(), bins)


def bin_confidences(confidence_M: Tensor, right_M: Tensor, bins: int = 15) -> Reliability:
    """Bin examples by confidence (float64), given which answers were right."""
    edges = torch.arange(1, bins, dtype=torch.float64) / bins
    bin_M = torch.bucketize(confidence_M, edges)  # edges[b-1] < confidence <= edges[b]
    counts = torch.bincount(bin_M, minlength=bins).tolist()
    return Reliability(
        lower=[b / bins for b in range(bins)],
        upper=[(b + 1) / bins for b in range(bins)],
        count=counts,
        confidence=_means(bin_M, confidence_M, counts),
        accuracy=_means(bin_M, right_M.double(), counts),
    )


def expected_calibration_error(probabilities_MK: Tensor, labels_M: Tensor, bins: int = 15) -> float:
    """Expected calibration error of the top label, from 0 (calibrated) to 1.

        ECE = Σ_b (n_b / M) · |accuracy_b - confidence_b|

    over equal-width bins of the confidence (Guo et al. 2017, "On Calibration of Modern Neural
    Networks", eq. 3). Arguments and errors as for `reliability`.
    """
    return calibration_gap(reliability(probabilities_MK, labels_M, bins))


def calibration_gap(diagram: Reliability) -> float:
    """Return the calibration error of a diagram: its mean |accuracy - confidence|."""
    gaps = zip(diagram.count, diagram.accuracy, diagram.confidence, strict=True)
    total = sum(n * abs(a - c) for n, a, c in gaps if a is not None and c is not None)
    return total / sum(diagram.count)


def check_labels(scores_MK: Tensor, labels_M: Tensor, what: str) -> None:
    """Raise `UserError` unless `labels_M` are class ids for the rows of `scores_MK`."""
    shapes = f"{what} {tuple(scores_MK.shape)} and labels {tuple(labels_M.shape)}"
    if scores_MK.ndim != 2 or labels_M.shape != scores_MK.shape[:1]:
        raise UserError(f"Shapes do not fit: {shapes}; expected (M, K) and (M,).")
    if labels_M.is_floating_point():
        raise UserError(f"Labels must be whole class ids, not {labels_M.dtype}.")
    if scores_MK.shape[0] == 0 or scores_MK.shape[1] < 2:
        raise UserError(f"Nothing to evaluate: {shapes}; give examples and at least two classes.")
    outside_M = (labels_M < 0) | (labels_M >= scores_MK.shape[1])
    if outside_M.any():
        row = int(outside_M.nonzero()[0])
        raise UserError(
            f"Row {row} has label {int(labels_M[row])}; class ids go from 0 to "
            f"{scores_MK.shape[1] - 1}."
        )


def _means(bin_M: Tensor, values_M: Tensor, counts: list[int]) -> list[float | None]:
    sums = torch.bincount(bin_M, weights=values_M, minlength=len(counts)).tolist()
    return [total / n if n else None for total, n in zip(sums, counts, strict=True)]

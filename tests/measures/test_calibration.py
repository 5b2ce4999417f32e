"""Calibration against a hand example and torchmetrics."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from visgrpo.errors import UserError
from visgrpo.measures import expected_calibration_error, reliability

# Confidences 0.6 (right), 0.7 (wrong), 0.9 (right), 1.0 (right); two bins hold none.
PROBABILITIES_MK = torch.tensor([[0.6, 0.4], [0.7, 0.3], [0.1, 0.9], [0.0, 1.0]]).double()
LABELS_M = torch.tensor([0, 1, 1, 1])


def test_by_hand() -> None:
    """Bins of 1/4: (½, ¾] has accuracy 1/2, confidence 0.65; (¾, 1] has 1 and 0.95."""
    diagram = reliability(PROBABILITIES_MK, LABELS_M, bins=4)
    assert diagram.lower == [0, 0.25, 0.5, 0.75]
    assert diagram.upper == [0.25, 0.5, 0.75, 1]
    assert diagram.count == [0, 0, 2, 2]
    assert diagram.accuracy == [None, None, 0.5, 1.0]
    assert diagram.confidence == [None, None, pytest.approx(0.65), pytest.approx(0.95)]
    ece = expected_calibration_error(PROBABILITIES_MK, LABELS_M, bins=4)
    assert ece == pytest.approx(0.5 * 0.15 + 0.5 * 0.05)


def test_bins_are_closed_on_the_right() -> None:
    probabilities_MK = torch.tensor([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]])
    assert reliability(probabilities_MK, torch.zeros(3).long(), bins=4).count == [0, 1, 1, 1]


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("sharpness", [0.5, 1.0, 4.0])
def test_against_torchmetrics(bins: int, sharpness: float) -> None:
    generator = torch.Generator().manual_seed(bins)
    logits_MK = sharpness * torch.randn(500, 7, generator=generator, dtype=torch.float64)
    labels_M = torch.randint(7, (500,), generator=generator)
    probabilities_MK = logits_MK.softmax(dim=1)
    theirs = multiclass_calibration_error(probabilities_MK, labels_M, 7, n_bins=bins, norm="l1")
    ours = expected_calibration_error(probabilities_MK, labels_M, bins)
    assert ours == pytest.approx(theirs.item(), abs=1e-6)


@pytest.mark.parametrize(
    ("probabilities_MK", "labels_M", "bins", "message"),
    [
        (PROBABILITIES_MK, LABELS_M, 0, "The number of bins is 0"),
        (PROBABILITIES_MK, LABELS_M[:3], 15, r"\(4, 2\) and labels \(3,\)"),
        (PROBABILITIES_MK[0], LABELS_M, 15, "Shapes do not fit"),
        (PROBABILITIES_MK, LABELS_M.float(), 15, "whole class ids"),
        (PROBABILITIES_MK, LABELS_M + 1, 15, "Row 1 has label 2; class ids go from 0 to 1"),
        (PROBABILITIES_MK[:0], LABELS_M[:0], 15, "Nothing to evaluate"),
        (PROBABILITIES_MK[:, :1], LABELS_M * 0, 15, "at least two classes"),
        (PROBABILITIES_MK * 3, LABELS_M, 15, "sum to 1"),
        (PROBABILITIES_MK - 1, LABELS_M, 15, "sum to 1"),
        (PROBABILITIES_MK * torch.nan, LABELS_M, 15, "sum to 1"),
    ],
)
def test_mistakes(
    probabilities_MK: torch.Tensor, labels_M: torch.Tensor, bins: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        expected_calibration_error(probabilities_MK, labels_M, bins)

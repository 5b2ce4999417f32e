"""The majority of a cell against counting in loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from visgrpo.data.patches import majority_labels
from visgrpo.errors import UserError


def counted(masks_NHW: np.ndarray, stride: int, ignore_index: int, classes: int) -> np.ndarray:
    count, height, width = masks_NHW.shape
    shape = (count, math.ceil(height / stride), math.ceil(width / stride))
    labels = np.full(shape, ignore_index, dtype=np.int64)
    for image, row, column in np.ndindex(shape):
        cell = masks_NHW[image, row * stride :, column * stride :][:stride, :stride]
        votes = [(cell == k).sum() for k in range(classes)]
        if any(votes):
            labels[image, row, column] = votes.index(max(votes))
    return labels


@pytest.mark.parametrize("stride", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("ignore_index", [255, -1, 7])
@pytest.mark.parametrize("size", [(12, 10), (7, 13), (1, 1)])
def test_equals_counting(stride: int, ignore_index: int, size: tuple[int, int]) -> None:
    rng = np.random.default_rng([stride, *size])
    ids = rng.choice([0, 1, 2, 3, ignore_index], size=(4, *size), p=[0.3, 0.2, 0.1, 0.1, 0.3])
    labels = majority_labels(torch.from_numpy(ids), stride, ignore_index, classes=7)
    assert labels.dtype == torch.long
    assert np.array_equal(labels.numpy(), counted(ids, stride, ignore_index, 7))


def test_by_hand() -> None:
    mask = torch.tensor(
        [
            [2, 1, 255, 255, 255, 3],
            [1, 2, 255, 255, 255, 255],
            [0, 3, 3, 255, 1, 1],
        ],
        dtype=torch.uint8,
    )
    # A tie of 1 and 2, nothing but ignored, one vote against three abstentions; then half a cell.
    expected = [[[1, 255, 3], [0, 3, 1]]]
    assert majority_labels(mask[None], 2, 255, classes=4).tolist() == expected


def test_memory_does_not_grow_with_the_classes() -> None:
    ids = torch.full((1, 64, 64), 20_999, dtype=torch.int16)
    assert majority_labels(ids, 16, -1, classes=21_000).unique().tolist() == [20_999]


def test_a_cell_has_a_pixel() -> None:
    with pytest.raises(UserError, match="1 pixel or more, not 0"):
        majority_labels(torch.zeros(1, 2, 2, dtype=torch.long), 0, 255, 3)

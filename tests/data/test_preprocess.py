"""Preprocess against transformers' own pillow processors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    SiglipImageProcessorPil,
    ViTImageProcessorPil,
)

from visgrpo.data.preprocess import Preprocess, majority_labels
from visgrpo.errors import UserError

SIZES = [(97, 61), (61, 97), (64, 64), (5, 3), (1, 1), (33, 250), (31, 32)]  # width, height


def photo(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng([width, height]).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


PROCESSORS = {
    "clip": CLIPImageProcessorPil(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}
    ),
    "clip as released": CLIPImageProcessorPil(),
    "clip, odd crop": CLIPImageProcessorPil(
        size={"shortest_edge": 33}, crop_size={"height": 47, "width": 20}
    ),
    "clip, nearest": CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32, resample=0),
    "clip, lanczos": CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32, resample=1),
    "clip, no resize": CLIPImageProcessorPil(do_resize=False, crop_size=48),
    "clip, no crop": CLIPImageProcessorPil(size={"shortest_edge": 32}, do_center_crop=False),
    "clip, no rescale": CLIPImageProcessorPil(crop_size=32, do_rescale=False),
    "clip, no normalize": CLIPImageProcessorPil(crop_size=32, do_normalize=False),
    "siglip": SiglipImageProcessorPil(size={"height": 30, "width": 44}),
    "siglip, box filter": SiglipImageProcessorPil(size={"height": 30, "width": 44}, resample=4),
    "dinov2": BitImageProcessorPil(
        size={"shortest_edge": 64},
        crop_size={"height": 56, "width": 56},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ),
    "vit": ViTImageProcessorPil(size={"height": 32, "width": 32}),
    "vit, [0, 1] to [0, 2]": ViTImageProcessorPil(
        size={"height": 8, "width": 8}, rescale_factor=1 / 127.5
    ),
}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", SIZES)
def test_equals_transformers(name: str, size: tuple[int, int]) -> None:
    processor = PROCESSORS[name]
    image = photo(*size)
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    preprocess = Preprocess.from_processor(processor)
    actual = preprocess(image)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected.float(), atol=1e-6, rtol=0)


def test_a_settings_dict_is_enough() -> None:
    settings = PROCESSORS["clip"].to_dict()
    assert Preprocess.from_processor(settings) == Preprocess.from_processor(PROCESSORS["clip"])


def test_every_step_off_gives_the_raw_pixels() -> None:
    off = {"do_resize": False, "do_rescale": False, "do_normalize": False}
    image = photo(4, 3)
    pixels = Preprocess.from_processor(off)(image)
    assert torch.equal(pixels, torch.tensor(np.asarray(image)).permute(2, 0, 1).float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_pad": True}, '"do_pad"'),
        ({"crop_pct": 0.9}, '"crop_pct"'),
        ({"size": {"longest_edge": 32}}, '"size"'),
        ({"size": {"shortest_edge": 32, "longest_edge": 64}}, '"size"'),
        ({"size": 32}, "shortest_edge, or height and width"),
        ({"crop_size": {"height": 32}}, '"crop_size"'),
        ({"resample": 17}, '"resample"'),
        ({"resample": "bicubic"}, '"resample"'),
        ({"image_mean": [0.5]}, '"image_mean"'),
        ({"image_std": None}, '"image_std"'),
    ],
)
def test_settings_not_understood_are_refused_by_name(change: dict, message: str) -> None:
    settings = {**PROCESSORS["clip"].to_dict(), **change}
    with pytest.raises(UserError, match=message):
        Preprocess.from_processor(settings)


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

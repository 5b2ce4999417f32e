"""Two views of an image: deterministic, different, within their ranges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from visgrpo.data.augment import ViewInputs, random_part, view
from visgrpo.data.batches import BatchLoader
from visgrpo.data.preprocess import Preprocess
from visgrpo.data.table import Table

ALL = ("crop", "flip", "color")


def photo(width: int = 40, height: int = 24) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def pixels_of(image: Image.Image, seed: int, size: int = 16) -> np.ndarray:
    return np.asarray(view(image, size, np.random.default_rng(seed), ALL)).astype(int)


def test_equal_generators_give_equal_pairs_of_two_different_views(
    tiny_dataset: Table,
) -> None:
    inputs = ViewInputs(tiny_dataset, Preprocess(mean=(0.5,) * 3, std=(0.5,) * 3), 12)
    pair = inputs(3, np.random.default_rng(1))
    assert (pair.shape, pair.dtype) == ((2, 3, 12, 12), torch.float32)
    assert torch.equal(pair, inputs(3, np.random.default_rng(1)))
    assert not torch.equal(pair[0], pair[1])
    assert not torch.equal(pair, inputs(3, np.random.default_rng(2)))
    assert not torch.equal(pair, inputs(4, np.random.default_rng(1)))
    assert -1 <= float(pair.min()) < float(pair.max()) <= 1


@pytest.mark.parametrize("size", [(40, 24), (1, 1), (3, 50), (64, 64)])
def test_views_are_square_and_the_image_is_left_alone(size: tuple[int, int]) -> None:
    image = photo(*size)
    before = np.asarray(image).copy()
    for seed in range(100):
        assert pixels_of(image, seed).shape == (16, 16, 3)
    assert np.array_equal(before, np.asarray(image))


@pytest.mark.parametrize("size", [(64, 64), (100, 20), (1, 7)])
def test_a_part_covers_between_20_and_100_percent_of_the_area(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    areas, ratios = [], []
    for _ in range(2000):
        left, top, right, bottom = random_part(*size, rng)
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        areas.append((right - left) * (bottom - top) / (size[0] * size[1]))
        ratios.append((right - left) / (bottom - top))
    # What would go beyond a side ends there, so that the whole may fall short.
    assert max(areas) <= 1
    assert max(ratios) <= max(4 / 3, size[0] / size[1]) + 1e-9
    if size[0] == size[1]:
        assert 0.2 <= min(areas) < 0.21
        assert max(areas) > 0.9
        assert 0.75 - 1e-9 <= min(ratios) < 0.76
        assert max(ratios) > 1.32


def test_a_view_is_a_part_of_the_image() -> None:
    """A checkerboard of two colours far apart keeps them: no view is blank or from outside."""
    board = (np.indices((64, 64)).sum(axis=0) // 2 % 2 * 255).astype(np.uint8)
    image = Image.fromarray(np.stack([board] * 3, axis=-1))
    for seed in range(50):
        assert np.ptp(pixels_of(image, seed, size=64)) > 50


def test_every_second_view_is_mirrored() -> None:
    dark_to_bright = np.tile(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 1, 3))
    image = Image.fromarray(dark_to_bright)
    views = [pixels_of(image, seed) for seed in range(300)]
    mirrored = [pixels[:, 0].mean() > pixels[:, -1].mean() for pixels in views]
    assert 120 < sum(mirrored) < 180


def test_a_fifth_of_the_views_is_grey_and_a_fifth_keeps_its_colours() -> None:
    orange = Image.new("RGB", (20, 20), (200, 120, 40))
    views = [pixels_of(orange, seed) for seed in range(1000)]
    grey = [pixels for pixels in views if (pixels == pixels[..., :1]).all()]
    kept = [pixels for pixels in views if (pixels == (200, 120, 40)).all()]
    assert 160 < len(grey) < 240  # 0.2 of them
    assert 110 < len(kept) < 210  # 0.2 × 0.8: neither changed nor grey


def test_hues_turn_by_at_most_a_tenth_of_the_circle() -> None:
    red = Image.new("RGB", (20, 20), (180, 40, 40))
    hues = []
    for seed in range(500):
        pixel = view(red, 4, np.random.default_rng(seed), ALL).convert("HSV").getpixel((0, 0))
        assert isinstance(pixel, tuple)
        if pixel[1] > 60:  # a grey has no hue
            hues.append((pixel[0] + 128) % 256 - 128)
    assert -29 <= min(hues) < -20
    assert 20 < max(hues) <= 29


def test_workers_make_the_same_batches(tiny_dataset: Table) -> None:
    inputs = ViewInputs(tiny_dataset, Preprocess(), 8)
    batches = [
        list(BatchLoader(tiny_dataset, inputs, batch_size=8, seed=0, workers=w).batches(0, 4))
        for w in (0, 1)
    ]
    for ours, theirs in zip(*batches, strict=True):
        assert ours.inputs.shape == (8, 2, 3, 8, 8)
        assert torch.equal(ours.inputs, theirs.inputs)
    first, fourth = batches[0][0], batches[0][3]  # of another epoch
    row = next(r for r in first.indices_N.tolist() if r in fourth.indices_N.tolist())
    assert not torch.equal(*(b.inputs[b.indices_N.tolist().index(row)] for b in (first, fourth)))


def test_changes_that_are_left_out() -> None:
    orange = Image.new("RGB", (20, 20), (200, 120, 40))
    rng = np.random.default_rng(0)
    plain = [np.asarray(view(orange, 16, rng, ["crop", "flip"])) for _ in range(50)]
    assert all((pixels == (200, 120, 40)).all() for pixels in plain)
    image = photo()
    for _ in range(20):
        kept = np.asarray(view(image, 16, rng, ["flip"]))
        assert any(
            np.array_equal(kept, way) for way in (np.asarray(image), np.asarray(image)[:, ::-1])
        )
    assert view(image, 16, rng, []) is image


def test_images_that_are_not_cropped_are_preprocessed_whole(tiny_dataset: Table) -> None:
    preprocess = Preprocess(size=(8, 8))
    inputs = ViewInputs(tiny_dataset, preprocess, 8, ["flip"])
    whole = preprocess(tiny_dataset.images[0])
    for each in inputs(0, np.random.default_rng(0)):
        assert torch.allclose(each, whole, atol=0.02) or torch.allclose(
            each, whole.flip(2), atol=0.02
        )

"""Augmentations: deterministic, within their ranges, refused by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from visgrpo.data.batches import BatchLoader
from visgrpo.data.inputs import (
    AUGMENTATIONS,
    ViewInputs,
    augment,
    check_augmentations,
    random_part,
    view,
)
from visgrpo.data.preprocess import Preprocess
from visgrpo.data.table import Table
from visgrpo.errors import UserError


def photo(width: int = 40, height: int = 24) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def after(name: str, seed: int, image: Image.Image | None = None) -> np.ndarray:
    return np.asarray(augment(image or photo(), np.random.default_rng(seed), [name]))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_equal_generators_give_equal_images_and_others_differ(name: str) -> None:
    assert np.array_equal(after(name, 1), after(name, 1))
    images = {after(name, seed).tobytes() for seed in range(10)}
    assert len(images) == (2 if name == "flip" else 10)


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("size", [(40, 24), (1, 1), (3, 50)])
def test_size_mode_and_the_given_image_are_kept(name: str, size: tuple[int, int]) -> None:
    image = photo(*size)
    before = np.asarray(image).copy()
    for seed in range(5):
        changed = augment(image, np.random.default_rng(seed), [name])
        assert (changed.size, changed.mode) == (size, "RGB")
    assert np.array_equal(before, np.asarray(image))


def test_flip_mirrors_every_second_time() -> None:
    image = photo()
    mirrored = [np.array_equal(after("flip", s), np.asarray(image)[:, ::-1]) for s in range(200)]
    kept = [np.array_equal(after("flip", s), np.asarray(image)) for s in range(200)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 70 < sum(mirrored) < 130


def test_crop_covers_between_60_and_100_percent_of_the_area() -> None:
    # On a horizontal ramp of 0 to 255 the range of values that is left is the width that is left.
    ramp = np.tile(np.linspace(0, 255, 256).astype(np.uint8)[None, :, None], (256, 1, 3))
    across, down = Image.fromarray(ramp), Image.fromarray(ramp.transpose(1, 0, 2).copy())
    for seed in range(50):
        width = np.ptp(after("crop", seed, across).astype(int)) / 255
        height = np.ptp(after("crop", seed, down).astype(int)) / 255
        # A side is cut off at the image's own, so the area may fall short of 0.6 by the ratio.
        assert 0.6 * 0.86 < width * height <= 1
        assert 0.65 < width <= 1
        assert 0.65 < height <= 1


def test_color_changes_a_grey_image_in_brightness_only() -> None:
    grey = Image.new("RGB", (8, 8), (100, 100, 100))
    values = [after("color", seed, grey) for seed in range(50)]
    assert all(len(np.unique(value)) == 1 for value in values)  # no hue, no contrast to change
    assert all(59 <= value.min() <= 141 for value in values)


def test_no_names_change_nothing_and_order_is_kept() -> None:
    image = photo()
    assert augment(image, np.random.default_rng(0), []) is image
    both = augment(image, np.random.default_rng(3), ["crop", "color"])
    rng = np.random.default_rng(3)
    one_by_one = augment(augment(image, rng, ["crop"]), rng, ["color"])
    assert np.array_equal(np.asarray(both), np.asarray(one_by_one))


def test_unknown_name() -> None:
    with pytest.raises(UserError, match=r'"colour"\. Did you mean "color"\?'):
        check_augmentations(["flip", "colour"])
    with pytest.raises(UserError, match='"flap"'):
        augment(photo(), np.random.default_rng(0), ["flap"])


ALL = ("crop", "flip", "color")


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

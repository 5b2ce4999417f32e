"""Augmentations: deterministic, within their ranges, refused by name."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from visgrpo.data.augment import AUGMENTATIONS, augment, check_augmentations
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

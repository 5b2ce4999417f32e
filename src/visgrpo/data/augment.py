"""Random changes to an image that leave its class as it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from visgrpo.errors import UserError, nearest

CROP_SCALE = (0.6, 1.0)  # of the image's area
CROP_RATIO = (3 / 4, 4 / 3)  # width to height
JITTER = 0.4  # brightness, contrast and saturation are multiplied by 1 ± this much


def augment(image: Image.Image, rng: np.random.Generator, names: Sequence[str]) -> Image.Image:
    """Return `image` after the named changes, in the order given.

    Args:
        image: RGB.
        rng: the only randomness: equal generators give equal images.
        names: of "crop" (a random part, resized back), "flip" (left to right, every second time)
            and "color" (brightness, contrast and saturation).

    Raises:
        UserError: if a name is unknown.
    """
    for name in check_augmentations(names):
        image = AUGMENTATIONS[name](image, rng)
    return image


def check_augmentations(names: Sequence[str]) -> Sequence[str]:
    """Return `names`, so that a typo is found before the first image is.

    Raises:
        UserError: if a name is unknown.
    """
    for name in names:
        if name not in AUGMENTATIONS:
            raise UserError(f'Unknown augmentation "{name}". {nearest(name, AUGMENTATIONS)}')
    return names


def _crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    area = image.width * image.height * rng.uniform(*CROP_SCALE)
    # Uniform in the logarithm, so that 3:4 and 4:3 are equally likely.
    ratio = math.exp(rng.uniform(*np.log(CROP_RATIO)))
    width = min(image.width, max(1, round(math.sqrt(area * ratio))))
    height = min(image.height, max(1, round(math.sqrt(area / ratio))))
    left = int(rng.integers(image.width - width + 1))
    top = int(rng.integers(image.height - height + 1))
    box = (left, top, left + width, top + height)
    return image.resize(image.size, resample=Image.Resampling.BICUBIC, box=box)


def _flip(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return ImageOps.mirror(image) if rng.random() < 0.5 else image


def _color(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(rng.uniform(1 - JITTER, 1 + JITTER))
    return image


AUGMENTATIONS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "crop": _crop,
    "flip": _flip,
    "color": _color,
}

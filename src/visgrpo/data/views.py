"""Two random views of one image, as contrastive pre-training compares them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from visgrpo.data.augment import CROP_RATIO, augment
from visgrpo.data.dataset import ImageDataset

VIEW_SCALE = (0.2, 1.0)  # of the image's area; crops of fine-tuning keep 0.6 or more
COLOR_SHARE = 0.8  # of the views: brightness, contrast and saturation change, and the hue turns
HUE = 0.1  # of a full turn, at most, to either side
GREY_SHARE = 0.2  # of the views


@dataclass(frozen=True)
class ViewInputs:
    """Makes two views of the image of a row. Picklable.

    Attributes:
        dataset: the images.
        preprocess: turns an image into a tensor of `size` pixels on a side.
        size: pixels of a view on a side.
        changes: as for `view`.
    """

    dataset: ImageDataset
    preprocess: Callable[[Image.Image], Tensor]
    size: int
    changes: Sequence[str] = ("crop", "flip", "color")

    def __call__(self, index: int, rng: np.random.Generator) -> Tensor:
        """Return two views (2, 3, H, W): a function of the generator's state alone."""
        image = self.dataset.images[index]
        views = [view(image, self.size, rng, self.changes) for _ in range(2)]
        return torch.stack([self.preprocess(each) for each in views])


def view(
    image: Image.Image, size: int, rng: np.random.Generator, changes: Sequence[str]
) -> Image.Image:
    """Return a random view of an RGB image: SimCLR's changes without its blur.

    Args:
        image: RGB.
        size: pixels on a side.
        rng: the only randomness.
        changes: of "crop" (a random part, resized to `size` at once, so that what follows works on
            few pixels; else the image keeps its size), "flip" (left to right, every second time)
            and "color" (brightness, contrast, saturation and hue of most views; some turn grey).
    """
    if "crop" in changes:
        box = random_part(image.width, image.height, rng)
        image = image.resize((size, size), resample=Image.Resampling.BICUBIC, box=box)
    if "flip" in changes:
        image = augment(image, rng, ["flip"])
    if "color" in changes and rng.random() < COLOR_SHARE:
        image = _turn_hue(augment(image, rng, ["color"]), rng)
    if "color" in changes and rng.random() < GREY_SHARE:
        image = ImageOps.grayscale(image).convert("RGB")
    return image


def random_part(
    width: int, height: int, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Return (left, top, right, bottom), in fractions of a pixel, of a part of an image."""
    area = width * height * rng.uniform(*VIEW_SCALE)
    ratio = math.exp(rng.uniform(*np.log(CROP_RATIO)))
    across = min(width, math.sqrt(area * ratio))
    down = min(height, math.sqrt(area / ratio))
    left, top = rng.uniform(0, width - across), rng.uniform(0, height - down)
    # The sum may end beyond the image by a rounding error, which pillow refuses.
    return left, top, min(width, left + across), min(height, top + down)


def _turn_hue(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    turn = round(rng.uniform(-HUE, HUE) * 256)
    hue, saturation, value = image.convert("HSV").split()
    turned = hue.point([(step + turn) % 256 for step in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")

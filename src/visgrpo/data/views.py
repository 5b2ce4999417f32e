"""Two random views of one image, as contrastive pre-training compares them."""

from __future__ import annotations

import math
from collections.abc import Callable
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

    A view is a random part of the image, resized to the target size at once, so that what follows
    (flip, colours, grey: SimCLR's changes without its blur) works on few pixels.

    Attributes:
        dataset: the images.
        preprocess: turns a square image of `size` pixels into a tensor.
        size: pixels of a view on a side.
    """

    dataset: ImageDataset
    preprocess: Callable[[Image.Image], Tensor]
    size: int

    def __call__(self, index: int, rng: np.random.Generator) -> Tensor:
        """Return two views (2, 3, H, W): a function of the generator's state alone."""
        image = self.dataset.images[index]
        return torch.stack([self.preprocess(view(image, self.size, rng)) for _ in range(2)])


def view(image: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """Return a random view of an RGB image, `size` pixels on a side."""
    box = random_part(image.width, image.height, rng)
    changed = image.resize((size, size), resample=Image.Resampling.BICUBIC, box=box)
    changed = augment(changed, rng, ["flip"])
    if rng.random() < COLOR_SHARE:
        changed = _turn_hue(augment(changed, rng, ["color"]), rng)
    if rng.random() < GREY_SHARE:
        changed = ImageOps.grayscale(changed).convert("RGB")
    return changed


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

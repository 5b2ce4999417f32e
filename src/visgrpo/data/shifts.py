"""Shifted copies of a data set: the same images blurred, noisy, compressed or without colour."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from visgrpo.data.identity import derived
from visgrpo.data.table import LazySequence, Table
from visgrpo.errors import UserError, nearest

SMALL, LARGE = 32, 224  # sides, in pixels, that the published strengths were chosen for
# (at 32 px, at 224 px) by severity 1 to 5, from CIFAR-10-C and ImageNet-C.
BLUR_SIGMA = ((0.4, 1), (0.6, 2), (0.7, 3), (0.8, 4), (1, 6))  # pixels
NOISE_SIGMA = ((0.04, 0.08), (0.06, 0.12), (0.08, 0.18), (0.09, 0.26), (0.10, 0.38))  # of white
JPEG_QUALITY = ((80, 25), (65, 18), (58, 15), (50, 10), (40, 7))
MAX_SEVERITY = 5


def shifted(dataset: Table, name: str, severity: int = 3, seed: int = 0) -> Table:
    """Return the data set with every image shifted when it is asked for.

    Gaussian blur, Gaussian noise and JPEG as in the common corruptions of Hendrycks & Dietterich
    2019 (arXiv 1903.12261), whose strengths are published for images of 32 and of 224 pixels:
    between these sides they are interpolated, geometrically, by the shorter side of each image;
    outside them the nearer one holds. "grey" takes all colour away and has one strength. Shapes,
    labels and columns (masks too) stay as they are.

    Args:
        dataset: the images.
        name: "blur", "noise", "jpeg" or "grey".
        severity: 1 to 5.
        seed: 0 or more; the noise of an image depends on (seed, its row in `dataset`) alone, also
            in a subset of the copy.

    Raises:
        UserError: if the name or the severity is unknown, or the seed is below 0.
    """
    if name not in SHIFTS:
        raise UserError(f'Unknown shift "{name}". {nearest(name, SHIFTS)}')
    if not 1 <= severity <= MAX_SEVERITY:
        raise UserError(f"The severity of a shift is {severity}: choose 1 to {MAX_SEVERITY}.")
    if seed < 0:
        raise UserError(f"seed must be 0 or more, not {seed}.")
    settings = name if name == "grey" else f"{name} {severity}"
    if name == "noise":
        settings += f" seed {seed}"
    images = LazySequence(_Shifted(dataset.images, name, severity, seed), range(len(dataset)))
    return replace(
        dataset,
        name=f"{dataset.name} ({settings})",
        values={**dataset.values, "images": images},
        identity=derived(dataset.identity, settings),
    )


@dataclass(frozen=True)
class _Shifted:
    """Makes the image of a row. Picklable."""

    images: Sequence[Image.Image]
    name: str
    severity: int
    seed: int

    def __call__(self, row: int) -> Image.Image:
        rng = np.random.default_rng([self.seed, row])
        return SHIFTS[self.name](self.images[row], self.severity, rng)


def _blur(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    sigma = _strength(BLUR_SIGMA, severity, image)
    return image.filter(ImageFilter.GaussianBlur(sigma))


def _noise(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    sigma = 255 * _strength(NOISE_SIGMA, severity, image)
    noisy_HWC = np.asarray(image) + rng.normal(scale=sigma, size=(image.height, image.width, 3))
    return Image.fromarray(np.rint(noisy_HWC.clip(0, 255)).astype(np.uint8))


def _jpeg(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=round(_strength(JPEG_QUALITY, severity, image)))
    with Image.open(buffer) as compressed:
        return compressed.convert("RGB")


def _grey(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    return ImageOps.grayscale(image).convert("RGB")


SHIFTS: dict[str, Callable[[Image.Image, int, np.random.Generator], Image.Image]] = {
    "blur": _blur,
    "noise": _noise,
    "jpeg": _jpeg,
    "grey": _grey,
}


def _strength(table: Sequence[tuple[float, float]], severity: int, image: Image.Image) -> float:
    """Return small^(1-t) · large^t, with t from 0 at 32 px to 1 at 224 px, in log(side)."""
    small, large = table[severity - 1]
    side = min(max(min(image.size), SMALL), LARGE)
    t = math.log(side / SMALL) / math.log(LARGE / SMALL)
    return small * (large / small) ** t

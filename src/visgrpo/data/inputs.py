"""Input functions: from the row of a data set to the tensor that a model takes, changed or not."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from visgrpo.data.batches import InputFunction, cache_inputs, make_all
from visgrpo.data.preprocess import Preprocess
from visgrpo.data.roles import image_and_mask
from visgrpo.data.table import LazySequence, Table, derived
from visgrpo.errors import UserError, nearest

CACHE_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class PixelInputs:
    """Decode, change at random if asked to, and preprocess the image of a row. Picklable."""

    dataset: Table
    preprocess: Callable[[Image.Image], Tensor]
    augmentations: Sequence[str] = ()

    def __call__(self, index: int, rng: np.random.Generator) -> Tensor:
        image = self.dataset.images[index]
        if self.augmentations:
            image = augment(image, rng, self.augmentations)
        return self.preprocess(image)


def pixel_inputs(
    dataset: Table,
    preprocess: Callable[[Image.Image], Tensor],
    augmentations: Sequence[str] = (),
    *,
    budget_bytes: int = CACHE_BYTES,
) -> InputFunction:
    """Return the pixels of a data set; made once and kept where nothing changes and they fit."""
    inputs = PixelInputs(dataset, preprocess, tuple(augmentations))
    cached = None if augmentations else cache_inputs(inputs, len(dataset), budget_bytes)
    return inputs if cached is None else cached


@dataclass(frozen=True)
class SegmentationInputs:
    """Decode an image and its mask, change both alike if asked to, and preprocess. Picklable."""

    dataset: Table
    preprocess: Preprocess
    augmentations: Sequence[str] = ()

    def __call__(self, index: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return the pixels (3, H, W) and the class ids (H, W), of the data set's `mask_dtype`."""
        image, ids_HW = image_and_mask(self.dataset, index)
        if self.augmentations:
            image, ids_HW = augment_with_mask(image, ids_HW, rng, self.augmentations)
        return self.preprocess(image), self.preprocess.mask(ids_HW, self.dataset.ignore_index)


def segmentation_inputs(
    dataset: Table,
    preprocess: Preprocess,
    augmentations: Sequence[str] = (),
    *,
    budget_bytes: int = CACHE_BYTES,
) -> InputFunction:
    """Return the pixels and masks of a data set; kept where nothing changes and they fit."""
    inputs = SegmentationInputs(dataset, preprocess, tuple(augmentations))
    cached = None if augmentations else cache_inputs(inputs, len(dataset), budget_bytes)
    return inputs if cached is None else cached


def preprocessed_masks(dataset: Table, preprocess: Preprocess) -> Tensor:
    """Return all masks as they come out with their images: (M, H, W), of `mask_dtype`.

    They are the labels that belong to cached features of the images.

    Raises:
        UserError: as `Masks.value`, or if the masks differ in size.
    """

    def mask(index: int, rng: np.random.Generator) -> Tensor:
        return preprocess.mask(dataset.masks[index], dataset.ignore_index)

    return make_all(mask, len(dataset))[0]


CROP_SCALE = (0.6, 1.0)  # of the image's area
CROP_RATIO = (3 / 4, 4 / 3)  # width to height
JITTER = 0.4  # brightness, contrast and saturation are multiplied by 1 ± this much

Movement = Callable[[Image.Image, Image.Resampling], Image.Image]  # with the filter to use


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


def augment_with_mask(
    image: Image.Image, ids_HW: np.ndarray, rng: np.random.Generator, names: Sequence[str]
) -> tuple[Image.Image, np.ndarray]:
    """Return `image` as `augment` does, and its mask after the same crop and flip.

    Args:
        image: RGB.
        ids_HW: class ids of its pixels; each pixel of the result takes the nearest one's.
        rng: as for `augment`.
        names: as for `augment`; "color" leaves the mask alone.

    Raises:
        UserError: if a name is unknown.
    """
    # Pillow has no 16-bit signed mode.
    mask = Image.fromarray(ids_HW if ids_HW.dtype == np.uint8 else ids_HW.astype(np.int32))
    for name in check_augmentations(names):
        if name in GEOMETRIC:
            moved = GEOMETRIC[name](image.size, rng)
            image = moved(image, Image.Resampling.BICUBIC)
            mask = moved(mask, Image.Resampling.NEAREST)
        else:
            image = AUGMENTATIONS[name](image, rng)
    return image, np.asarray(mask).astype(ids_HW.dtype)


def check_augmentations(names: Sequence[str]) -> Sequence[str]:
    """Return `names`, so that a typo is found before the first image is.

    Raises:
        UserError: if a name is unknown.
    """
    for name in names:
        if name not in AUGMENTATIONS:
            raise UserError(f'Unknown augmentation "{name}". {nearest(name, AUGMENTATIONS)}')
    return names


def _crop(size: tuple[int, int], rng: np.random.Generator) -> Movement:
    full_width, full_height = size
    area = full_width * full_height * rng.uniform(*CROP_SCALE)
    # Uniform in the logarithm, so that 3:4 and 4:3 are equally likely.
    ratio = math.exp(rng.uniform(*np.log(CROP_RATIO)))
    width = min(full_width, max(1, round(math.sqrt(area * ratio))))
    height = min(full_height, max(1, round(math.sqrt(area / ratio))))
    left = int(rng.integers(full_width - width + 1))
    top = int(rng.integers(full_height - height + 1))
    box = (left, top, left + width, top + height)
    return lambda image, filter_: image.resize(size, resample=filter_, box=box)


def _flip(size: tuple[int, int], rng: np.random.Generator) -> Movement:
    mirrored = rng.random() < 0.5
    return lambda image, filter_: ImageOps.mirror(image) if mirrored else image


def _moved(
    draw: Callable[[tuple[int, int], np.random.Generator], Movement],
    image: Image.Image,
    rng: np.random.Generator,
) -> Image.Image:
    return draw(image.size, rng)(image, Image.Resampling.BICUBIC)


def _color(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(rng.uniform(1 - JITTER, 1 + JITTER))
    return image


# Drawn once from an image's (width, height), then done to the image and to its mask.
GEOMETRIC: dict[str, Callable[[tuple[int, int], np.random.Generator], Movement]] = {
    "crop": _crop,
    "flip": _flip,
}
AUGMENTATIONS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    **{name: partial(_moved, draw) for name, draw in GEOMETRIC.items()},
    "color": _color,
}


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

    dataset: Table
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

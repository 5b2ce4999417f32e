"""Input functions: from the row of a data set to the tensor that a model takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from visgrpo.data.augment import augment, augment_with_mask
from visgrpo.data.batches import InputFunction, cache_inputs, make_all
from visgrpo.data.preprocess import Preprocess
from visgrpo.data.roles import image_and_mask
from visgrpo.data.table import Table

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

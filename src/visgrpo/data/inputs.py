"""Input functions: from the row of a data set to the tensor that a model takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from visgrpo.data.augment import augment
from visgrpo.data.batches import InputFunction, cache_inputs
from visgrpo.data.dataset import ImageDataset

CACHE_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class PixelInputs:
    """Decode, change at random if asked to, and preprocess the image of a row. Picklable."""

    dataset: ImageDataset
    preprocess: Callable[[Image.Image], Tensor]
    augmentations: Sequence[str] = ()

    def __call__(self, index: int, rng: np.random.Generator) -> Tensor:
        image = self.dataset.images[index]
        if self.augmentations:
            image = augment(image, rng, self.augmentations)
        return self.preprocess(image)


def pixel_inputs(
    dataset: ImageDataset,
    preprocess: Callable[[Image.Image], Tensor],
    augmentations: Sequence[str] = (),
    *,
    budget_bytes: int = CACHE_BYTES,
) -> InputFunction:
    """Return the pixels of a data set; made once and kept where nothing changes and they fit."""
    if not augmentations:
        cached = cache_inputs(dataset, preprocess, budget_bytes)
        if cached is not None:
            return cached
    return PixelInputs(dataset, preprocess, tuple(augmentations))

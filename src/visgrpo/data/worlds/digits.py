"""Handwritten digits that ship inside scikit-learn: 1797 real images, no download."""

from __future__ import annotations

import numpy as np
from PIL import Image

from visgrpo.data.roles import image_table
from visgrpo.data.split import Source, divide
from visgrpo.data.table import Splits, of_bytes
from visgrpo.data.worlds.scenes import NUMBER_WORDS
from visgrpo.errors import UserError

CLASSES = NUMBER_WORDS[:10]
SIDE = 32  # pixels after upscaling; the originals are 8 × 8


def digits_splits(seed: int = 0, validation_fraction: float = 0.1) -> Splits:
    """Return scikit-learn's digits as 32 × 32 RGB images in three stratified splits.

    The test split (20 %) is always the same; `seed` chooses the validation images from the rest.
    Besides the labels there is a `caption` column ("a photo of the digit three").

    Args:
        seed: 0 or more.
        validation_fraction: share of the images outside the test split, between 0 and 1.

    Raises:
        UserError: if the fraction is not between 0 and 1.
    """
    if not 0 < validation_fraction < 1:
        raise UserError(
            f"validation_fraction is {validation_fraction}; choose a share between 0 and 1."
        )
    # Imported here: scikit-learn takes a second to load and other data does not need it.
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = [_image(pixels_HW) for pixels_HW in digits.images]
    everything = image_table(
        name="digits",
        classes=CLASSES,
        labels=digits.target,
        images=images,
        columns={"caption": [f"a photo of the digit {CLASSES[label]}" for label in digits.target]},
        identity=of_bytes("digits", (image.tobytes() for image in images)),
    )
    # `divide` makes the test split the same for every seed.
    return divide(
        Source("digits", {"all": everything}),
        fraction=validation_fraction,
        seed=seed,
    )


def _image(pixels_HW: np.ndarray) -> Image.Image:
    """Return an 8 × 8 array of ink (0 to 16) as an RGB image, white on black."""
    grey = Image.fromarray(np.rint(pixels_HW * (255 / 16)).astype(np.uint8))
    return grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")

"""What feedback says about a label of an image: a mean, and how sure."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from visgrpo.errors import UserError
from visgrpo.feedback.worth.cells import VANISHED, Floats, Whole

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Posterior:
    """What each label of each image is worth, as far as feedback tells.

    Attributes:
        mean_MK: posterior means; the prior's mean where the pair is unknown.
        sd_MK: posterior standard deviations; the prior's where the pair is unknown.
        known_MK: whether there was feedback about the pair (bool).

    Raises:
        UserError: the shapes differ, or a number is no finite one, or a deviation is below 0.
    """

    mean_MK: Floats
    sd_MK: Floats
    known_MK: Bools

    def __post_init__(self) -> None:
        shapes = {self.mean_MK.shape, self.sd_MK.shape, self.known_MK.shape}
        if len(shapes) != 1 or self.mean_MK.ndim != 2:
            raise UserError(
                f"Shapes do not fit: means {self.mean_MK.shape}, deviations {self.sd_MK.shape}, "
                f"known pairs {self.known_MK.shape}; expected (M, K) for all."
            )
        if not (np.isfinite(self.mean_MK).all() and np.isfinite(self.sd_MK).all()):
            raise UserError("A mean or deviation of a reward is NaN or infinite.")
        if (self.sd_MK < 0).any():
            raise UserError("A standard deviation of a reward is below 0.")

    def pessimistic(self, z: float) -> Posterior:
        """Return the lower bounds mean - z·sd as means; z = 0 changes nothing.

        Raises:
            UserError: z is below 0 or no finite number.
        """
        if not (np.isfinite(z) and z >= 0):
            raise UserError(f"Pessimism is a number of standard deviations ≥ 0, not {z:g}.")
        return replace(self, mean_MK=self.mean_MK - z * self.sd_MK)


def scatter(image_C: Whole, label_C: Whole, value_C: Floats, images: int, classes: int) -> Floats:
    """Return the table (M, K) of the cells' values; those of one pair are added, no cell is 0.

    Raises:
        UserError: an image or label lies outside the table.
    """
    outside_C = (image_C < 0) | (image_C >= images) | (label_C < 0) | (label_C >= classes)
    if outside_C.any():
        image, label = image_C[outside_C][0], label_C[outside_C][0]
        raise UserError(
            f"Feedback about image {image} and label {label}, of {images} images and {classes} "
            "labels (counted from 0)."
        )
    return add_up(image_C * classes + label_C, value_C, images * classes).reshape(images, classes)


def add_up(slot_C: Whole, value_C: Floats, slots: int) -> Floats:
    """Return the sum of the values in each of so many slots, 0 where there is none."""
    return np.bincount(slot_C, weights=value_C, minlength=slots).astype(np.float64, copy=False)


def check_weight(total: float) -> None:
    """Raise `UserError` if a half-life has left nothing of what there is to learn from."""
    if 0 < total < VANISHED:
        raise UserError(
            "All feedback on the images to learn from is so much older than the latest event that "
            "--half-life leaves nothing of it: take a longer one, in seconds."
        )


def check_prior(strength: float, name: str = "prior strength") -> None:
    """Raise `UserError` unless the strength of a prior is a finite number above 0."""
    if not (np.isfinite(strength) and strength > 0):
        raise UserError(f"The {name} is {strength:g}: it must be a number above 0.")

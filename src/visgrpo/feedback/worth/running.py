"""Running averages for streams of feedback: what was said lately counts most."""

from __future__ import annotations

import numpy as np

from visgrpo.errors import UserError
from visgrpo.feedback.worth.cells import Floats, ImpressionCells, Whole
from visgrpo.feedback.worth.posterior import Bools, scatter


class RunningAverage:
    """Weighted counts and totals for every (image, label), updated batch by batch.

    An event at time t counts 2^(-(T - t)/h), with T the latest time so far and h the half-life. The
    order of events and batches makes no difference: late arrivals get the weight of their time.

    Args:
        images: M.
        classes: K.
        half_life: h, in seconds.

    Attributes:
        count_MK: effective number of events, Σ weight · count.
        total_MK: Σ weight · total.
        time: T, in seconds; None before the first event.

    Raises:
        UserError: the half-life is not above 0.
    """

    def __init__(self, images: int, classes: int, *, half_life: float) -> None:
        if not (np.isfinite(half_life) and half_life > 0):
            raise UserError(f"The half-life is {half_life:g} seconds: it must be above 0.")
        self.half_life = half_life
        self.count_MK: Floats = np.zeros((images, classes))
        self.total_MK: Floats = np.zeros((images, classes))
        self.time: float | None = None

    def update(
        self, image_B: Whole, label_B: Whole, count_B: Floats, total_B: Floats, time_B: Floats
    ) -> None:
        """Add a batch of B events.

        Args:
            image_B: rows of the data.
            label_B: class ids.
            count_B: how many observations an event stands for: times shown, or 1.
            total_B: their sum: clicks, or a grade.
            time_B: seconds.

        Raises:
            UserError: a time is NaN or infinite, or an image or label lies outside the table.
        """
        if not len(time_B):
            return
        if not np.isfinite(time_B).all():
            raise UserError("The time of an event is NaN or infinite.")
        latest = float(time_B.max())
        now = latest if self.time is None else max(self.time, latest)
        weight_B = np.exp2((time_B - now) / self.half_life)
        images, classes = self.count_MK.shape
        count_MK = scatter(image_B, label_B, weight_B * count_B, images, classes)
        total_MK = scatter(image_B, label_B, weight_B * total_B, images, classes)
        faded = 1.0 if self.time is None else np.exp2((self.time - now) / self.half_life)
        self.count_MK = faded * self.count_MK + count_MK
        self.total_MK = faded * self.total_MK + total_MK
        self.time = now

    @property
    def known_MK(self) -> Bools:
        """Pairs with events (bool)."""
        return self.count_MK > 0

    def means(self, unknown: float) -> Floats:
        """Return total / count for every (image, label), and `unknown` where there is no event."""
        mean_MK = np.full(self.count_MK.shape, unknown, dtype=np.float64)
        return np.divide(self.total_MK, self.count_MK, out=mean_MK, where=self.known_MK)

    def cells(self) -> ImpressionCells:
        """Return counts and totals as times shown and clicked, without positions."""
        image_C, label_C = np.nonzero(self.known_MK)
        return ImpressionCells(
            image_C=image_C,
            label_C=label_C,
            position_C=np.zeros(len(image_C), dtype=np.int64),
            shown_C=self.count_MK[image_C, label_C],
            clicked_C=self.total_MK[image_C, label_C],
        )

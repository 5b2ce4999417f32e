"""What feedback says about a label of an image: a mean, and how sure.

Of votes (the share of people who choose a label, or its log), of measured values (dwell times and
grades), and as running averages for streams, where what was said lately counts most.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma, zeta

from visgrpo.errors import UserError
from visgrpo.feedback.worth.cells import (
    VANISHED,
    Floats,
    ImpressionCells,
    ValueCells,
    VoteCells,
    Whole,
)

Bools = NDArray[np.bool_]
SMALLEST_SD = 1e-6
"""Of single values: feedback that never varies is still not beyond doubt."""


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


def share_posterior(cells: VoteCells, images: int, classes: int, *, prior: float) -> Posterior:
    """Return the posterior of the share of votes of every (image, label).

    The shares of an image's K labels have a symmetric Dirichlet prior of a votes for each label;
    n_k votes for label k, N in all, make the posterior Dirichlet(n_1 + a, …, n_K + a). Any vote
    about an image is feedback about all its labels: those without votes were passed over. Images
    without votes are unknown throughout and hold the prior.

        mean = (n_k + a)/(N + K·a),    sd = √(mean·(1 - mean)/(N + K·a + 1))

    Args:
        cells: votes, summed over users; they may be fractional (weighted raters).
        images: M.
        classes: K.
        prior: a, votes for every label that the prior counts for.

    Raises:
        UserError: the prior is not above 0, or there are no votes.
    """
    mean_MK, known_MK = _dirichlet(cells, images, classes, prior)
    total_M1 = mean_MK.sum(axis=1, keepdims=True)
    mean_MK /= total_M1  # in place, here and below: tables of all pairs are large
    sd_MK = 1 - mean_MK
    sd_MK *= mean_MK
    sd_MK /= total_M1 + 1
    return Posterior(mean_MK, np.sqrt(sd_MK, out=sd_MK), known_MK)


def log_share_posterior(cells: VoteCells, images: int, classes: int, *, prior: float) -> Posterior:
    """Return the posterior of the log share of votes of every (image, label).

    With the digamma function ψ and its derivative ψ':

        mean = ψ(n_k + a) - ψ(N + K·a),    sd = √(ψ'(n_k + a) - ψ'(N + K·a))

    Arguments and errors as for `share_posterior`.
    """
    alpha_MK, known_MK = _dirichlet(cells, images, classes, prior)
    total_M1 = alpha_MK.sum(axis=1, keepdims=True)
    mean_MK = digamma(alpha_MK)
    mean_MK -= digamma(total_M1)
    # ψ'(x) = ζ(2, x) falls, so the difference is ≥ 0; with one label it is 0.
    sd_MK = zeta(2, alpha_MK, out=alpha_MK)
    sd_MK -= zeta(2, total_M1)
    return Posterior(mean_MK, np.sqrt(sd_MK, out=sd_MK), known_MK)


def _dirichlet(cells: VoteCells, images: int, classes: int, prior: float) -> tuple[Floats, Bools]:
    check_prior(prior, "prior")
    votes_MK = scatter(cells.image_C, cells.label_C, cells.votes_C, images, classes)
    known_M = votes_MK.sum(axis=1) > 0
    if not known_M.any():
        raise UserError("There are no votes to learn from.")
    votes_MK += prior
    return votes_MK, np.repeat(known_M[:, None], classes, axis=1)


def value_posterior(
    cells: ValueCells, images: int, classes: int, *, prior_strength: float
) -> Posterior:
    """Return the normal posterior of the mean value of every (image, label).

    With n values of sum S about a pair, the mean m0 of all values, the deviation s of single values
    about their pair's mean, and κ = `prior_strength`:

        mean = (κ·m0 + S)/(κ + n),    sd = s/√(κ + n)

    which is the posterior under normal values and the prior N(m0, s²/κ); pairs without values hold
    that prior. s² is pooled over the pairs with more than one value, Σ(squares - S²/n) / Σ(n - 1).
    Where there is no such pair, s is the deviation of all values about m0, which is an upper bound.
    With fractional counts (a half-life) s errs upwards as well.

    Args:
        cells: counts, sums and sums of squares.
        images: M.
        classes: K.
        prior_strength: values that the prior counts for.

    Raises:
        UserError: the prior is not above 0, there are no values, or a half-life leaves nothing of
            them.
    """
    check_prior(prior_strength)
    tables = (cells.count_C, cells.sum_C, cells.square_C)
    count_MK, sum_MK, square_MK = (
        scatter(cells.image_C, cells.label_C, value_C, images, classes) for value_C in tables
    )
    if not count_MK.any():
        raise UserError("There are no values to learn from.")
    check_weight(float(count_MK.sum()))
    m0 = float(sum_MK.sum() / count_MK.sum())
    s = _deviation(count_MK, sum_MK, square_MK)
    del square_MK  # from here on in place: tables of all pairs are large
    known_MK = count_MK > 0
    count_MK += prior_strength
    sum_MK += prior_strength * m0
    sum_MK /= count_MK
    sd_MK = np.sqrt(count_MK, out=count_MK)
    return Posterior(sum_MK, np.divide(s, sd_MK, out=sd_MK), known_MK)


def _deviation(count_MK: Floats, sum_MK: Floats, square_MK: Floats) -> float:
    several_MK = count_MK > 1
    n, sums, squares = count_MK[several_MK], sum_MK[several_MK], square_MK[several_MK]
    if len(n):
        variance = (squares - sums**2 / n).sum() / (n - 1).sum()
    else:
        total = count_MK.sum()
        variance = square_MK.sum() / total - (sum_MK.sum() / total) ** 2
    return max(SMALLEST_SD, float(np.sqrt(max(0.0, variance))))


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

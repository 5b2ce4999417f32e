"""What a label of an image is worth by measured values: dwell times and grades."""

from __future__ import annotations

import numpy as np

from visgrpo.errors import UserError
from visgrpo.feedback.worth.cells import Floats, ValueCells
from visgrpo.feedback.worth.posterior import Posterior, check_prior, check_weight, scatter

SMALLEST_SD = 1e-6
"""Of single values: feedback that never varies is still not beyond doubt."""


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

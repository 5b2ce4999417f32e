"""Shrunken means of measured values, against the normal model by hand and by simulation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from visgrpo.errors import UserError
from visgrpo.feedback.worth.cells import ValueCells
from visgrpo.feedback.worth.posterior import SMALLEST_SD, value_posterior


def cells_of(values: dict[tuple[int, int], list[float]]) -> ValueCells:
    image, label = np.array(list(values)).T
    lists = [np.array(some) for some in values.values()]
    count = np.array([len(some) for some in lists], dtype=float)
    sums = np.array([some.sum() for some in lists])
    squares = np.array([(some**2).sum() for some in lists])
    return ValueCells(image, label, count, sums, squares)


def test_by_hand() -> None:
    # Mean of all 18/6 = 3; within pairs (1 + 1) + (0 + 0 + 0) squares over 1 + 2, s² = 2/3.
    posterior = value_posterior(
        cells_of({(0, 0): [1, 3], (1, 1): [4, 4, 4], (1, 0): [2]}), 2, 2, prior_strength=2
    )
    assert posterior.mean_MK[0].tolist() == pytest.approx([(6 + 4) / 4, 3])
    assert posterior.mean_MK[1].tolist() == pytest.approx([(6 + 2) / 3, (6 + 12) / 5])
    variances = [[2 / 3 / 4, 2 / 3 / 2], [2 / 3 / 3, 2 / 3 / 5]]
    np.testing.assert_allclose(posterior.sd_MK**2, variances)
    assert posterior.known_MK.tolist() == [[True, False], [True, True]]


def test_single_values_take_the_deviation_of_all() -> None:
    posterior = value_posterior(cells_of({(0, 0): [1], (0, 1): [3]}), 1, 2, prior_strength=1)
    assert posterior.mean_MK.tolist() == [[1.5, 2.5]]
    assert posterior.sd_MK.tolist() == pytest.approx(np.full((1, 2), np.sqrt(1 / 2)))


def test_values_that_never_vary_keep_a_little_doubt() -> None:
    posterior = value_posterior(cells_of({(0, 0): [5, 5]}), 1, 1, prior_strength=2)
    assert posterior.sd_MK[0, 0] == pytest.approx(SMALLEST_SD / 2)


def test_intervals_cover_the_truth() -> None:
    """Means drawn from N(2, 0.5²), values from N(mean, 1): κ = 1/0.25 is the right prior."""
    rng = np.random.default_rng(0)
    truth = rng.normal(2, 0.5, (2000, 5))
    count = rng.integers(1, 10, truth.shape)
    image, label = np.divmod(np.repeat(np.arange(truth.size), count.ravel()), 5)
    value = rng.normal(truth[image, label], 1)
    ones = np.ones(len(value))
    cells = ValueCells(image, label, ones, value, value**2)  # cells of a pair are added
    posterior = value_posterior(cells, 2000, 5, prior_strength=4)
    inside = np.abs(posterior.mean_MK - truth) < 1.96 * posterior.sd_MK
    assert inside.mean() == pytest.approx(0.95, abs=0.01)


def test_what_it_refuses() -> None:
    cells = cells_of({(0, 0): [1]})
    with pytest.raises(UserError, match="prior strength is 0"):
        value_posterior(cells, 1, 1, prior_strength=0)
    with pytest.raises(UserError, match="--half-life leaves nothing of it"):
        value_posterior(replace(cells, count_C=np.array([1e-9])), 1, 1, prior_strength=1)
    nothing = ValueCells(*np.zeros((2, 1), dtype=np.int64), *np.zeros((3, 1)))
    with pytest.raises(UserError, match="no values"):
        value_posterior(nothing, 1, 1, prior_strength=1)

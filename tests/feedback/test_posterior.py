"""Posteriors over (image, label), and tables made from cells."""

from __future__ import annotations

import numpy as np
import pytest

from visgrpo.errors import UserError
from visgrpo.feedback.worth.posterior import Posterior, check_prior, scatter

KNOWN = np.array([[True, False], [True, True]])


def test_pessimism_takes_deviations_off() -> None:
    posterior = Posterior(np.array([[1.0, 2], [3, 4]]), np.array([[0.5, 1], [0, 2]]), KNOWN)
    lower = posterior.pessimistic(1.5)
    assert lower.mean_MK.tolist() == [[0.25, 0.5], [3, 1]]
    assert lower.sd_MK is posterior.sd_MK
    assert lower.known_MK is KNOWN
    assert np.array_equal(posterior.pessimistic(0).mean_MK, posterior.mean_MK)


@pytest.mark.parametrize("z", [-1.0, float("nan"), float("inf")])
def test_pessimism_is_a_number_from_0(z: float) -> None:
    posterior = Posterior(np.zeros((2, 2)), np.ones((2, 2)), KNOWN)
    with pytest.raises(UserError, match="number of standard deviations ≥ 0"):
        posterior.pessimistic(z)


@pytest.mark.parametrize(
    ("mean", "sd", "message"),
    [
        (np.zeros((2, 3)), np.ones((2, 2)), r"Shapes do not fit: means \(2, 3\)"),
        (np.zeros(2), np.ones(2), "Shapes do not fit"),
        (np.full((2, 2), np.nan), np.ones((2, 2)), "NaN or infinite"),
        (np.zeros((2, 2)), np.full((2, 2), np.inf), "NaN or infinite"),
        (np.zeros((2, 2)), np.full((2, 2), -1.0), "below 0"),
    ],
)
def test_what_is_no_posterior(mean: np.ndarray, sd: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Posterior(mean, sd, KNOWN)


def test_cells_of_one_pair_are_added() -> None:
    image, label = np.array([1, 0, 1]), np.array([2, 0, 2])
    table = scatter(image, label, np.array([0.5, 3, 2]), 3, 3)
    assert table.tolist() == [[3, 0, 0], [0, 0, 2.5], [0, 0, 0]]


@pytest.mark.parametrize(("image", "label"), [(3, 0), (0, 2), (-1, 0), (0, -1)])
def test_cells_outside_the_table(image: int, label: int) -> None:
    with pytest.raises(UserError, match=f"image {image} and label {label}, of 3 images and 2"):
        scatter(np.array([image]), np.array([label]), np.ones(1), 3, 2)


@pytest.mark.parametrize("strength", [0.0, -1.0, float("nan"), float("inf")])
def test_priors_count_for_something(strength: float) -> None:
    with pytest.raises(UserError, match=r"prior strength is .*: it must be a number above 0"):
        check_prior(strength)

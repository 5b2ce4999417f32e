"""Confidence sequences: against an integral, and against looking after every value."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from visgrpo.collecting.anytime import Tally, difference, reach


@pytest.mark.parametrize("count", [1, 30, 400])
def test_at_its_edge_the_mixture_is_what_ville_allows(count: int) -> None:
    """∫ exp(λS - λ²v/2) N(λ; 0, 1/ρ) dλ = 1/α, integrated by quadrature."""
    total, v, rho = count * reach(count, 0.05), count / 4, 2.5
    peak, width = total / (v + rho), 1 / math.sqrt(v + rho)

    def mixed(away: float) -> float:
        weight = norm.pdf(away, 0, 1 / math.sqrt(rho))
        return math.exp(away * total - away**2 * v / 2) * float(weight)

    area, _ = quad(mixed, peak - 12 * width, peak + 12 * width)
    assert area == pytest.approx(1 / 0.05, rel=1e-6)


def test_looking_after_every_judgement_misleads_in_at_most_five_percent() -> None:
    """2,000 studies of two equal models, looked at 500 times each; a 95 % interval of today would
    mislead in far more."""
    rng = np.random.default_rng(0)
    counts = np.arange(1, 501)
    first_SN, second_SN = (
        np.cumsum(rng.random((2000, 500)) < 0.5, axis=1) / counts for _ in range(2)
    )
    far_N = np.array([2 * reach(count, 0.025) for count in counts.tolist()])
    change_SN = np.abs(second_SN - first_SN)
    misled = (change_SN > far_N).any(axis=1).mean()
    assert misled <= 0.05
    naive_N = 1.96 * np.sqrt(0.5 / counts)
    assert (change_SN[:, 20:] > naive_N[20:]).any(axis=1).mean() > 0.2


def test_one_side_alone_is_covered_at_all_times() -> None:
    rng = np.random.default_rng(1)
    counts = np.arange(1, 1001)
    drift_N = 0.5 + 0.4 * np.sin(counts / 150)  # a model that goes on learning
    seen_SN = np.cumsum(rng.random((1000, 1000)) < drift_N, axis=1) / counts
    far_N = np.array([reach(count) for count in counts.tolist()])
    truth_N = np.cumsum(drift_N) / counts
    left = (np.abs(seen_SN - truth_N) > far_N).any(axis=1).mean()
    assert left <= 0.05


def test_a_difference_is_around_the_change_of_means_and_no_wider_than_can_be() -> None:
    change, low, high = difference(Tally(1000, 0.5), Tally(1000, 0.75))
    assert change == 0.25
    assert low == pytest.approx(0.25 - 2 * reach(1000, 0.025))
    assert high == pytest.approx(0.25 + 2 * reach(1000, 0.025))
    assert low > 0  # enough to be sure
    wide = difference(Tally(1000, 1.0), Tally(1000, 2.0), span=4.0)
    assert wide[2] - wide[0] == pytest.approx(4 * 2 * reach(1000, 0.025))
    assert difference(Tally(1, 1.0), Tally(1, 5.0), span=4.0)[2] == 4.0

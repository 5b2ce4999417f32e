"""Vote shares and their logs, against scipy's Dirichlet and by drawing from it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import dirichlet

from visgrpo.errors import UserError
from visgrpo.feedback.worth.cells import VoteCells
from visgrpo.feedback.worth.posterior import log_share_posterior, share_posterior

CELLS = VoteCells(np.array([0, 0, 2]), np.array([0, 2, 1]), np.array([7.0, 2, 1.5]))
ALPHAS = np.array([[7.5, 0.5, 2.5], [0.5, 0.5, 0.5], [0.5, 2, 0.5]])
KNOWN = [[True] * 3, [False] * 3, [True] * 3]


def test_shares_are_the_dirichlet_mean_and_deviation() -> None:
    posterior = share_posterior(CELLS, 3, 3, prior=0.5)
    for m, alpha in enumerate(ALPHAS):
        np.testing.assert_allclose(posterior.mean_MK[m], dirichlet.mean(alpha))
        np.testing.assert_allclose(posterior.sd_MK[m] ** 2, dirichlet.var(alpha))
    assert posterior.known_MK.tolist() == KNOWN


def test_log_shares_by_drawing() -> None:
    posterior = log_share_posterior(CELLS, 3, 3, prior=0.5)
    for m, alpha in enumerate(ALPHAS[:1]):
        logs = np.log(np.random.default_rng(m).dirichlet(alpha, 200_000))
        np.testing.assert_allclose(posterior.mean_MK[m], logs.mean(axis=0), atol=0.02)
        np.testing.assert_allclose(posterior.sd_MK[m], logs.std(axis=0), rtol=0.02)
    assert posterior.known_MK.tolist() == KNOWN


def test_log_shares_closed_form() -> None:
    # ψ(2) - ψ(3) = -1/2, ψ(1) - ψ(3) = -3/2; ψ'(2) - ψ'(3) = 1/4, ψ'(1) - ψ'(3) = 5/4.
    cells = VoteCells(np.array([0]), np.array([0]), np.array([1.0]))
    posterior = log_share_posterior(cells, 1, 2, prior=1)
    assert posterior.mean_MK[0].tolist() == pytest.approx([-0.5, -1.5])
    assert posterior.sd_MK[0].tolist() == pytest.approx([0.5, np.sqrt(1.25)])


def test_many_votes_end_at_the_people_s_shares() -> None:
    cells = VoteCells(np.zeros(3, dtype=np.int64), np.arange(3), np.array([6e6, 3e6, 1e6]))
    share, log_share = (f(cells, 1, 3, prior=1) for f in (share_posterior, log_share_posterior))
    np.testing.assert_allclose(share.mean_MK, [[0.6, 0.3, 0.1]], atol=1e-6)
    np.testing.assert_allclose(np.exp(log_share.mean_MK), [[0.6, 0.3, 0.1]], atol=1e-6)
    assert log_share.sd_MK.max() < 0.002


def test_what_they_refuse() -> None:
    with pytest.raises(UserError, match="The prior is 0"):
        share_posterior(CELLS, 3, 3, prior=0)
    with pytest.raises(UserError, match="no votes"):
        log_share_posterior(VoteCells(*np.zeros((3, 1), dtype=np.int64)), 1, 1, prior=1)

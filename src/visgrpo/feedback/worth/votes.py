"""What a label of an image is worth by votes: the share of people who choose it, or its log.

The shares of an image's K labels have a symmetric Dirichlet prior of `prior` votes for each label;
n_k votes for label k, N in all, make the posterior Dirichlet(n_1 + a, …, n_K + a), a = `prior`.
Any vote about an image is feedback about all its labels: those without votes were passed over.
Images without votes are unknown throughout and hold the prior.
"""

from __future__ import annotations

import numpy as np
from scipy.special import digamma, zeta

from visgrpo.errors import UserError
from visgrpo.feedback.worth.cells import Floats, VoteCells
from visgrpo.feedback.worth.posterior import Bools, Posterior, check_prior, scatter


def share_posterior(cells: VoteCells, images: int, classes: int, *, prior: float) -> Posterior:
    """Return the posterior of the share of votes of every (image, label).

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

"""Whom to believe: the error rates of raters, and the true labels, from votes alone.

Dawid & Skene (1979), "Maximum likelihood estimation of observer error-rates using the EM
algorithm": an image has one true label k, drawn from a class prior p; rater u answers l with
probability c_(u, k, l), each vote on its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.special import logsumexp

from visgrpo.errors import UserError
from visgrpo.feedback.cells import Floats, RaterVotes, VoteCells
from visgrpo.feedback.posterior import Bools, Posterior, check_prior, scatter

SMOOTHING = 0.1
MOST_ITERATIONS = 500
MOST_NUMBERS = 2**27
"""Numbers of all confusion matrices together: 1 GiB."""


@dataclass(frozen=True)
class Raters:
    """What the votes say about labels and about those who voted.

    Attributes:
        share_MK: posterior probability that a label is the image's true one; 1/K without votes.
        known_M: images with votes (bool).
        prior_K: share of the classes among the true labels.
        confusion_UKK: probability of every answer (last) of a rater to every true label.
        reliability_U: expected probability of a right answer, Σ_k p_k c_(u, k, k).
        weight_U: what of that is more than chance, Cohen's κ of the rater's answers with the true
            labels, (reliability - chance)/(1 - chance) with chance = Σ_k p_k Σ_j p_j c_(u, j, k);
            0 at least. A rater who always gives the same answer has 0, however frequent it is.
        objective: after each iteration, the log likelihood plus the log prior; it never falls.
        converged: whether the shares stood still at the end.
    """

    share_MK: Floats
    known_M: Bools
    prior_K: Floats
    confusion_UKK: Floats
    reliability_U: Floats
    weight_U: Floats
    objective: tuple[float, ...]
    converged: bool


def dawid_skene(
    votes: RaterVotes,
    images: int,
    classes: int,
    *,
    smoothing: float = SMOOTHING,
    most_iterations: int = MOST_ITERATIONS,
    tolerance: float = 1e-6,
) -> Raters:
    """Estimate true labels and raters' error rates by EM, from the shares of votes.

    Args:
        votes: who voted for what, and how often.
        images: M.
        classes: K.
        smoothing: votes added to every cell of every rater's confusion matrix, and images to every
            class of the prior (the mode under Dirichlet(1 + smoothing) priors). A rater of few
            votes stays near 1/K, and so counts for little.
        most_iterations: of EM.
        tolerance: change of the shares at which EM ends.

    Raises:
        UserError: votes have no users, the smoothing is not above 0, or there are too many raters
            for the number of classes.
    """
    check_prior(smoothing, "smoothing of raters' confusions")
    U, K = len(votes.users), classes
    if U == 0:
        raise UserError("Votes have no column user, so raters cannot be told apart: --raters none.")
    if U * K * K > MOST_NUMBERS:
        raise UserError(
            f"The confusions of {U} raters over {K} classes do not fit in memory: --raters none."
        )
    table_MK = scatter(votes.image_V, votes.label_V, votes.votes_V, images, K)
    known_M = table_MK.sum(axis=1) > 0
    if not known_M.any():
        raise UserError("There are no votes to learn from.")
    # Row: an image; column: a rater and an answer. Both steps of EM are products with it.
    columns_V = votes.user_V * K + votes.label_V
    votes_MA = csr_array((votes.votes_V, (votes.image_V, columns_V)), shape=(images, U * K))
    votes_NA = votes_MA[known_M]
    share_NK = table_MK[known_M] / table_MK[known_M].sum(axis=1, keepdims=True)

    objective: list[float] = []
    converged = False
    while not converged and len(objective) < most_iterations:
        log_prior_K, log_confusion_UKK = _maximise(votes_NA, share_NK, U, smoothing)
        # (U, answer, truth) in rows of (U, answer), to fit the columns of the votes.
        by_answer_AK = log_confusion_UKK.swapaxes(1, 2).reshape(U * K, K)
        log_joint_NK = log_prior_K + votes_NA @ by_answer_AK
        evidence_N1 = logsumexp(log_joint_NK, axis=1, keepdims=True)
        before_NK, share_NK = share_NK, np.exp(log_joint_NK - evidence_N1)
        prior = smoothing * (log_prior_K.sum() + log_confusion_UKK.sum())
        objective.append(float(evidence_N1.sum() + prior))
        converged = bool(np.abs(share_NK - before_NK).max() < tolerance)
    share_MK = np.full((images, K), 1 / K)
    share_MK[known_M] = share_NK
    prior_K, confusion_UKK = np.exp(log_prior_K), np.exp(log_confusion_UKK)
    reliability_U = np.einsum("k,ukk->u", prior_K, confusion_UKK)
    return Raters(
        share_MK=share_MK,
        known_M=known_M,
        prior_K=prior_K,
        confusion_UKK=confusion_UKK,
        reliability_U=reliability_U,
        weight_U=_above_chance(prior_K, confusion_UKK, reliability_U),
        objective=tuple(objective),
        converged=converged,
    )


def posterior_of_raters(raters: Raters) -> Posterior:
    """Return the posterior of "this label is the true one": mean p, sd √(p(1 - p))."""
    known_MK = np.repeat(raters.known_M[:, None], raters.share_MK.shape[1], axis=1)
    sd_MK = np.sqrt(raters.share_MK * (1 - raters.share_MK))
    return Posterior(raters.share_MK, sd_MK, known_MK)


def weighted_votes(votes: RaterVotes, raters: Raters, images: int, classes: int) -> VoteCells:
    """Return votes summed over raters, each vote counted by its rater's `weight_U`.

    For shares and log shares of votes: they keep the disagreement of people who can be relied on,
    which the posterior of one true label does not.

    Raises:
        UserError: no rater answers better than by chance.
    """
    if not raters.weight_U.any():
        raise UserError("No rater answers better than by chance: --raters none.")
    weight_V = votes.votes_V * raters.weight_U[votes.user_V]
    votes_MK = scatter(votes.image_V, votes.label_V, weight_V, images, classes)
    image_C, label_C = np.nonzero(votes_MK)
    return VoteCells(image_C=image_C, label_C=label_C, votes_C=votes_MK[image_C, label_C])


def _maximise(
    votes_NA: csr_array, share_NK: Floats, U: int, smoothing: float
) -> tuple[Floats, Floats]:
    """Return the log class prior and log confusions (U, truth, answer) given the shares."""
    K = share_NK.shape[1]
    prior_K = share_NK.sum(axis=0) + smoothing
    answers_AK = votes_NA.T @ share_NK + smoothing
    confusion_UKK = answers_AK.reshape(U, K, K).swapaxes(1, 2)
    log_confusion_UKK = np.log(confusion_UKK / confusion_UKK.sum(axis=2, keepdims=True))
    return np.log(prior_K / prior_K.sum()), log_confusion_UKK


def _above_chance(prior_K: Floats, confusion_UKK: Floats, reliability_U: Floats) -> Floats:
    answers_UK = np.einsum("j,ujk->uk", prior_K, confusion_UKK)
    chance_U = answers_UK @ prior_K  # below 1, since smoothing keeps every answer possible
    return ((reliability_U - chance_U) / (1 - chance_U)).clip(min=0)

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
from visgrpo.feedback.worth.cells import Floats, RaterVotes, VoteCells
from visgrpo.feedback.worth.posterior import Bools, Posterior, add_up, check_prior, scatter

SMOOTHING = 1.0
MOST_ITERATIONS = 500
LEAST_WEIGHT = 0.01
MOST_NUMBERS = 2**27
"""Numbers of all confusion matrices together: 1 GiB, of which EM holds three at a time."""


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

    @property
    def counts_U(self) -> Bools:
        """Whose votes count for something: the others' weight is that of chance, and rounding."""
        return self.weight_U >= LEAST_WEIGHT


@dataclass(frozen=True)
class _Fit:
    """Where EM ended. A column of A = U·K is a rater and an answer, as in the votes."""

    share_NK: Floats
    prior_K: Floats
    confusion_UKK: Floats
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

    A rater's votes are far fewer than the K² cells of a confusion matrix, so these are smoothed
    towards what can be known. EM runs twice: once with all raters taken for one, and then with
    every rater's own matrix, whose prior is Dirichlet(1 + s·b) in each row, s = `smoothing`, and

        b_(u, k, ·) ∝ the matrix of all raters, with the odds of the right answer times o_u/o

    for o and o_u the odds of a right answer of all raters and of this one, whose own votes are
    counted together with s votes of all raters. A rater of whom little is known is like the others;
    one whose few answers are wrong is expected to be wrong about other labels too. The prior is
    fixed before the second run, so that its EM climbs one objective.

    Args:
        votes: who voted for what, and how often.
        images: M.
        classes: K.
        smoothing: votes added to every row of every rater's confusion matrix, in the proportions b;
            to every row of that of all raters, and images to the class prior, in equal parts.
        most_iterations: of each run of EM.
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
    votes_NA, table_NK = votes_MA[known_M], table_MK[known_M]
    share_NK = table_NK / table_NK.sum(axis=1, keepdims=True)

    evenly_KK = np.full((K, K), smoothing / K)
    ends = (most_iterations, tolerance)
    crowd = _climb(csr_array(table_NK), share_NK, evenly_KK, evenly_KK[0], *ends)
    expected_AK = _expected(votes, known_M, crowd, smoothing)
    expected_AK *= smoothing
    fit = _climb(votes_NA, share_NK, expected_AK, evenly_KK[0], *ends)

    share_MK = np.full((images, K), 1 / K)
    share_MK[known_M] = fit.share_NK
    reliability_U = np.einsum("k,ukk->u", fit.prior_K, fit.confusion_UKK)
    return Raters(
        share_MK=share_MK,
        known_M=known_M,
        prior_K=fit.prior_K,
        confusion_UKK=fit.confusion_UKK,
        reliability_U=reliability_U,
        weight_U=_above_chance(fit.prior_K, fit.confusion_UKK, reliability_U),
        objective=fit.objective,
        converged=fit.converged,
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
    if not raters.counts_U.any():
        raise UserError(
            f"None of {len(votes.users):,} people answers better than by chance, as far as their "
            "votes can tell, so none of these would count: --raters none."
        )
    weight_V = votes.votes_V * raters.weight_U[votes.user_V]
    votes_MK = scatter(votes.image_V, votes.label_V, weight_V, images, classes)
    image_C, label_C = np.nonzero(votes_MK)
    return VoteCells(image_C=image_C, label_C=label_C, votes_C=votes_MK[image_C, label_C])


def _climb(
    votes_NA: csr_array,
    share_NK: Floats,
    added_AK: Floats,
    added_K: Floats,
    most_iterations: int,
    tolerance: float,
) -> _Fit:
    """Run EM from the given shares, with so many votes and images added to what was seen."""
    K = share_NK.shape[1]
    objective: list[float] = []
    converged = False
    while not converged and len(objective) < most_iterations:
        log_prior_K = np.log(_normalised(share_NK.sum(axis=0) + added_K, axis=0))
        log_confusion_AK = votes_NA.T @ share_NK
        log_confusion_AK += added_AK
        _normalised(log_confusion_AK.reshape(-1, K, K), axis=1)
        np.log(log_confusion_AK, out=log_confusion_AK)
        log_joint_NK = log_prior_K + votes_NA @ log_confusion_AK
        evidence_N1 = logsumexp(log_joint_NK, axis=1, keepdims=True)
        before_NK, share_NK = share_NK, np.exp(log_joint_NK - evidence_N1)
        log_prior = added_K @ log_prior_K + np.vdot(added_AK, log_confusion_AK)
        objective.append(float(evidence_N1.sum() + log_prior))
        converged = bool(np.abs(share_NK - before_NK).max() < tolerance)
    confusion_AK = np.exp(log_confusion_AK, out=log_confusion_AK)
    confusion_UKK = confusion_AK.reshape(-1, K, K).swapaxes(1, 2)  # answers last
    return _Fit(share_NK, np.exp(log_prior_K), confusion_UKK, tuple(objective), converged)


def _normalised(values: Floats, axis: int) -> Floats:
    """Make the values sum to 1 along an axis, in their place, and return them."""
    values /= values.sum(axis=axis, keepdims=True)
    return values


def _expected(votes: RaterVotes, known_M: Bools, crowd: _Fit, smoothing: float) -> Floats:
    """Return the answers (U·K) to expect of every rater to every truth (K); see `dawid_skene`."""
    (crowd_KK,), U = crowd.confusion_UKK, len(votes.users)
    K = len(crowd_KK)
    row_V = (np.cumsum(known_M) - 1)[votes.image_V]
    right_V = votes.votes_V * crowd.share_NK[row_V, votes.label_V]
    right_U = add_up(votes.user_V, right_V, U)
    wrong_U = add_up(votes.user_V, votes.votes_V - right_V, U)
    right = float(crowd.prior_K @ np.diagonal(crowd_KK))  # below 1, since it is smoothed
    odds_U = (right_U + smoothing * right) / (wrong_U + smoothing * (1 - right))
    expected_UKK = np.tile(crowd_KK.T, (U, 1, 1))  # answers before truths
    expected_UKK[:, np.arange(K), np.arange(K)] *= (odds_U * (1 - right) / right)[:, None]
    return _normalised(expected_UKK, axis=1).reshape(U * K, K)


def _above_chance(prior_K: Floats, confusion_UKK: Floats, reliability_U: Floats) -> Floats:
    answers_UK = np.einsum("j,ujk->uk", prior_K, confusion_UKK)
    chance_U = answers_UK @ prior_K  # below 1, since smoothing keeps every answer possible
    return ((reliability_U - chance_U) / (1 - chance_U)).clip(min=0)

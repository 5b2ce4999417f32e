"""Click-through of a label of an image: Beta-binomial, with position bias taken out.

The position-based model (Chuklin, Markov & de Rijke 2015, "Click Models for Web Search", §3.3):
a label shown at position j is clicked if it is examined and attracts,

    P(click) = e_j · r_(image, label)

with the examination e_j of the position alone, and the attraction r of the pair alone. Only
products are seen, so the largest e is set to 1: r is the probability of a click at the position
that is examined most.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from visgrpo.errors import UserError
from visgrpo.feedback.worth.cells import Floats, ImpressionCells, Whole
from visgrpo.feedback.worth.posterior import Posterior, add_up, check_prior, check_weight, scatter

MOST_ITERATIONS = 200
TOLERANCE = 1e-8
"""Of the last Newton step, which is taken: what is left is about its square."""
MEND = "Take --position-bias none, or show labels at several positions."


class NotComparable(UserError):
    """A log in which positions cannot be told apart from the labels that stood there."""


@dataclass(frozen=True)
class Examination:
    """How often the positions of a log are looked at.

    Attributes:
        positions_P: the positions of the log, ascending.
        examination_P: their examination, relative to the position that is examined most (1).
        pairs: (image, label) pairs with clicks that were shown at several positions: all that
            the estimate rests on.
        iterations: Newton steps until the fit stood still.
    """

    positions_P: Whole
    examination_P: Floats
    pairs: int
    iterations: int

    def at(self, position_C: Whole) -> Floats:
        """Return the examination of the given positions.

        Raises:
            UserError: a position was not in the log that was fitted.
        """
        slot_C = np.searchsorted(self.positions_P, position_C).clip(max=len(self.positions_P) - 1)
        missing_C = self.positions_P[slot_C] != position_C
        if missing_C.any():
            raise UserError(f"The examination of position {position_C[missing_C][0]} is not known.")
        return self.examination_P[slot_C]


def fit_examination(cells: ImpressionCells) -> Examination:
    """Estimate the examination of every position from pairs that were shown at several.

    Given the pair, clicks fall on positions in proportion to n_j·e_j (n_j: times shown there),
    whatever the pair's own attraction, which a log with few impressions of a pair cannot tell:

        maximise Σ_pairs Σ_j c_j · log(n_j e_j / Σ_i n_i e_i)

    This is the Poisson likelihood with the pair's level conditioned out. Its score has mean 0 at
    the true e for any distribution of the clicks with means n_j·e_j·r (Wooldridge 1999,
    "Distribution-free estimation of some nonlinear panel data models"), so the estimate is
    consistent however few impressions a pair has, and whichever labels a log puts on top, as long
    as earlier clicks on a pair do not move its later positions.

    EM with an r for every pair (Wang et al. 2018, "Position bias estimation for unbiased learning
    to rank in personal search", without their regression of r) is not: with few impressions of a
    pair its error does not shrink with the log.

    The likelihood is concave in log e; Newton with steps shortened by log(1 + ρ)/ρ, ρ the range of
    the step, always ascends (Sun & Tran-Dinh 2019, "Generalized self-concordant functions"). A
    position without any click has e = 0.

    Raises:
        UserError: an impression has no position, or a half-life leaves nothing of the cells.
        NotComparable: nothing was clicked, no clicked pair was shown at two positions, or such
            pairs do not connect all positions.
    """
    cells = _shown(cells)
    if (cells.position_C < 1).any():
        count = cells.shown_C[cells.position_C < 1].sum()
        raise UserError(f"{count:g} impressions have no position. Take --position-bias none.")
    positions_P, slot_C = np.unique(cells.position_C, return_inverse=True)
    if len(positions_P) == 1:
        return Examination(positions_P, np.ones(1), pairs=0, iterations=0)
    shown_IP, clicks_IP = _by_pair(cells, slot_C, len(positions_P))
    pairs = int((np.diff(shown_IP.indptr) > 1).sum())
    if pairs == 0:
        raise NotComparable(
            "Every clicked label of an image was shown at one position only, so position bias "
            f"cannot be told from the labels' own worth. {MEND}"
        )
    clicked_P = clicks_IP.sum(axis=0) > 0
    shown_IP, clicks_IP = shown_IP[:, clicked_P], clicks_IP[:, clicked_P]
    _check_comparable(shown_IP, clicks_IP, positions_P[clicked_P])
    log_e_P, iterations = _fit(shown_IP, clicks_IP)
    examination_P = np.zeros(len(positions_P))
    examination_P[clicked_P] = np.exp(log_e_P - log_e_P.max())
    return Examination(positions_P, examination_P, pairs, iterations)


def click_posterior(
    cells: ImpressionCells,
    images: int,
    classes: int,
    *,
    prior_strength: float,
    examination: Examination | None = None,
) -> Posterior:
    """Return the posterior of the click probability of every (image, label).

    The prior is Beta(s·c, s·(1 - c)) with s = `prior_strength` impressions and c the click-through
    over the whole log, Σ clicks / Σ e·shown. Without examination (e = 1) the posterior is the Beta
    distribution with mean (s·c + clicks)/(s + shown). With it, the mean solves

        (s·c + clicks)/r = s·(1 - c)/(1 - r) + Σ_j (shown_j - clicks_j)·e_j/(1 - e_j·r)

    which is the fixed point of EM under that prior, and sd = √(r(1 - r)/(ν + 1)) with
    ν = r(1 - r) · (the observed information about r, the prior's with it): both are the Beta's at
    e = 1. The uncertainty of e itself is left out. Without clicks at all, or with nothing else,
    half of one is assumed for c, so that the prior stays proper.

    Args:
        cells: impressions; counts may be fractional (a half-life).
        images: M.
        classes: K.
        prior_strength: impressions that the prior counts for.
        examination: of the positions; None takes them all as equal.

    Returns:
        Pairs that were never shown hold the prior.

    Raises:
        UserError: the prior is not above 0, nothing was shown where it is examined, a half-life
            leaves nothing of the cells, or a position was not fitted.
    """
    check_prior(prior_strength)
    cells = _shown(cells)
    e_C = np.ones(len(cells.shown_C)) if examination is None else examination.at(cells.position_C)
    exposure = float((e_C * cells.shown_C).sum())
    if exposure == 0:
        raise UserError(f"Labels were shown only at positions that are never looked at. {MEND}")
    half = 0.5 / (exposure + 1)
    rate = float(np.clip(cells.clicked_C.sum() / exposure, half, 1 - half))
    a, b = prior_strength * rate, prior_strength * (1 - rate)

    pair_C = cells.image_C * classes + cells.label_C
    pairs_I, inverse_C = np.unique(pair_C, return_inverse=True)
    clicks_I = add_up(inverse_C, cells.clicked_C, len(pairs_I))
    passed_C = cells.shown_C - cells.clicked_C
    passed_I = add_up(inverse_C, passed_C, len(pairs_I))
    if examination is None:
        mean_I = (a + clicks_I) / (a + b + clicks_I + passed_I)
        effective_I = a + b + clicks_I + passed_I
    else:
        mean_I, effective_I = _solve(a + clicks_I, b, passed_C, e_C, inverse_C)
    sd_I = np.sqrt(mean_I * (1 - mean_I) / (effective_I + 1))

    known_MK = scatter(cells.image_C, cells.label_C, cells.shown_C, images, classes) > 0
    mean_MK = np.full((images, classes), rate)
    sd_MK = np.full((images, classes), np.sqrt(rate * (1 - rate) / (prior_strength + 1)))
    mean_MK.flat[pairs_I], sd_MK.flat[pairs_I] = mean_I, sd_I
    return Posterior(mean_MK, sd_MK, known_MK)


def _shown(cells: ImpressionCells) -> ImpressionCells:
    """Leave out cells of labels that were logged but not shown."""
    kept_C = cells.shown_C > 0
    if not kept_C.any():
        raise UserError("No label was ever shown: the log has no impressions to learn from.")
    check_weight(float(cells.shown_C.sum()))
    if kept_C.all():
        return cells
    return ImpressionCells(
        image_C=cells.image_C[kept_C],
        label_C=cells.label_C[kept_C],
        position_C=cells.position_C[kept_C],
        shown_C=cells.shown_C[kept_C],
        clicked_C=cells.clicked_C[kept_C],
    )


def _by_pair(cells: ImpressionCells, slot_C: Whole, P: int) -> tuple[csr_array, csr_array]:
    """Return times shown and clicks of every clicked pair at every position, sparse (I, P)."""
    pair_C = cells.image_C * (cells.label_C.max() + 1) + cells.label_C
    pairs_I, inverse_C = np.unique(pair_C, return_inverse=True)
    clicks_I = add_up(inverse_C, cells.clicked_C, len(pairs_I))
    if not clicks_I.any():
        raise NotComparable(f"Nothing was clicked, so positions cannot be compared. {MEND}")
    shape = (len(pairs_I), P)
    shown_IP = csr_array((cells.shown_C, (inverse_C, slot_C)), shape=shape)
    clicks_IP = csr_array((cells.clicked_C, (inverse_C, slot_C)), shape=shape)
    clicked_I = clicks_I > 0  # a pair without clicks says nothing about where they fall
    return shown_IP[clicked_I], clicks_IP[clicked_I]


def _check_comparable(shown_IP: csr_array, clicks_IP: csr_array, positions_P: Whole) -> None:
    """Raise `NotComparable` unless the likelihood has a single highest point.

    It has one if clicked pairs lead from every position to every other, a pair leading from where
    it was shown to where it was clicked (the condition of Ford 1957 for paired comparisons).
    """
    leads_PP = ((shown_IP > 0).astype(float).T @ (clicks_IP > 0).astype(float)).tocsr()
    parts, part_P = connected_components(leads_PP, connection="strong")
    if parts > 1:
        apart = positions_P[part_P != part_P[0]][0]
        raise NotComparable(
            f"Positions {positions_P[0]} and {apart} cannot be compared: too few labels were shown "
            f"at both and clicked. {MEND}"
        )


def _fit(shown_IP: csr_array, clicks_IP: csr_array) -> tuple[Floats, int]:
    """Return log e, up to a constant, and the number of Newton steps."""
    clicks_I, clicks_P = clicks_IP.sum(axis=1), clicks_IP.sum(axis=0)
    pair_N = np.repeat(np.arange(shown_IP.shape[0]), np.diff(shown_IP.indptr))
    position_N = shown_IP.indices  # of the N stored numbers
    log_e_P = np.zeros(shown_IP.shape[1])
    for iterations in range(1, MOST_ITERATIONS + 1):
        share_N = shown_IP.data * np.exp(log_e_P)[position_N]
        share_N /= add_up(pair_N, share_N, len(clicks_I))[pair_N]
        expected_N = clicks_I[pair_N] * share_N
        expected_P = add_up(position_N, expected_N, len(log_e_P))
        parts = (position_N, shown_IP.indptr)
        share_IP, expected_IP = csr_array((share_N, *parts)), csr_array((expected_N, *parts))
        information_PP = np.diag(expected_P) - (share_IP.T @ expected_IP).toarray()
        # Scaled to a diagonal near 1, since a half-life may leave next to nothing of a position.
        # Only ratios of e are determined: the added product picks one of the steps.
        scale_P = np.sqrt(expected_P)
        scaled_PP = information_PP / np.outer(scale_P, scale_P)
        scaled_PP += np.outer(scale_P, scale_P) / expected_P.sum()
        step_P = np.linalg.solve(scaled_PP, (clicks_P - expected_P) / scale_P) / scale_P
        reach = float(np.ptp(step_P))
        if reach < TOLERANCE:
            return log_e_P + step_P, iterations
        log_e_P += step_P * np.log1p(reach) / reach
    raise UserError(f"The examination of positions did not settle in {MOST_ITERATIONS} steps.")


def _solve(
    ups_I: Floats, b: float, passed_C: Floats, e_C: Floats, inverse_C: Whole
) -> tuple[Floats, Floats]:
    """Return the r that solves `click_posterior`'s equation for each pair, and ν there.

    The equation's difference falls from +∞ at r = 0 to -∞ at r = 1, so that Newton, kept inside a
    bracket that each value tightens, finds its one root.
    """
    pairs = len(ups_I)
    low_I, high_I = np.zeros(pairs), np.ones(pairs)
    r_I = ups_I / (ups_I + b + add_up(inverse_C, passed_C * e_C, pairs))
    for _ in range(MOST_ITERATIONS):
        pull_C = e_C / (1 - e_C * r_I[inverse_C])
        score_I = ups_I / r_I - b / (1 - r_I) - add_up(inverse_C, passed_C * pull_C, pairs)
        information_I = ups_I / r_I**2 + b / (1 - r_I) ** 2
        information_I += add_up(inverse_C, passed_C * pull_C**2, pairs)
        low_I, high_I = np.where(score_I > 0, r_I, low_I), np.where(score_I < 0, r_I, high_I)
        next_I = r_I + score_I / information_I
        inside_I = (next_I > low_I) & (next_I < high_I)
        next_I = np.where(inside_I, next_I, (low_I + high_I) / 2)
        if (np.abs(next_I - r_I) < TOLERANCE * r_I).all():
            return next_I, next_I * (1 - next_I) * information_I
        r_I = next_I
    raise UserError(f"Click probabilities did not settle in {MOST_ITERATIONS} steps.")

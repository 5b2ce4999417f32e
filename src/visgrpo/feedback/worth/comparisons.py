"""What a label of an image is worth by comparisons in pairs: Bradley–Terry scores, with ties.

Davidson (1970), "On extending the Bradley–Terry model to accommodate ties in paired comparison
experiments", with scores s = log π of the labels of an image and d = s_i - s_j:

    P(i preferred) = e^(d/2) / Z,    P(tie) = ν / Z,    Z = e^(d/2) + e^(-d/2) + ν

One ν serves all images; ν = 0, where there are no ties, is the model of Bradley & Terry (1952).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from visgrpo.errors import UserError
from visgrpo.feedback.worth.cells import Floats, PreferenceCells, Whole
from visgrpo.feedback.worth.posterior import Posterior, add_up, check_prior, scatter

MOST_ITERATIONS = 200
TOLERANCE = 1e-8
"""Of the last Newton step, which is taken: what is left is about its square."""
NUMBERS_AT_ONCE = 2**22
"""Numbers of the images' information matrices that exist at one time: 32 MiB."""


@dataclass(frozen=True)
class Scores:
    """A posterior, and the tie parameter ν that was fitted with it (0 without ties)."""

    posterior: Posterior
    tie: float


@dataclass
class _Batch:
    """The comparisons of B images with at most L compared labels each, in slots of B × L."""

    first_C: Whole  # slot of the preferred label: image of the batch * L + its rank
    second_C: Whole
    points_C: Floats  # of the preferred label: a win counts 1, a tie 1/2
    count_C: Floats
    pairs_BL: Whole  # image * K + label of every slot, -1 where an image has fewer than L
    score_BL: Floats


def davidson_posterior(
    cells: PreferenceCells, images: int, classes: int, *, prior_sd: float
) -> Posterior:
    """Return the posterior of the score log π of every (image, label); see `davidson_scores`."""
    return davidson_scores(cells, images, classes, prior_sd=prior_sd).posterior


def davidson_scores(
    cells: PreferenceCells, images: int, classes: int, *, prior_sd: float
) -> Scores:
    """Fit scores and ties: the mode of the posterior and its curvature there (Laplace).

    Every score has the prior N(0, prior_sd²), which also fixes the level that comparisons leave
    open: the scores of the compared labels of an image have mean 0. ν maximises the joint density
    with them. sd is √diag(H⁻¹), H the information of an image's scores, the prior's with it.
    The density is concave; Newton with steps shortened by log(1 + ρ)/ρ, ρ the range of an image's
    step, always ascends (Sun & Tran-Dinh 2019, "Generalized self-concordant functions").

    Args:
        cells: wins and ties of labels of an image over others.
        images: M.
        classes: K.
        prior_sd: of a score, in nats; a finite number above 0.

    Returns:
        Labels of an image that were never compared are unknown: mean 0, sd `prior_sd`.

    Raises:
        UserError: the prior is not above 0, there are no comparisons, or all are ties.
    """
    check_prior(prior_sd, "prior deviation of scores")
    wins, ties = float(cells.wins_C.sum()), float(cells.ties_C.sum())
    if wins == 0:
        what = "Every comparison is a tie" if ties else "There are no comparisons"
        raise UserError(f"{what}: scores need labels that were preferred to others.")
    batches = list(_batches(cells, classes))
    tie = _fit_tie(batches, wins, ties, prior_sd) if ties else 0.0
    mean_MK = np.zeros((images, classes))
    sd_MK = np.full((images, classes), prior_sd, dtype=np.float64)
    for batch in batches:
        information_BLL = _climb(batch, tie, prior_sd)
        variance_BL = np.diagonal(np.linalg.inv(information_BLL), axis1=1, axis2=2)
        used_BL = batch.pairs_BL >= 0
        pairs = batch.pairs_BL[used_BL]
        mean_MK.flat[pairs] = batch.score_BL[used_BL]
        sd_MK.flat[pairs] = np.sqrt(variance_BL[used_BL])
    both = np.concatenate([cells.preferred_C, cells.rejected_C])
    count = np.tile(cells.wins_C + cells.ties_C, 2)
    known_MK = scatter(np.tile(cells.image_C, 2), both, count, images, classes) > 0
    return Scores(Posterior(mean_MK, sd_MK, known_MK), tie)


def _batches(cells: PreferenceCells, classes: int) -> Iterator[_Batch]:
    """Yield the images in batches of similar numbers of compared labels, the fewest first."""
    first_C = cells.image_C * classes + cells.preferred_C
    second_C = cells.image_C * classes + cells.rejected_C
    pairs_I, item_2C = np.unique(np.concatenate([first_C, second_C]), return_inverse=True)
    image_I = pairs_I // classes
    _, start_B, owner_I, labels_B = np.unique(
        image_I, return_index=True, return_inverse=True, return_counts=True
    )
    rank_I = np.arange(len(pairs_I)) - start_B[owner_I]
    first_item_C, second_item_C = np.split(item_2C, 2)
    owner_C = owner_I[first_item_C]

    order = np.argsort(labels_B, kind="stable")
    place_B = np.empty(len(order), dtype=np.int64)
    place_B[order] = np.arange(len(order))
    cell_order = np.argsort(place_B[owner_C], kind="stable")
    cell_place = place_B[owner_C][cell_order]
    item_order = np.argsort(place_B[owner_I], kind="stable")
    item_place = place_B[owner_I][item_order]
    start = 0
    while start < len(order):
        stop = _stop(labels_B[order], start)
        L = int(labels_B[order[stop - 1]])
        c = cell_order[slice(*np.searchsorted(cell_place, [start, stop]))]
        i = item_order[slice(*np.searchsorted(item_place, [start, stop]))]
        slot_I = (place_B[owner_I] - start) * L + rank_I
        pairs_BL = np.full((stop - start, L), -1, dtype=np.int64)
        pairs_BL.flat[slot_I[i]] = pairs_I[i]
        yield _Batch(
            first_C=slot_I[first_item_C[c]],
            second_C=slot_I[second_item_C[c]],
            points_C=cells.wins_C[c] + cells.ties_C[c] / 2,
            count_C=cells.wins_C[c] + cells.ties_C[c],
            pairs_BL=pairs_BL,
            score_BL=np.zeros((stop - start, L)),
        )
        start = stop


def _stop(labels_B: Whole, start: int) -> int:
    """Return where a batch that begins at `start` ends, so that its matrices fit in the memory."""
    size_B = np.arange(1, len(labels_B) - start + 1) * labels_B[start:] ** 2
    return start + max(1, int(np.searchsorted(size_B, NUMBERS_AT_ONCE, side="right")))


def _probabilities(batch: _Batch, tie: float) -> tuple[Floats, Floats]:
    """Return P(preferred) and P(tie) of every cell at the batch's scores."""
    half_C = (batch.score_BL.flat[batch.first_C] - batch.score_BL.flat[batch.second_C]) / 2
    top_C = np.abs(half_C)  # taken out of every exponent: none can overflow
    up_C, down_C, tie_C = np.exp(half_C - top_C), np.exp(-half_C - top_C), tie * np.exp(-top_C)
    total_C = up_C + down_C + tie_C
    return up_C / total_C, tie_C / total_C


def _climb(batch: _Batch, tie: float, prior_sd: float) -> Floats:
    """Bring the batch's scores to their mode at this ν, and return the information there."""
    L = batch.score_BL.shape[1]
    for _ in range(MOST_ITERATIONS):
        up_C, tie_C = _probabilities(batch, tie)
        expected_C = up_C + tie_C / 2
        push_C = batch.points_C - batch.count_C * expected_C
        gradient_BL = _at_slots(batch, push_C, -push_C) - batch.score_BL / prior_sd**2
        variance_C = batch.count_C * (up_C + tie_C / 4 - expected_C**2)
        information_BLL = _information(batch, variance_C)
        information_BLL[:, np.arange(L), np.arange(L)] += 1 / prior_sd**2
        step_BL = np.linalg.solve(information_BLL, gradient_BL[..., None])[..., 0]
        reach_B1 = np.ptp(step_BL, axis=1, keepdims=True)
        settled_B1 = np.maximum(reach_B1, TOLERANCE)  # log(1 + ρ)/ρ is 1 for the smallest ρ
        batch.score_BL += step_BL * np.log1p(settled_B1) / settled_B1
        if reach_B1.max() < TOLERANCE:
            return information_BLL
    raise UserError(
        f"Scores of comparisons did not settle in {MOST_ITERATIONS} steps. "
        f"Take a prior deviation below {prior_sd:g}."
    )


def _at_slots(batch: _Batch, first_C: Floats, second_C: Floats) -> Floats:
    slots, shape = batch.score_BL.size, batch.score_BL.shape
    total = add_up(batch.first_C, first_C, slots) + add_up(batch.second_C, second_C, slots)
    return total.reshape(shape)


def _information(batch: _Batch, variance_C: Floats) -> Floats:
    """Σ variance · (e_i - e_j)(e_i - e_j)ᵀ over the comparisons of each image, (B, L, L)."""
    B, L = batch.score_BL.shape
    first_C, second_C = batch.first_C, batch.second_C
    across = np.concatenate([first_C * L + second_C % L, second_C * L + first_C % L])
    information_BLL = add_up(across, np.tile(-variance_C, 2), B * L * L).reshape(B, L, L)
    diagonal_BL = _at_slots(batch, variance_C, variance_C)
    information_BLL[:, np.arange(L), np.arange(L)] += diagonal_BL
    return information_BLL


def _fit_tie(batches: list[_Batch], wins: float, ties: float, prior_sd: float) -> float:
    """Return the ν at which as many ties are expected as there were.

    The derivative of the profile of log ν is ties - Σ n·P(tie) at the best scores, and falls.
    """

    def excess(log_tie: float) -> float:
        expected = 0.0
        for batch in batches:
            _climb(batch, np.exp(log_tie), prior_sd)
            expected += float(batch.count_C @ _probabilities(batch, np.exp(log_tie))[1])
        return ties - expected

    # A tie is likeliest between equal scores, ν/(2 + ν): at this ν at most `ties` are expected.
    low = high = float(np.log(2 * ties / wins))
    while excess(high) > TOLERANCE * ties:
        low, high = high, high + 1
    return float(np.exp(low if low == high else brentq(excess, low, high, xtol=1e-9)))

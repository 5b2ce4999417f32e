"""The rewards that feedback makes: of which table, of which sums of it, by which posterior.

A reward of people's behaviour is one row of `MAKERS`, and its name one of `FEEDBACK_REWARDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from visgrpo.errors import UserError
from visgrpo.feedback.options import FEEDBACK_REWARDS
from visgrpo.feedback.source.matching import Matched
from visgrpo.feedback.source.schemas import Kind
from visgrpo.feedback.worth.cells import (
    ImpressionCells,
    PreferenceCells,
    ValueCells,
    dwell_cells,
    grade_cells,
    impression_cells,
    of_images,
    preference_cells,
    rater_votes,
    vote_cells,
)
from visgrpo.feedback.worth.clicks import (
    Examination,
    NotComparable,
    click_posterior,
    fit_examination,
)
from visgrpo.feedback.worth.comparisons import davidson_scores
from visgrpo.feedback.worth.posterior import (
    Posterior,
    log_share_posterior,
    scatter,
    share_posterior,
    value_posterior,
)
from visgrpo.feedback.worth.raters import dawid_skene, weighted_votes
from visgrpo.tasks.clip.options import ClipConfig

Report = dict[str, Any]


class Fitting(NamedTuple):
    """What cells are fitted for: M images and K labels, at a prior of some strength.

    `report` takes what was estimated besides.
    """

    size: tuple[int, int]
    strength: float
    options: ClipConfig
    report: Report


class Maker(NamedTuple):
    """How one reward is made: of which kind of table, summed up and fitted how.

    `strength` is the prior's, where nobody says.
    """

    kind: Kind
    strength: float
    cells: Callable[[Matched, ClipConfig], Any]
    fit: Callable[[Any, Fitting], Posterior]


def kind_of_rewards(reward: Sequence[str]) -> Kind:
    """Return which of the four tables rewards are made of.

    Raises:
        UserError: they are made of several.
    """
    kinds = {MAKERS[name].kind for name in rewards_of_table(reward)}
    if len(kinds) > 1:
        raise UserError(
            f"One table cannot hold {' and '.join(sorted(kinds))}: take rewards of one kind."
        )
    return kinds.pop()


def rewards_of_table(reward: Sequence[str]) -> list[str]:
    return [name for name in reward if name in FEEDBACK_REWARDS]


def best_answers(matched: Matched, options: ClipConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return the label that people liked best for each image, (M,), and who has feedback at all."""
    maker = MAKERS[rewards_of_table(options.reward)[0]]
    posterior = _fit(maker, maker.cells(matched, options), matched, options, {})
    known_MK = posterior.known_MK
    best_M = np.where(known_MK, posterior.mean_MK, -np.inf).argmax(axis=1)
    return best_M, np.asarray(known_MK.any(axis=1))


def posterior_of(
    name: str, matched: Matched, fit_M: np.ndarray, options: ClipConfig, report: Report
) -> Posterior:
    """Fit the training images by themselves, so that nothing held out takes part in a prior.

    Held-out images, whose rewards are only measured with, have theirs from a fit to all images.
    """
    maker = MAKERS[name]
    cells = maker.cells(matched, options)
    of_training = of_images(cells, fit_M)
    if not len(getattr(of_training, fields(of_training)[0].name)):
        raise UserError("No training image has feedback: check --data, or --train-slice.")
    training = _fit(maker, of_training, matched, options, report)
    posterior = _fit(maker, cells, matched, options, {})
    posterior.mean_MK[fit_M] = training.mean_MK[fit_M]
    posterior.sd_MK[fit_M] = training.sd_MK[fit_M]
    return posterior


def votes_of(matched: Matched) -> Tensor:
    cells, size = vote_cells(matched), (matched.images, len(matched.classes))
    return torch.from_numpy(scatter(cells.image_C, cells.label_C, cells.votes_C, *size))


def _fit(
    maker: Maker, cells: Any, matched: Matched, options: ClipConfig, report: Report
) -> Posterior:
    size, strength = (matched.images, len(matched.classes)), options.prior_strength
    return maker.fit(cells, Fitting(size, strength or maker.strength, options, report))


def _clicks(cells: ImpressionCells, fitting: Fitting) -> Posterior:
    examination = None
    if fitting.options.off_policy != "none":
        fitting.report["positions"] = int(np.unique(cells.position_C).size)
    elif fitting.options.position_bias == "auto" and cells.position_C.any():
        examination = _examination(cells, fitting.report)
    strength = fitting.strength
    return click_posterior(cells, *fitting.size, prior_strength=strength, examination=examination)


def _examination(cells: ImpressionCells, report: Report) -> Examination | None:
    """Estimate and report how positions are looked at; None, with the reason, if that fails."""
    try:
        examination = fit_examination(cells)
    except NotComparable as error:
        report["no_examination"] = str(error)
        return None
    shares = zip(examination.positions_P, examination.examination_P, strict=True)
    report["examination"] = {str(position): float(share) for position, share in shares}
    return examination


def _values(cells: ValueCells, fitting: Fitting) -> Posterior:
    return value_posterior(cells, *fitting.size, prior_strength=fitting.strength)


def _preferences(cells: PreferenceCells, fitting: Fitting) -> Posterior:
    scores = davidson_scores(cells, *fitting.size, prior_sd=fitting.strength**-0.5)
    fitting.report["tie"] = scores.tie
    return scores.posterior


def _votes(shares_of: Callable[..., Posterior], cells: Any, fitting: Fitting) -> Posterior:
    if fitting.options.raters == "dawid-skene":
        raters = dawid_skene(cells, *fitting.size)
        fitting.report["raters"] = len(cells.users)
        fitting.report["raters_without_weight"] = int((~raters.counts_U).sum())
        fitting.report["rater_reliability"] = float(raters.reliability_U.mean())
        cells = weighted_votes(cells, raters, *fitting.size)
    return shares_of(cells, *fitting.size, prior=fitting.strength)


def _vote_cells(matched: Matched, options: ClipConfig) -> Any:
    return rater_votes(matched) if options.raters == "dawid-skene" else vote_cells(matched)


MAKERS: Mapping[str, Maker] = {
    "clicks": Maker("impressions", 2.0, lambda m, o: impression_cells(m, o.half_life), _clicks),
    "dwell": Maker("impressions", 1.0, lambda m, o: dwell_cells(m, o.half_life), _values),
    "votes": Maker("votes", 0.5, _vote_cells, partial(_votes, share_posterior)),
    "log-votes": Maker("votes", 0.5, _vote_cells, partial(_votes, log_share_posterior)),
    "preferences": Maker("preferences", 1.0, lambda m, _: preference_cells(m), _preferences),
    "grades": Maker("grades", 1.0, lambda m, _: grade_cells(m), _values),
}

"""From a matched table of what people did to the posterior of every reward made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visgrpo.errors import UserError
from visgrpo.feedback.options import FEEDBACK_REWARDS
from visgrpo.feedback.source.matching import Matched
from visgrpo.feedback.source.schemas import Kind
from visgrpo.feedback.worth.cells import (
    ImpressionCells,
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
from visgrpo.tasks.configs import ClipConfig

_KIND_OF: Mapping[str, Kind] = {
    "clicks": "impressions",
    "dwell": "impressions",
    "votes": "votes",
    "log-votes": "votes",
    "preferences": "preferences",
    "grades": "grades",
}
_PRIOR_STRENGTH = {"clicks": 2.0, "dwell": 1.0, "grades": 1.0, "preferences": 1.0}
_VOTES_FOR_EACH_LABEL = 0.5


def kind_of_rewards(reward: Sequence[str]) -> Kind:
    """Return which of the four tables rewards are made of.

    Raises:
        UserError: they are made of several.
    """
    kinds = {_KIND_OF[name] for name in rewards_of_table(reward)}
    if len(kinds) > 1:
        raise UserError(
            f"One table cannot hold {' and '.join(sorted(kinds))}: take rewards of one kind."
        )
    return kinds.pop()


def best_answers(matched: Matched, config: ClipConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return the label that people liked best for each image, (M,), and who has feedback at all."""
    name = rewards_of_table(config.reward)[0]
    size = matched.images, len(matched.classes)
    posterior = _fit(name, _cells(name, matched, config), size, config, {})
    known_MK = posterior.known_MK
    best_M = np.where(known_MK, posterior.mean_MK, -np.inf).argmax(axis=1)
    return best_M, np.asarray(known_MK.any(axis=1))


def rewards_of_table(reward: Sequence[str]) -> list[str]:
    return [name for name in reward if name in FEEDBACK_REWARDS]


def posterior_of(
    name: str, matched: Matched, fit_M: np.ndarray, config: ClipConfig, report: dict[str, Any]
) -> Posterior:
    """Fit the training images by themselves, so that nothing held out takes part in a prior.

    Held-out images, whose rewards are only measured with, have theirs from a fit to all images.
    """
    cells = _cells(name, matched, config)
    size = matched.images, len(matched.classes)
    of_training = of_images(cells, fit_M)
    if not len(getattr(of_training, fields(of_training)[0].name)):
        raise UserError("No training image has feedback: check --data, or --train-slice.")
    training = _fit(name, of_training, size, config, report)
    posterior = _fit(name, cells, size, config, {})
    posterior.mean_MK[fit_M] = training.mean_MK[fit_M]
    posterior.sd_MK[fit_M] = training.sd_MK[fit_M]
    return posterior


def _cells(name: str, matched: Matched, config: ClipConfig) -> Any:
    if name == "clicks":
        return impression_cells(matched, half_life=config.half_life)
    if name == "dwell":
        return dwell_cells(matched, half_life=config.half_life)
    if name == "grades":
        return grade_cells(matched)
    if name == "preferences":
        return preference_cells(matched)
    return rater_votes(matched) if config.raters == "dawid-skene" else vote_cells(matched)


def _fit(
    name: str, cells: Any, size: tuple[int, int], config: ClipConfig, report: dict[str, Any]
) -> Posterior:
    """Return the posterior of one reward, and note in the report what was estimated besides."""
    strength = config.prior_strength or _PRIOR_STRENGTH.get(name, _VOTES_FOR_EACH_LABEL)
    if name == "clicks":
        examination = None
        if config.off_policy != "none":
            report["positions"] = int(np.unique(cells.position_C).size)
        elif config.position_bias == "auto" and cells.position_C.any():
            examination = _examination(cells, report)
        return click_posterior(cells, *size, prior_strength=strength, examination=examination)
    if name in ("dwell", "grades"):
        return value_posterior(cells, *size, prior_strength=strength)
    if name == "preferences":
        scores = davidson_scores(cells, *size, prior_sd=strength**-0.5)
        report["tie"] = scores.tie
        return scores.posterior
    if config.raters == "dawid-skene":
        raters = dawid_skene(cells, *size)
        report["raters"] = len(cells.users)
        report["rater_reliability"] = float(raters.reliability_U.mean())
        cells = weighted_votes(cells, raters, *size)
    shares_of = share_posterior if name == "votes" else log_share_posterior
    return shares_of(cells, *size, prior=strength)


def _examination(cells: ImpressionCells, report: dict[str, Any]) -> Examination | None:
    """Estimate and report how positions are looked at; None, with the reason, if that fails."""
    try:
        examination = fit_examination(cells)
    except NotComparable as error:
        report["no_examination"] = str(error)
        return None
    shares = zip(examination.positions_P, examination.examination_P, strict=True)
    report["examination"] = {str(position): float(share) for position, share in shares}
    return examination


def votes_of(matched: Matched) -> Tensor:
    cells = vote_cells(matched)
    size = matched.images, len(matched.classes)
    return torch.from_numpy(scatter(cells.image_C, cells.label_C, cells.votes_C, *size))

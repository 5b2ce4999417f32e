"""Rewards that need features of the images, and the groups of a log."""

from __future__ import annotations

import numpy as np
import torch

from visgrpo.feedback.logged import Log
from visgrpo.feedback.reward import FeedbackReward
from visgrpo.feedback.worth.cells import LogCells, of_images
from visgrpo.feedback.worth.click_prediction import predicted_clicks
from visgrpo.feedback.worth.posterior import Bools, Floats, Posterior, scatter
from visgrpo.feedback.worth.prediction import Predicted, predict_unknown


def predicted(
    posterior: Posterior, features_MD: Floats, fit_M: Bools, *, pessimism: float
) -> tuple[FeedbackReward, Predicted]:
    """Return a reward of all pairs, with predictions where nobody judged, and how good those are.

    Args:
        features_MD: of the images.
        fit_M: the images to learn from.
        pessimism: rewards are means less this many deviations.

    Raises:
        UserError: there is too little to learn from.
    """
    found = predict_unknown(posterior, features_MD, fit_M)
    worth_MK = found.posterior.pessimistic(pessimism).mean_MK
    known_MK = torch.from_numpy(posterior.known_MK)
    return FeedbackReward(torch.from_numpy(worth_MK).float(), known_MK, masks=False), found


def logged(cells: LogCells, images: int, classes: int) -> tuple[FeedbackReward, Log]:
    """Return raw click rates as the reward of what was shown, and the log's groups."""
    shape = images, classes

    def table(values_C: Floats) -> Floats:
        return scatter(cells.image_C, cells.label_C, values_C, *shape)

    count_MK, inverse_MK = table(cells.count_C), table(cells.inverse_C)
    shown_MK = count_MK > 0
    total_M1 = count_MK.sum(axis=1, keepdims=True)
    # Impressions of a pair may have several propensities: sums of 1/p make the harmonic mean p.
    propensity_MK = np.divide(count_MK, inverse_MK, out=np.ones(shape), where=shown_MK)
    rate_MK = np.divide(
        table(cells.clicks_inverse_C), inverse_MK, out=np.zeros(shape), where=shown_MK
    )
    shares_MK = np.divide(count_MK, total_M1, out=np.zeros(shape), where=total_M1 > 0)
    log = Log(torch.from_numpy(shares_MK).float(), torch.from_numpy(np.log(propensity_MK)).float())
    return FeedbackReward(torch.from_numpy(rate_MK).float(), torch.from_numpy(shown_MK)), log


def doubly_robust(
    cells: LogCells, fit_M: Bools, features_MD: Floats, classes: int, *, seed: int
) -> FeedbackReward:
    """Return a doubly robust reward of every label (Dudík, Langford and Li 2011).

    Σ_k π_k r_k is then the doubly robust estimate of the policy's value at an image with n
    impressions, for every policy:

        r_k = q_k + (1/n) Σ_i 1[a_i = k] (c_i - q_k) / p_i

    Click rates q are predicted from image features, each image's without its own clicks.

    Args:
        fit_M: the images whose clicks q learns from.
        features_MD: of the images.
        seed: of the folds in which q is predicted.
    """
    images = len(fit_M)

    def table(values_C: Floats) -> Floats:
        return scatter(cells.image_C, cells.label_C, values_C, images, classes)

    rate_MK = predicted_clicks(of_images(cells, fit_M), features_MD, classes, seed=seed)
    correction_MK = table(cells.clicks_inverse_C) - rate_MK * table(cells.inverse_C)
    count_MK = table(cells.count_C)
    worth_MK = rate_MK + correction_MK / count_MK.sum(axis=1, keepdims=True).clip(min=1)
    return FeedbackReward(
        torch.from_numpy(worth_MK).float(), torch.from_numpy(count_MK > 0), masks=False
    )

"""Click rates predicted for images whose own clicks were not looked at: q of `off_policy`."""

from __future__ import annotations

import numpy as np

from visgrpo.errors import UserError
from visgrpo.feedback.worth.cells import Floats, LogCells
from visgrpo.feedback.worth.posterior import Bools, add_up, scatter
from visgrpo.feedback.worth.prediction import LEAST_PAIRS, reward_model


def predicted_clicks(cells: LogCells, features_MD: Floats, classes: int, *, seed: int) -> Floats:
    """Predict click rates (M, K) from image features, by label alone where that is all there is.

    A label that was logged on `LEAST_PAIRS` images or more is predicted by `reward_model`, each
    image by a fit without its own clicks on that label; the others by `click_rates`. Features of
    images that are not in the log take no part in a fit.

    Args:
        features_MD: D numbers for each image.
        classes: K.
        seed: as for `click_rates`.

    Raises:
        UserError: as both.
    """
    size = len(features_MD), classes
    rates_MK = click_rates(cells, *size, seed=seed)
    shown_MK = scatter(cells.image_C, cells.label_C, cells.count_C, *size)
    if (shown_MK > 0).sum(axis=0).max() < LEAST_PAIRS:
        return rates_MK
    clicks_MK = scatter(cells.image_C, cells.label_C, cells.clicks_C, *size)
    own_MK = np.divide(clicks_MK, shown_MK, out=np.zeros(size), where=shown_MK > 0)
    logged_M = np.asarray((shown_MK > 0).any(axis=1))
    model = reward_model(own_MK, shown_MK > 0, features_MD, logged_M)
    return np.where(model.fitted_K, model.predicted_MK, rates_MK)


def click_rates(
    cells: LogCells, images: int, classes: int, *, folds: int = 5, strength: float = 20.0, seed: int
) -> Floats:
    """Return click rates (M, K) by label, each image's from the images of the other folds.

    A label's rate is its clicks over its impressions, both counted 1/p times so that the logging
    policy's preferences do not matter, and shrunken to the rate of all labels as if that had been
    seen on `strength` more impressions.

    Args:
        images: M.
        classes: K.
        seed: chooses which images make a fold.

    Raises:
        UserError: for fewer logged images than folds.
    """
    logged_I = np.unique(cells.image_C)
    if len(logged_I) < folds:
        raise UserError(
            f"The log has {len(logged_I)} images; {folds} folds need one each: give more logs."
        )
    fold_M = np.full(images, -1)  # of an image without impressions: it learns from all others
    fold_M[logged_I] = np.random.default_rng((seed, images)).permutation(len(logged_I)) % folds
    rates_MK = np.empty((images, classes))
    for fold in range(-1, folds):
        others_C = fold_M[cells.image_C] != fold
        rates_MK[fold_M == fold] = _label_rates(cells, others_C, classes, strength)
    return rates_MK


def _label_rates(cells: LogCells, chosen_C: Bools, classes: int, strength: float) -> Floats:
    """Shrunken click rates (K,) of the chosen cells."""

    def per_label(values_C: Floats) -> Floats:
        return add_up(cells.label_C[chosen_C], values_C[chosen_C], classes)

    count_K, weight_K = per_label(cells.count_C), per_label(cells.inverse_C)
    clicks_K = per_label(cells.clicks_inverse_C)
    overall = clicks_K.sum() / weight_K.sum()
    seen_K = count_K > 0
    rate_K = np.divide(clicks_K, weight_K, out=np.full(classes, overall), where=seen_K)
    return (count_K * rate_K + strength * overall) / (count_K + strength)

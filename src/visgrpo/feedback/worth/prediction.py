"""What a label of an image is worth where nobody said: a ridge regression on image features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from visgrpo.errors import UserError
from visgrpo.feedback.worth.cells import Floats, LogCells
from visgrpo.feedback.worth.posterior import Bools, Posterior, add_up, scatter

ALPHAS = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Penalties that are tried, for each image that is learned from."""
LEAST_PAIRS = 10
"""Known pairs of a class below which nothing is learned about it."""


@dataclass(frozen=True)
class RewardModel:
    """What a regression on features says about every (image, label).

    Attributes:
        predicted_MK: predictions, each by a fit that has not seen this image's own value of this
            class; of classes that are not fitted, the mean of all values learned from.
        error_K: root mean squared error of these predictions on the pairs learned from; of classes
            that are not fitted, the deviation of all values learned from.
        fitted_K: whether the class had enough known pairs (bool).
        alpha_K: the penalty chosen, 0 where the class is not fitted.
        r2: share of the variance of the fitted classes' known values that is predicted.
        pairs: (image, label) pairs learned from.
    """

    predicted_MK: Floats
    error_K: Floats
    fitted_K: Bools
    alpha_K: Floats
    r2: float
    pairs: int


def predict_unknown(
    posterior: Posterior, features_MD: Floats, fit_M: Bools
) -> tuple[Posterior, RewardModel]:
    """Fill the unknown pairs by `reward_model`, learned from the known pairs of some images.

    Args:
        posterior: of the labels of M images.
        features_MD: of the same images.
        fit_M: the images to learn from: leave out those that measure the result.

    Returns:
        Known pairs as they were; unknown pairs of fitted classes hold the prediction as mean and
        the class's error as sd, and those of other classes still hold the prior. `known_MK` is
        still what people said. And what was fitted.

    Raises:
        UserError: as `reward_model`.
    """
    known_MK = posterior.known_MK
    model = reward_model(posterior.mean_MK, known_MK, features_MD, fit_M)
    filled_MK = ~known_MK & model.fitted_K
    mean_MK = np.where(filled_MK, model.predicted_MK, posterior.mean_MK)
    return Posterior(mean_MK, np.where(filled_MK, model.error_K, posterior.sd_MK), known_MK), model


def reward_model(
    value_MK: Floats, known_MK: Bools, features_MD: Floats, fit_M: Bools
) -> RewardModel:
    """Fit one ridge regression for each class: value = intercept_k + w_k · features.

    Features are standardised by the images learned from. The penalty, `ALPHAS` times the number of
    images, is the one with the least squared error of leave-one-out predictions, which have the
    closed form y - (y - ŷ)/(1 - h) with h the leverages (Golub, Heath & Wahba 1979). All known
    pairs count alike: a posterior's own deviation is smaller where fewer people happened to click,
    so weights by it would learn too low a value. Predictions are kept between the least and the
    greatest value learned from.

    Args:
        value_MK: what labels are worth, used where `known_MK`.
        known_MK: pairs that have a value.
        features_MD: D numbers for each image.
        fit_M: images to learn from (bool).

    Raises:
        UserError: shapes do not fit, a feature or value is NaN or infinite, or no class has
            enough known pairs.
    """
    fit_MK = known_MK & fit_M[:, None]
    _check(value_MK, features_MD, fit_M, fit_MK)
    M, K = value_MK.shape
    values = value_MK[fit_MK]
    predicted_MK = np.full((M, K), values.mean())
    error_K, alpha_K = np.full(K, values.std()), np.zeros(K)
    fitted_K = fit_MK.sum(axis=0) >= LEAST_PAIRS
    features_MD = _standardised(features_MD, fit_M)
    # Classes that are known for the same images share one decomposition: all of them, for votes.
    patterns, group_K = np.unique(fit_MK.T, axis=0, return_inverse=True)
    for group, rows_M in enumerate(patterns):
        classes = np.flatnonzero((group_K == group) & fitted_K)
        if len(classes):
            predicted, alpha = _fit(features_MD, rows_M, value_MK[np.ix_(rows_M, classes)])
            predicted_MK[:, classes], alpha_K[classes] = predicted, alpha
    predicted_MK = predicted_MK.clip(values.min(), values.max())

    used_MK = fit_MK & fitted_K
    square_MK = np.where(used_MK, value_MK - predicted_MK, 0.0) ** 2
    count_K = used_MK.sum(axis=0)
    error_K[fitted_K] = np.sqrt(square_MK.sum(axis=0)[fitted_K] / count_K[fitted_K])
    spread = float(((value_MK[used_MK] - value_MK[used_MK].mean()) ** 2).sum())
    r2 = 1 - float(square_MK.sum()) / spread if spread > 0 else 0.0
    return RewardModel(predicted_MK, error_K, fitted_K, alpha_K, r2, int(used_MK.sum()))


def _standardised(features_MD: Floats, fit_M: Bools) -> Floats:
    """Give features mean 0 and deviation 1 over the rows to learn from; a constant becomes 0."""
    features_MD = features_MD.astype(np.float64)
    mean_D, sd_D = features_MD[fit_M].mean(axis=0), features_MD[fit_M].std(axis=0)
    varies_D = sd_D > 1e-12 * np.maximum(1.0, np.abs(mean_D))
    return (features_MD - mean_D) * varies_D / np.where(varies_D, sd_D, 1.0)


def _fit(x_MD: Floats, rows_M: Bools, y_NG: Floats) -> tuple[Floats, Floats]:
    """Return predictions (M, G) for classes known at the same N rows, and their penalties (G,)."""
    N, G = y_NG.shape
    x_mean_D, y_mean_G = x_MD[rows_M].mean(axis=0), y_NG.mean(axis=0)
    x_ND = x_MD[rows_M] - x_mean_D
    eigenvalue_D, vectors_DD = np.linalg.eigh(x_ND.T @ x_ND)
    z_ND = x_ND @ vectors_DD
    projected_DG = z_ND.T @ (y_NG - y_mean_G)
    best_G, alpha_G = np.full(G, np.inf), np.zeros(G)
    loo_NG, weight_DG = np.zeros((N, G)), np.zeros((len(eigenvalue_D), G))
    for alpha in ALPHAS:
        shrunk_D = 1 / (eigenvalue_D.clip(min=0) + alpha * N)
        leverage_N = 1 / N + z_ND**2 @ shrunk_D
        residual_NG = y_NG - y_mean_G - z_ND @ (shrunk_D[:, None] * projected_DG)
        left_out_NG = residual_NG / (1 - leverage_N)[:, None]
        error_G = (left_out_NG**2).sum(axis=0)
        better_G = error_G < best_G
        best_G[better_G], alpha_G[better_G] = error_G[better_G], alpha
        loo_NG[:, better_G] = (y_NG - left_out_NG)[:, better_G]
        weight_DG[:, better_G] = (shrunk_D[:, None] * projected_DG)[:, better_G]
    predicted_MG = y_mean_G + (x_MD - x_mean_D) @ (vectors_DD @ weight_DG)
    predicted_MG[rows_M] = loo_NG
    return predicted_MG, alpha_G


def _check(value_MK: Floats, features_MD: Floats, fit_M: Bools, fit_MK: Bools) -> None:
    M = len(value_MK)
    if features_MD.ndim != 2 or len(features_MD) != M or fit_M.shape != (M,):
        raise UserError(
            f"Shapes do not fit: values {value_MK.shape}, features {features_MD.shape}, images to "
            f"learn from {fit_M.shape}; expected (M, K), (M, D), (M,)."
        )
    if not (np.isfinite(features_MD).all() and np.isfinite(value_MK[fit_MK]).all()):
        raise UserError("A feature or value to learn a reward model from is NaN or infinite.")
    most = int(fit_MK.sum(axis=0).max(initial=0))
    if most < LEAST_PAIRS:
        raise UserError(
            f"No label has feedback on {LEAST_PAIRS} images to learn from (the most is {most}), so "
            "unknown labels cannot be predicted. Take --unknown mask or --unknown prior."
        )


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

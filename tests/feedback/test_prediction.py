"""Unknown pairs predicted from features, against scikit-learn's ridge refitted row by row."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from visgrpo.errors import UserError
from visgrpo.feedback.worth.posterior import Posterior
from visgrpo.feedback.worth.prediction import ALPHAS, LEAST_PAIRS, predict_unknown, reward_model


def linear_world(images: int, classes: int, noise: float, seed: int = 0):
    """Features (M, D), values (M, K) that are linear in them but for noise, known pairs."""
    rng = np.random.default_rng(seed)
    features = rng.normal(3, 2, (images, 6))
    value = features @ rng.normal(0, 1, (6, classes)) + rng.normal(0, 1, classes)
    known = rng.random(value.shape) < 0.6
    return features, value + rng.normal(0, noise, value.shape), known


def test_leave_one_out_against_refits() -> None:
    features, value, known = linear_world(40, 2, noise=3.0)
    fit = np.arange(40) < 30
    model = reward_model(value, known, features, fit)
    scaled = StandardScaler().fit(features[fit]).transform(features)
    for k in range(2):
        rows = np.flatnonzero(known[:, k] & fit)
        errors = {}
        for alpha in ALPHAS:
            left_out = []
            for row in rows:
                others = rows[rows != row]
                ridge = Ridge(alpha * len(rows)).fit(scaled[others], value[others, k])
                left_out.append(ridge.predict(scaled[[row]])[0])
            errors[alpha] = ((value[rows, k] - left_out) ** 2).mean()
            if alpha == model.alpha_K[k]:
                expected = np.clip(left_out, value[known & fit[:, None]].min(), None)
                expected = np.clip(expected, None, value[known & fit[:, None]].max())
                np.testing.assert_allclose(model.predicted_MK[rows, k], expected)
        assert model.alpha_K[k] == min(errors, key=errors.__getitem__)
        full = Ridge(model.alpha_K[k] * len(rows)).fit(scaled[rows], value[rows, k])
        rest = np.setdiff1d(np.arange(40), rows)
        used = value[known & fit[:, None]]
        expected = full.predict(scaled[rest]).clip(used.min(), used.max())
        np.testing.assert_allclose(model.predicted_MK[rest, k], expected)


def test_a_linear_world_is_learned_and_known_pairs_are_kept() -> None:
    features, value, known = linear_world(300, 3, noise=0.3)
    posterior = Posterior(np.where(known, value, 0.0), np.where(known, 0.1, 9.0), known)
    predicted = predict_unknown(posterior, features, np.ones(300, dtype=bool))
    assert predicted.r2 > 0.97
    filled = predicted.posterior
    assert np.array_equal(filled.mean_MK[known], value[known])
    assert np.array_equal(filled.sd_MK[known], posterior.sd_MK[known])
    assert np.array_equal(filled.known_MK, known)
    error = np.sqrt(((filled.mean_MK - value)[~known] ** 2).mean())
    assert error == pytest.approx(filled.sd_MK[~known].mean(), rel=0.2)
    assert predicted.predicted_pairs == (~known).sum()
    assert predicted.learned_pairs == known.sum()
    assert predicted.unfitted_classes == 0


def test_features_that_say_nothing_have_no_r2() -> None:
    rng = np.random.default_rng(1)
    features, value = rng.normal(size=(200, 20)), rng.normal(size=(200, 2))
    model = reward_model(value, np.ones((200, 2), dtype=bool), features, np.ones(200, dtype=bool))
    assert model.r2 < 0.03
    np.testing.assert_allclose(model.error_K, value.std(axis=0), rtol=0.1)


def test_held_out_feedback_is_never_learned_from() -> None:
    features, value, known = linear_world(60, 2, noise=1.0)
    fit = np.arange(60) % 3 > 0
    model = reward_model(value, known, features, fit)
    other = reward_model(np.where(fit[:, None], value, 1e6), known, features, fit)
    assert np.array_equal(model.predicted_MK, other.predicted_MK)
    moved = np.where(fit[:, None], features, 1e6)
    assert np.array_equal(
        model.predicted_MK[fit], reward_model(value, known, moved, fit).predicted_MK[fit]
    )


def test_a_prediction_has_not_seen_its_own_image() -> None:
    features, value, known = linear_world(60, 2, noise=1.0)
    fit = np.ones(60, dtype=bool)
    known[7] = True
    before = reward_model(value, known, features, fit)
    value[7] += 0.01  # too little to move the choice of the penalty
    after = reward_model(value, known, features, fit)
    np.testing.assert_allclose(after.predicted_MK[7], before.predicted_MK[7], rtol=1e-9)
    assert (after.predicted_MK[8] != before.predicted_MK[8]).all()


def test_classes_of_few_pairs_keep_the_prior() -> None:
    features, value, known = linear_world(80, 3, noise=0.5)
    known[:, 1] = np.arange(80) < LEAST_PAIRS - 1
    posterior = Posterior(np.where(known, value, -1.0), np.ones((80, 3)), known)
    predicted = predict_unknown(posterior, features, np.ones(80, dtype=bool))
    assert predicted.unfitted_classes == 1
    assert (predicted.posterior.mean_MK[~known[:, 1], 1] == -1).all()
    assert predicted.predicted_pairs == (~known[:, [0, 2]]).sum()
    model = reward_model(value, known, features, np.ones(80, dtype=bool))
    assert model.fitted_K.tolist() == [True, False, True]
    np.testing.assert_allclose(model.predicted_MK[:, 1], value[known].mean())
    assert model.error_K[1] == pytest.approx(value[known].std())


def test_constant_features_and_values_are_harmless() -> None:
    features = np.full((20, 3), 7.0)
    everything = np.ones((20, 1), dtype=bool)
    model = reward_model(np.full((20, 1), 2.0), everything, features, everything[:, 0])
    np.testing.assert_allclose(model.predicted_MK, 2)
    assert model.r2 == 0


def test_what_it_refuses() -> None:
    features, value, known = linear_world(20, 2, noise=1.0)
    fit = np.ones(20, dtype=bool)
    with pytest.raises(UserError, match="Shapes do not fit"):
        reward_model(value, known, features[:5], fit)
    with pytest.raises(UserError, match="Shapes do not fit"):
        reward_model(value, known, features, fit[:5, None])
    with pytest.raises(UserError, match=r"feature or value .* is NaN"):
        reward_model(value, known, np.where(features > 3, np.nan, features), fit)
    with pytest.raises(UserError, match=r"on 10 images .*the most is 9.*--unknown mask"):
        reward_model(value, np.ones_like(known), features, np.arange(20) < 9)

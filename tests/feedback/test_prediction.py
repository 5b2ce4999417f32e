"""Unknown pairs predicted from features, against scikit-learn's ridge refitted row by row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from log_tools import CLASSES, Rows, world
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from visgrpo.errors import UserError
from visgrpo.feedback.off_policy import estimate_policy
from visgrpo.feedback.worth.posterior import Posterior
from visgrpo.feedback.worth.prediction import (
    ALPHAS,
    LEAST_PAIRS,
    click_rates,
    predict_unknown,
    predicted_clicks,
    reward_model,
)


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
    filled, model = predict_unknown(posterior, features, np.ones(300, dtype=bool))
    assert model.r2 > 0.97
    assert np.array_equal(filled.mean_MK[known], value[known])
    assert np.array_equal(filled.sd_MK[known], posterior.sd_MK[known])
    assert np.array_equal(filled.known_MK, known)
    error = np.sqrt(((filled.mean_MK - value)[~known] ** 2).mean())
    assert error == pytest.approx(filled.sd_MK[~known].mean(), rel=0.2)
    assert model.pairs == known.sum()
    assert model.fitted_K.all()


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
    filled, model = predict_unknown(posterior, features, np.ones(80, dtype=bool))
    assert (filled.mean_MK[~known[:, 1], 1] == -1).all()
    assert (filled.mean_MK[:, [0, 2]] != -1).all()
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


SMALL = Rows(
    np.array([0, 0, 1]), np.array([0, 1, 2]), np.array([0.5, 0.5, 0.25]), np.array([1.0, 0.0, 1.0])
)


def with_flipped(rows: Rows, image: int) -> Rows:
    return replace(rows, click=np.where(rows.image == image, 1 - rows.click, rows.click))


def test_click_rates_by_hand() -> None:
    # Without image 1: label 0 has clicks 1/0.5 of weight 2, label 1 none of weight 2; overall 0.5.
    rates_MK = click_rates(SMALL.cells(), 2, CLASSES, folds=2, strength=3.0, seed=0)
    assert rates_MK[1] == pytest.approx([(1 + 1.5) / 4, 1.5 / 4, 0.5, 0.5])
    # Without image 0: label 2 was clicked whenever it was shown, so everything is 1.
    assert rates_MK[0] == pytest.approx([1, 1, 1, 1])


def test_click_rates_have_not_seen_the_image() -> None:
    truth = world()
    rows, _ = truth.log(seed=6, images=30)
    before_MK = click_rates(rows.cells(), 31, CLASSES, seed=1)
    after_MK = click_rates(with_flipped(rows, 7).cells(), 31, CLASSES, seed=1)
    assert (before_MK[7] == after_MK[7]).all()
    assert (before_MK[30] != after_MK[30]).any()  # not in the log: learns from all images
    assert ((before_MK != after_MK).any(axis=1)).sum() >= 24


def test_predictions_have_not_seen_the_image() -> None:
    truth = world()
    rows, type_M = truth.log(seed=6, images=60)
    features_MD = truth.rates_TK[type_M]
    before_MK = predicted_clicks(rows.cells(), features_MD, CLASSES, seed=1)
    after_MK = predicted_clicks(with_flipped(rows, 7).cells(), features_MD, CLASSES, seed=1)
    # Only the penalty, chosen once for all images, could tell; here it is the same.
    assert after_MK[7] == pytest.approx(before_MK[7], abs=1e-12)
    assert (np.abs(before_MK - after_MK).max(axis=1) > 1e-6).sum() > 40


def test_features_of_images_that_are_not_in_the_log_do_not_matter() -> None:
    truth = world()
    rows, type_M = truth.log(seed=6, images=60)
    features_MD = truth.rates_TK[type_M]
    alone_MK = predicted_clicks(rows.cells(), features_MD, CLASSES, seed=1)
    for rest in (np.zeros((500, CLASSES)), np.full((500, CLASSES), 1e3)):
        more_MD = np.concatenate([features_MD, rest])
        found_MK = predicted_clicks(rows.cells(), more_MD, CLASSES, seed=1)
        assert found_MK[:60] == pytest.approx(alone_MK, abs=1e-12)


def test_features_that_tell_make_better_estimates() -> None:
    truth = world()
    rows, type_M = truth.log(seed=8, images=2000)
    cells, features_MD = rows.cells(), truth.rates_TK[type_M]
    by_label_MK = click_rates(cells, len(type_M), CLASSES, seed=0)
    by_image_MK = predicted_clicks(cells, features_MD, CLASSES, seed=0)
    right_MK = truth.rates_TK[type_M]
    assert np.abs(by_image_MK - right_MK).mean() < 0.25 * np.abs(by_label_MK - right_MK).mean()
    crude, fine = (
        estimate_policy(cells, truth.target_TK[type_M], q_MK) for q_MK in (by_label_MK, by_image_MK)
    )
    assert fine.doubly_robust.error < crude.doubly_robust.error
    assert abs(fine.direct.value - truth.value) < 0.02 < abs(crude.direct.value - truth.value)


def test_rarely_logged_labels_are_predicted_by_their_rate() -> None:
    truth = world()
    rows, type_M = truth.log(seed=9, images=80)
    rare = (rows.label != 3) | (rows.image < 4)
    kept = Rows(*(getattr(rows, name)[rare] for name in vars(rows)))
    features_MD = truth.rates_TK[type_M]
    q_MK = predicted_clicks(kept.cells(), features_MD, CLASSES, seed=2)
    by_label_MK = click_rates(kept.cells(), 80, CLASSES, seed=2)
    assert (q_MK[:, 3] == by_label_MK[:, 3]).all()
    assert (q_MK[:, 0] != by_label_MK[:, 0]).all()
    few = Rows(*(getattr(rows, name)[rows.image < 6] for name in vars(rows)))
    few_MK = predicted_clicks(few.cells(), features_MD, CLASSES, seed=2)
    assert (few_MK == click_rates(few.cells(), 80, CLASSES, seed=2)).all()


def test_folds_need_images() -> None:
    with pytest.raises(UserError, match="2 images; 5 folds need one each"):
        click_rates(SMALL.cells(), 2, CLASSES, seed=0)

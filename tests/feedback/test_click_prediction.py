"""Predicted click rates: literals by hand, and predictions that have not seen their own image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from log_tools import CLASSES, Rows, world

from visgrpo.errors import UserError
from visgrpo.feedback.off_policy import estimate_policy
from visgrpo.feedback.worth.prediction import click_rates, predicted_clicks

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

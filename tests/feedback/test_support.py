"""What a log can support: refusals with their reasons, and remarks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from log_tools import Rows, world

from visgrpo.errors import UserError
from visgrpo.feedback.off_policy import check_support

TRUTH = world()
ROWS, TYPE_M = TRUTH.log(seed=0, images=400)
TARGET_MK = TRUTH.target_TK[TYPE_M]


def test_a_log_that_supports_the_policy() -> None:
    found, remarks = check_support(ROWS.cells(), TARGET_MK, least_share=0.2, groups=True)
    assert 0.2 < found.effective_share < 1
    assert remarks == ()


def test_too_few_effective_samples() -> None:
    rare_TK = np.zeros_like(TRUTH.logging_TK)
    rare_TK[np.arange(len(rare_TK)), TRUTH.logging_TK.argmin(axis=1)] = 1
    with pytest.raises(UserError) as caught:
        check_support(ROWS.cells(), rare_TK[TYPE_M], least_share=0.5)
    rho = (ROWS.label == rare_TK[TYPE_M].argmax(axis=1)[ROWS.image]) / ROWS.propensity
    share = rho.sum() ** 2 / (rho**2).sum() / len(rho)
    assert f"{share:.2%}, below 50.00%" in str(caught.value)
    assert "explore more when logging" in str(caught.value)


@pytest.mark.parametrize(
    ("factor", "reason"),
    [(0.5, "too small to be right"), (1.3, "too large to be right")],
)
def test_propensities_that_cannot_be_right(factor: float, reason: str) -> None:
    wrong = replace(ROWS, propensity=ROWS.propensity * factor)
    with pytest.raises(UserError, match=rf"The log cannot support this policy: .* not 1.*{reason}"):
        check_support(wrong.cells(), TARGET_MK, least_share=0.01)


def test_labels_that_the_logging_policy_could_not_show() -> None:
    narrow_TK = np.tile([0.5, 0.5, 0.0, 0.0], (len(TRUTH.rates_TK), 1))
    rows, type_M = replace(TRUTH, logging_TK=narrow_TK).log(seed=0, images=400)
    with pytest.raises(UserError, match="could not show labels that this policy would"):
        check_support(rows.cells(), TRUTH.target_TK[type_M], least_share=0.01)
    fine_MK = np.tile([0.6, 0.4, 0.0, 0.0], (400, 1))
    check_support(rows.cells(), fine_MK, least_share=0.01)


def test_a_policy_that_would_show_nothing_of_the_log() -> None:
    first = replace(ROWS, label=np.zeros_like(ROWS.label))
    other_MK = np.tile([0.0, 1.0, 0.0, 0.0], (400, 1))
    with pytest.raises(UserError, match=r"effective sample size is 0 of \d+ impressions"):
        check_support(first.cells(), other_MK, least_share=0.01)


def test_what_may_be_chance_is_a_remark() -> None:
    slightly = replace(ROWS, propensity=ROWS.propensity * 0.93)
    found, remarks = check_support(slightly.cells(), TARGET_MK, least_share=0.01)
    assert found.mean_ratio.low > 1
    assert "1 lies outside" in remarks[0]


def test_groups_need_an_image_with_two_labels() -> None:
    first = np.unique(ROWS.image, return_index=True)[1]
    single = Rows(*(getattr(ROWS, name)[first] for name in vars(ROWS)))
    check_support(single.cells(), TARGET_MK, least_share=0.01)
    with pytest.raises(UserError, match="two different labels"):
        check_support(single.cells(), TARGET_MK, least_share=0.01, groups=True)

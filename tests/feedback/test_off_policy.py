"""Off-policy estimates: literals by hand, sums row by row, and a world whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from log_tools import CLASSES, Rows, world
from scipy.stats import t as student

from visgrpo.errors import UserError
from visgrpo.feedback.off_policy import (
    Cut,
    Estimate,
    check_support,
    difference,
    estimate_policy,
    logged_value,
    overlap,
)
from visgrpo.feedback.worth.cells import LogCells
from visgrpo.feedback.worth.prediction import click_rates

# Two images; ratios of the policy below are 1, 1, 2 and clicks 1, 0, 1.
SMALL = Rows(
    np.array([0, 0, 1]), np.array([0, 1, 2]), np.array([0.5, 0.5, 0.25]), np.array([1.0, 0.0, 1.0])
)
POLICY_MK = np.array([[0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.5, 0.0]])
Q_MK = np.array([[0.8, 0.2, 0.0, 0.0], [0.0, 0.4, 0.6, 1.0]])


def test_literals() -> None:
    found = estimate_policy(SMALL.cells(), POLICY_MK, Q_MK)
    assert found.ips.value == pytest.approx(3 / 3)  # 1·1 + 1·0 + 2·1
    assert found.snips.value == pytest.approx(3 / 4)
    # Image 0 expects 0.5 and was shown twice, image 1 expects 0.4 and was shown once.
    assert found.direct.value == pytest.approx(1.4 / 3)
    # Residuals: 1·(1 - 0.8) + 1·(0 - 0.2) + 2·(1 - 0.6).
    assert found.doubly_robust.value == pytest.approx((1.4 + 0.8) / 3)
    assert found.sndr.value == pytest.approx(1.4 / 3 + 0.8 / 4)
    assert found.effective_samples == pytest.approx(16 / 6)
    assert found.effective_share == pytest.approx(16 / 18)
    assert found.mean_ratio.value == pytest.approx(4 / 3)
    assert found.largest_ratio == pytest.approx(2)
    assert (found.impressions, found.images) == (3, 2)
    assert found.uncovered == pytest.approx((2 * 0 + 1 * 0.5) / 3)
    assert logged_value(SMALL.cells()).value == pytest.approx(2 / 3)


def cut_by_rows(rows: Rows, policy_MK: np.ndarray, q_MK: np.ndarray, name: str) -> list[float]:
    """Clipped IPS or Switch-DR of the least bound, by loops over impressions."""
    rho = policy_MK[rows.image, rows.label] / rows.propensity
    q = q_MK[rows.image, rows.label]
    expected = (policy_MK * q_MK).sum(axis=1)[rows.image]
    images = sorted(set(rows.image.tolist()))
    reach = float(student.ppf(0.975, len(images) - 1))

    def values(at: float) -> np.ndarray:
        if name == "clipped":
            return np.minimum(rho, at) * rows.click
        return expected + np.where(rho <= at, rho, 0) * (rows.click - q)

    def error(each: np.ndarray) -> float:
        sums = [((each - each.mean())[rows.image == m].sum() / len(rho)) ** 2 for m in images]
        return float((len(images) / (len(images) - 1) * sum(sums)) ** 0.5)

    whole = values(np.inf)
    found = [(error(whole) ** 2, whole.mean(), error(whole), np.inf)]
    quantiles = np.quantile(rho, np.linspace(0.5, 1, 26), method="inverted_cdf")
    for at in sorted(set(quantiles.tolist()), reverse=True):
        each = values(at)
        bias = abs(each.mean() - whole.mean()) + reach * error(each - whole)
        found.append((error(each) ** 2 + bias**2, each.mean(), error(each), at))
    return list(min(found, key=lambda each: each[0])[1:])


@pytest.mark.parametrize("name", ["clipped", "switch"])
def test_ratios_are_cut_where_a_bound_of_the_squared_error_is_least(name: str) -> None:
    truth, cuts = world(), 0
    for seed in range(12):
        rows, type_M = truth.log(seed, images=40)
        # A policy that shows mostly one label: some ratios are large.
        best_M = truth.target_TK[type_M].argmax(axis=1)
        policy_MK = np.eye(CLASSES)[best_M] * 0.9 + 0.1 / CLASSES
        q_MK = np.full_like(policy_MK, 0.2)
        found = estimate_policy(rows.cells(), policy_MK, q_MK)
        cut: Cut = getattr(found, name)
        value, error, _ = cut_by_rows(rows, policy_MK, q_MK, name)
        assert (cut.value, cut.error) == pytest.approx((value, error), rel=1e-9)
        whole = found.ips if name == "clipped" else found.doubly_robust
        assert cut.error <= whole.error * (1 + 1e-9)
        cuts += cut.value != pytest.approx(whole.value, rel=1e-9)
    assert (cuts > 0) == (
        name == "clipped"
    )  # a bound that never misleads rarely lets Switch-DR cut


def test_switch_dr_by_hand() -> None:
    """40 images, shown five times: four ratios of 1, one of 1.2; half are always clicked, half
    never, and q says 0.5. Residuals of an image are ±2.6, without the last ±2."""
    image, label = np.repeat(np.arange(40), 5), np.tile([0, 0, 0, 0, 1], 40)
    propensity = np.where(label == 0, 0.5, 0.5 / 1.2)
    rows = Rows(image, label, propensity, (image % 2 == 0).astype(float))
    policy_MK = np.tile([0.5, 0.5, 0.0, 0.0], (40, 1))
    found = estimate_policy(rows.cells(), policy_MK, np.full((40, CLASSES), 0.5))
    assert found.doubly_robust.error == pytest.approx(2.6 / 5 / np.sqrt(39))
    assert (found.switch.at, found.switch.value) == pytest.approx((1.0, 0.5))
    assert found.switch.error == pytest.approx(2.0 / 5 / np.sqrt(39))


def test_sndr_without_predictions_is_snips() -> None:
    found = estimate_policy(SMALL.cells(), POLICY_MK, np.zeros_like(Q_MK))
    assert found.sndr.value == pytest.approx(found.snips.value)
    assert found.sndr.error == pytest.approx(found.snips.error)


def test_the_interval_by_hand() -> None:
    # Influence of image 0: (1 - 1·2) / 3; of image 1: (2 - 1·1) / 3.
    ips = estimate_policy(SMALL.cells(), POLICY_MK, Q_MK).ips
    error = np.sqrt(2 / 1 * 2 / 9)
    reach = 12.7062 * error  # Student's t at one degree of freedom
    assert ips.error == pytest.approx(error)
    assert (ips.low, ips.high) == pytest.approx((1 - reach, 1 + reach), rel=1e-5)


def by_rows(rows: Rows, policy_MK: np.ndarray, q_MK: np.ndarray) -> dict[str, tuple[float, float]]:
    """Values and standard errors by loops over impressions."""
    images = sorted(set(rows.image.tolist()))
    above: dict[str, dict[int, float]] = {
        name: dict.fromkeys(images, 0.0) for name in ("ips", "direct", "doubly_robust", "ratio")
    }
    shown = dict.fromkeys(images, 0)
    for m, k, p, c in zip(rows.image, rows.label, rows.propensity, rows.click, strict=True):
        rho = policy_MK[m, k] / p
        expected = sum(policy_MK[m, j] * q_MK[m, j] for j in range(CLASSES))
        shown[m] += 1
        above["ips"][m] += rho * c
        above["ratio"][m] += rho
        above["direct"][m] += expected
        above["doubly_robust"][m] += expected + rho * (c - q_MK[m, k])
    below = dict.fromkeys(above, shown) | {"snips": above["ratio"]}
    found = {}
    for name, per_image in (above | {"snips": above["ips"]}).items():
        total = sum(below[name].values())
        value = sum(per_image.values()) / total
        squares = [((per_image[m] - value * below[name][m]) / total) ** 2 for m in images]
        found[name] = (value, (len(images) / (len(images) - 1) * sum(squares)) ** 0.5)
    return found


def test_cells_say_what_rows_say() -> None:
    truth = world()
    rows, type_M = truth.log(seed=3, images=60)
    policy_MK = truth.target_TK[type_M]
    q_MK = np.random.default_rng(5).random(policy_MK.shape)
    found = estimate_policy(rows.cells(), policy_MK, q_MK)
    expected = by_rows(rows, policy_MK, q_MK)
    for name in ("ips", "snips", "direct", "doubly_robust"):
        estimate: Estimate = getattr(found, name)
        assert (estimate.value, estimate.error) == pytest.approx(expected[name], rel=1e-12)
    ratio = found.mean_ratio
    assert (ratio.value, ratio.error) == pytest.approx(expected["ratio"], rel=1e-12)
    rho = policy_MK[rows.image, rows.label] / rows.propensity
    assert found.effective_samples == pytest.approx(rho.sum() ** 2 / (rho**2).sum())
    assert found.largest_ratio == pytest.approx(rho.max())


def test_errors_agree_with_the_jackknife() -> None:
    truth = world()
    rows, type_M = truth.log(seed=4, images=200)
    policy_MK = truth.target_TK[type_M]
    q_MK = np.full_like(policy_MK, 0.4)
    found = estimate_policy(rows.cells(), policy_MK, q_MK)
    without = []
    for m in range(200):
        kept = rows.image != m
        fewer = Rows(*(getattr(rows, name)[kept] for name in vars(rows)))
        without.append(estimate_policy(fewer.cells(), policy_MK, q_MK))
    for name in ("ips", "snips", "doubly_robust", "sndr"):
        values = np.array([getattr(each, name).value for each in without])
        jackknife = np.sqrt(199 / 200 * ((values - values.mean()) ** 2).sum())
        assert getattr(found, name).error == pytest.approx(jackknife, rel=0.03)


@pytest.fixture(scope="module")
def replications() -> dict[str, np.ndarray]:
    """Value, low and high of every estimator over 400 logs of 250 images: (400, 3)."""
    truth = world()
    found: dict[str, list[tuple[float, float, float]]] = {}
    for seed in range(400):
        rows, type_M = truth.log(seed, images=250)
        cells, policy_MK = rows.cells(), truth.target_TK[type_M]
        q_MK = click_rates(cells, *policy_MK.shape, seed=seed)
        first = estimate_policy(cells, policy_MK, q_MK)
        other = estimate_policy(cells, truth.logging_TK[type_M], q_MK)
        each = {name: getattr(first, name) for name in ("ips", "snips", "doubly_robust", "sndr")}
        each["mean_ratio"] = first.mean_ratio
        each["difference"] = difference(other.doubly_robust, first.doubly_robust)
        for name, estimate in each.items():
            found.setdefault(name, []).append((estimate.value, estimate.low, estimate.high))
    return {name: np.array(values) for name, values in found.items()}


@pytest.mark.parametrize(
    "name", ["ips", "snips", "doubly_robust", "sndr", "mean_ratio", "difference"]
)
def test_unbiased_and_covered(replications: dict[str, np.ndarray], name: str) -> None:
    truth = world()
    logged = float((truth.logging_TK * truth.rates_TK).sum(axis=1).mean())
    true = {"mean_ratio": 1.0, "difference": truth.value - logged}.get(name, truth.value)
    value, low, high = replications[name].T
    assert abs(value.mean() - true) < 3.5 * value.std() / np.sqrt(len(value))
    assert np.mean((low <= true) & (true <= high)) == pytest.approx(0.95, abs=0.03)


def test_doubly_robust_needs_one_of_the_two() -> None:
    truth = world()
    rows, type_M = truth.log(seed=0, images=20_000)
    policy_MK, right_MK = truth.target_TK[type_M], truth.rates_TK[type_M]
    wrong = replace(rows, propensity=np.sqrt(rows.propensity))
    bad_MK = np.full_like(right_MK, 0.9)

    right_p = estimate_policy(rows.cells(), policy_MK, bad_MK)
    right_q = estimate_policy(wrong.cells(), policy_MK, right_MK)
    neither = estimate_policy(wrong.cells(), policy_MK, bad_MK)
    assert right_p.doubly_robust.value == pytest.approx(truth.value, abs=0.01)
    assert right_q.doubly_robust.value == pytest.approx(truth.value, abs=0.01)
    assert abs(right_p.direct.value - truth.value) > 0.2
    assert abs(right_q.ips.value - truth.value) > 0.02
    assert abs(neither.doubly_robust.value - truth.value) > 0.02


def with_reward_shifted(cells: LogCells, by: float) -> LogCells:
    return replace(
        cells,
        clicks_C=cells.clicks_C + by * cells.count_C,
        clicks_inverse_C=cells.clicks_inverse_C + by * cells.inverse_C,
    )


def test_snips_moves_with_the_rewards_and_ips_does_not() -> None:
    truth = world()
    rows, type_M = truth.log(seed=1, images=30)
    cells, policy_MK = rows.cells(), truth.target_TK[type_M]
    zero_MK = np.zeros_like(policy_MK)
    before = estimate_policy(cells, policy_MK, zero_MK)
    after = estimate_policy(with_reward_shifted(cells, 10.0), policy_MK, zero_MK)
    assert after.snips.value - before.snips.value == pytest.approx(10)
    assert after.snips.error == pytest.approx(before.snips.error)
    assert abs(after.ips.value - before.ips.value - 10) > 0.1
    assert after.ips.error > 2 * before.ips.error


def test_the_logging_policy_is_worth_what_it_earned() -> None:
    # Every label shown as often as its propensity says: all ratios are 1.
    rows = Rows(
        np.repeat([0, 1, 2], 4), np.tile([0, 0, 1, 2], 3), np.tile([0.5, 0.5, 0.25, 0.25], 3),
        np.array([1, 0, 1, 0, 0, 0, 1, 0, 1, 1, 1, 0.0]),
    )  # fmt: skip
    policy_MK = np.tile([0.5, 0.25, 0.25, 0.0], (3, 1))
    found = estimate_policy(rows.cells(), policy_MK, np.zeros((3, CLASSES)))
    logged = logged_value(rows.cells())
    assert (found.effective_share, found.mean_ratio.value, found.uncovered) == (1, 1, 0)
    for estimate in (found.ips, found.snips, found.doubly_robust):
        assert (estimate.value, estimate.low) == pytest.approx((logged.value, logged.low))
    same = difference(logged, found.ips)
    assert (same.value, same.error) == pytest.approx((0, 0), abs=1e-15)


def test_differences_are_paired() -> None:
    truth = world()
    rows, type_M = truth.log(seed=2, images=300)
    cells = rows.cells()
    first_MK = truth.target_TK[type_M]
    second_MK = 0.95 * first_MK + 0.05 / CLASSES
    q_MK = np.full_like(first_MK, 0.5)
    a, b = (estimate_policy(cells, policy, q_MK).ips for policy in (first_MK, second_MK))
    change = difference(a, b)
    assert change.value == pytest.approx(b.value - a.value)
    assert change.error < 0.2 * np.hypot(a.error, b.error)


def test_images_without_impressions_count_for_nothing() -> None:
    # A third image that was never logged; its probabilities need not even be some.
    padded = [np.vstack([values, np.full(CLASSES, np.nan)]) for values in (POLICY_MK, Q_MK)]
    more = estimate_policy(SMALL.cells(), padded[0], padded[1])
    assert more == estimate_policy(SMALL.cells(), POLICY_MK, Q_MK)


@pytest.mark.parametrize(
    ("policy_MK", "message"),
    [
        (np.full((2, CLASSES), 0.5), "image 0 are not a distribution"),
        (np.array([[0.5, 0.5, 0, 0], [1.5, -0.5, 0, 0]]), "image 1 are not a distribution"),
        (np.full((2, CLASSES), np.nan), "image 0 are not a distribution"),
        (np.full((1, CLASSES), 0.25), "give a row for every image"),
        (np.full((2, 2), 0.5), "give a row for every image"),
    ],
)
def test_probabilities_that_will_not_do(policy_MK: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        overlap(SMALL.cells(), policy_MK)


def test_other_mistakes() -> None:
    one = Rows(*(getattr(SMALL, name)[:2] for name in vars(SMALL))).cells()
    with pytest.raises(UserError, match="two images or more, not 1"):
        overlap(one, POLICY_MK)
    with pytest.raises(UserError, match=r"Predicted rewards are \(2, 3\)"):
        estimate_policy(SMALL.cells(), POLICY_MK, Q_MK[:, :3])
    with pytest.raises(UserError, match="no probability to any label that the log showed"):
        estimate_policy(SMALL.cells(), np.tile([0.0, 0.0, 0.0, 1.0], (2, 1)), Q_MK)
    large = world().log(seed=0, images=9)[0].cells()
    with pytest.raises(UserError, match="logs of 2 and 9 images"):
        difference(logged_value(SMALL.cells()), logged_value(large))


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

"""Groups from a log: against the exact estimator, against sums over impressions, and by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from feedback_tools import DoubleLogged, gradient, learner, logged, rewards_of, rows, table
from label_tools import names

from visgrpo.errors import UserError
from visgrpo.feedback.reward import Correction, Log
from visgrpo.objectives import Objective

RNG = np.random.default_rng(5)
LOGITS = torch.from_numpy(RNG.normal(size=(3, 4)))
POLICY = LOGITS.softmax(-1).numpy()
PROPENSITIES = RNG.dirichlet(np.full(4, 2.0), 3)
WORTH = RNG.random((3, 4))
EVERYTHING = np.ones((3, 4), dtype=bool)
CORRECTIONS: tuple[Correction, ...] = ("ratio", "self-normalized", "uncorrected")


def log_of(shares: Any, propensities: Any) -> Log:
    shares_NK = torch.as_tensor(shares, dtype=torch.float64)
    p_NK = torch.as_tensor(propensities, dtype=torch.float64)
    return Log(shares_NK, torch.where(shares_NK > 0, p_NK, 1.0).log())


INFINITE = (PROPENSITIES, PROPENSITIES)  # as often shown as propensities say
UNCLIPPED = Objective(scale="none", clip="none")


def slope_of(correction: Correction, worth: Any = WORTH, log: Any = INFINITE) -> np.ndarray:
    known = np.asarray(log[0]) > 0
    policy = logged(table(worth, known), log_of(*log), objective=UNCLIPPED, correction=correction)
    return gradient(policy, LOGITS).numpy()


def exact_slope(worth: np.ndarray = WORTH) -> np.ndarray:
    """π_k (r_k - E_π r)."""
    return POLICY * (worth - (POLICY * worth).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("correction", ["ratio", "self-normalized"])
def test_an_endless_log_has_the_exact_gradient(correction: Correction) -> None:
    """Whatever policy wrote it."""
    np.testing.assert_allclose(slope_of(correction), exact_slope(), rtol=1e-10, atol=1e-14)
    plain = gradient(learner(table(WORTH, EVERYTHING), estimator="exact"), LOGITS)
    np.testing.assert_allclose(slope_of(correction), plain.numpy(), rtol=1e-10, atol=1e-14)


def test_without_correction_the_log_teaches_its_own_policy() -> None:
    """Weights are the log's: Σ_k p_k (r_k - E_p r) ∇log π_k, another gradient."""
    centred = WORTH - (PROPENSITIES * WORTH).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(slope_of("uncorrected"), PROPENSITIES * centred, rtol=1e-10)
    assert np.abs(slope_of("uncorrected") - exact_slope()).max() > 0.02


FEW = (np.array([[0.5, 0.25, 0.25, 0], [0, 0.75, 0.25, 0], [0.25, 0.25, 0.25, 0.25]]), PROPENSITIES)


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_a_constant_added_to_all_rewards_changes_nothing(correction: Correction) -> None:
    """Also `ratio`, thanks to its baseline, the mean of the log."""
    shifted = slope_of(correction, WORTH + 7.0, FEW)
    np.testing.assert_allclose(shifted, slope_of(correction, log=FEW), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("correction", ["ratio", "self-normalized"])
def test_a_short_log(correction: Correction) -> None:
    """By sums over its impressions, four of each image; outside the log, `ratio` pushes too."""
    shares, slope = FEW[0], slope_of(correction, log=FEW)
    for n in range(3):
        shown = [k for k in range(4) for _ in range(round(4 * shares[n, k]))]
        rho = np.array([POLICY[n, k] / PROPENSITIES[n, k] for k in shown])
        r = WORTH[n, shown]
        if correction == "ratio":
            gain = rho * (r - r.mean()) / 4
        else:
            gain = rho / rho.sum() * (r - rho @ r / rho.sum())
        expected = np.zeros(4)
        for k, each in zip(shown, gain, strict=True):
            expected += each * (np.eye(4)[k] - POLICY[n])
        np.testing.assert_allclose(slope[n], expected, rtol=1e-9, atol=1e-13)
    outside = np.abs(slope[shares == 0])
    assert (outside.min() > 1e-4) == (correction == "ratio")


def value_by_impressions(n: int) -> float:
    """Σ ρ c / Σ ρ over the impressions of an image."""
    above = below = 0.0
    for k in range(4):
        for _ in range(round(4 * FEW[0][n, k])):
            rho = POLICY[n, k] / PROPENSITIES[n, k]
            above, below = above + rho * WORTH[n, k], below + rho
    return above / below


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_the_reward_is_what_the_policy_would_earn(correction: Correction) -> None:
    policy = logged(table(WORTH, FEW[0] > 0), log_of(*FEW), correction=correction)
    metrics = policy.loss(lambda inputs: LOGITS, rows(LOGITS), None, 0).metrics
    expected = np.mean([value_by_impressions(n) for n in range(3)])
    assert metrics["reward"].item() == pytest.approx(expected, rel=1e-9)
    assert metrics["rewards/clicks/mean"].item() == pytest.approx(expected, rel=1e-9)
    # Of the policy as it is now, on groups of an older one.
    groups = policy.groups(LOGITS.flip(0), rows(LOGITS), 0)
    later = policy.loss(lambda inputs: LOGITS, rows(LOGITS), groups, 0).metrics
    assert later["reward"].item() == pytest.approx(expected, rel=1e-9)


# π = (0.9, 0.1) of labels shown equally often: ρ = (1.8, 0.2), A = ±0.5.
SURE = torch.tensor([[math.log(9.0), 0.0]], dtype=torch.float64)
EVEN = ([[0.5, 0.5]], [[0.5, 0.5]])


@pytest.mark.parametrize(
    ("worth", "loss", "slope", "low", "high"),
    [
        # min(1.8·0.5, 1.2·0.5) = 0.6 and min(-0.2·0.5, -0.8·0.5) = -0.4: both clipped.
        ([1.0, 0.0], -(0.6 - 0.4) / 2, 0.0, 0.5, 0.5),
        # -1.8·0.5 and min(0.2·0.5, 0.8·0.5): neither; ∂/∂z_0 of (-0.9 + 0.1)/2 by ρ' = ρ(1 - π).
        ([0.0, 1.0], 0.4, (-0.9 * 0.1 - 0.1 * 0.9) / 2, 0.0, 0.0),
    ],
)
def test_the_clip_is_about_the_policy_that_wrote_the_log(
    worth: list[float], loss: float, slope: float, low: float, high: float
) -> None:
    policy = logged(table([worth], [[True, True]]), log_of(*EVEN), correction="ratio")
    result = policy.loss(lambda inputs: SURE, rows(SURE), None, 0)
    assert result.loss.item() == pytest.approx(loss)
    assert gradient(policy, SURE)[0].tolist() == pytest.approx([slope, -slope], abs=1e-12)
    assert result.metrics["clip_ratio/low_mean"].item() == pytest.approx(low)
    assert result.metrics["clip_ratio/high_mean"].item() == pytest.approx(high)
    assert result.metrics["ratio_mean"].item() == pytest.approx(1.0)  # (1.8 + 0.2) / 2


@pytest.mark.parametrize("correction", ["self-normalized", "uncorrected"])
def test_other_ratios_are_to_the_old_policy(correction: Correction) -> None:
    policy = logged(table([[1.0, 0.0]], [[True, True]]), log_of(*EVEN), correction=correction)
    metrics = policy.loss(lambda inputs: SURE, rows(SURE), None, 0).metrics
    assert metrics["ratio_mean"].item() == pytest.approx(1.0)
    assert metrics["clip_ratio/region_mean"].item() == 0.0
    groups = policy.groups(torch.zeros_like(SURE), rows(SURE), 0)
    later = policy.loss(lambda inputs: SURE, rows(SURE), groups, 0).metrics
    assert later["clip_ratio/region_mean"].item() == pytest.approx(1.0)  # ρ is 1.8 and 0.2 again


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("objective", [Objective(), Objective(scope="batch")], ids=str)
def test_images_that_are_not_in_the_log_change_nothing(
    objective: Objective, correction: Correction
) -> None:
    shares = FEW[0].copy()
    shares[1] = 0
    found = []
    for junk in (0.0, 30.0):
        worth, logits = WORTH.copy(), LOGITS.clone()
        worth[1] += junk
        logits[1, 2] += junk
        policy = logged(
            table(worth, shares > 0),
            log_of(shares, PROPENSITIES),
            objective=objective,
            correction=correction,
        )
        result = policy.loss(lambda inputs, at=logits: at, rows(logits), None, 0)
        found.append((result, gradient(policy, logits)))
        assert result.groups is not None
        assert result.groups.weights_NG is not None
        assert result.groups.weights_NG[1].tolist() == [0.0] * 4
    (first, slope), (second, other) = found
    assert first.loss.item() == second.loss.item()
    assert torch.equal(slope, other)
    assert slope[1].abs().max() == 0
    assert slope[0].abs().max() > 1e-4
    assert first.metrics["reward"].item() == second.metrics["reward"].item()


def test_a_policy_far_from_the_log_still_has_weights() -> None:
    far = torch.tensor([[900.0, 0.0, -900.0]], dtype=torch.float64)
    shares = [[0.0, 0.5, 0.5]]
    policy = logged(
        table([[0.0, 1.0, 0.0]], [[False, True, True]]),
        log_of(shares, [[0.2, 0.4, 0.4]]),
        correction="self-normalized",
    )
    result = policy.loss(lambda inputs: far, rows(far), None, 0)
    assert result.groups is not None
    assert result.groups.weights_NG is not None
    assert result.groups.weights_NG.tolist() == [[0.0, 1.0, 0.0]]
    assert result.metrics["reward"].item() == 1.0
    assert torch.isfinite(result.loss)


def test_a_minibatch_has_the_loss_of_its_rows() -> None:
    policy = logged(table(WORTH, FEW[0] > 0), log_of(*FEW), correction="ratio")
    batch = rows(LOGITS)
    groups = policy.rollout(lambda inputs: inputs, batch, 0, chunk=2)
    picked = torch.tensor([2, 0])
    part = policy.loss(
        lambda inputs: LOGITS[picked], batch.select(picked), groups.select(picked), 0
    )
    values = [value_by_impressions(n) for n in (2, 0)]
    assert part.metrics["reward"].item() == pytest.approx(np.mean(values), rel=1e-9)


def test_what_a_log_needs() -> None:
    reward, log = table(WORTH, EVERYTHING), log_of(*INFINITE)
    with pytest.raises(UserError, match=r'go with --estimator exact, not with "sampled"'):
        logged(reward, log, estimator="sampled")
    with pytest.raises(UserError, match="masked elsewhere"):
        logged(table(WORTH, EVERYTHING, masks=False), log)
    with pytest.raises(UserError, match="A KL weight"):
        logged(reward, log, beta=0.1)


def test_samples_show_what_was_logged_with_its_propensities() -> None:
    reward = table(WORTH, FEW[0] > 0)
    policy = DoubleLogged(
        rewards=rewards_of({"clicks": reward}, None, 4),
        objective=UNCLIPPED,
        classes=names(4),
        estimator="exact",
        log=log_of(*FEW),
    )
    groups = policy.groups(LOGITS, rows(LOGITS), 0)
    sample = policy.samples(groups, rows=2)[1]
    order = sorted([1, 2], key=lambda k: -PROPENSITIES[1, k])
    assert sample["outputs"] == ["abcd"[k] for k in order]
    assert sample["probabilities"] == pytest.approx(PROPENSITIES[1, order])

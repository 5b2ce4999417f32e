"""Where training ends: a free logit table driven to convergence, against the closed form.

The reward enters only through ``advantages`` and ``surrogate``, one fresh π_old per step.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from visgrpo.objectives import (
    advantages,
    categorical_kl,
    entropy,
    estimator_weights,
    surrogate,
)

# Rewards of four classes for three inputs, and a reference policy.
REWARDS = np.array([[1.0, 0.2, 0.5, 0.0], [0.3, 0.9, 0.8, 0.1], [0.0, 0.0, 1.0, 0.0]])
REFERENCE = np.random.default_rng(0).dirichlet(np.full(4, 3.0), 3)


def optimum(
    rewards: np.ndarray,
    *,
    alpha: float = 0.0,
    beta: float = 0.0,
    scale: str = "none",
    clip: str = "two_sided",
    rate: float | None = None,
    steps: int = 60,
) -> np.ndarray:
    """Train a table of logits on surrogate + β·KL - α·entropy; return the policies (N, K).

    The gradient is divided by π (mirror descent), so that rare classes converge as fast as
    frequent ones: a step at rate 1/(α + β) would land on the optimum of an unscaled reward.
    """
    logits = torch.zeros(rewards.shape, dtype=torch.float64, requires_grad=True)
    rewards_NK, log_reference = torch.from_numpy(rewards), torch.from_numpy(REFERENCE).log()
    rate = 0.5 / (alpha + beta) if rate is None else rate
    for _ in range(steps):
        log_probs = logits.log_softmax(-1)
        weights = estimator_weights("exact", log_probs)
        a = advantages(rewards_NK, scale=scale, weights_NG=weights, eps=1e-12)
        tokens = log_probs[..., None]
        loss = surrogate(tokens, tokens, a, weights_NG=weights, clip=clip).loss
        if alpha:
            loss = loss - alpha * entropy(log_probs).mean()
        if beta:
            loss = loss + beta * categorical_kl(log_probs, log_reference[: len(rewards)]).mean()
        slope = torch.autograd.grad(loss * len(rewards), logits)[0]
        with torch.no_grad():
            logits -= rate * slope / log_probs.exp()
    return logits.detach().softmax(-1).numpy()


def gibbs(exponents: np.ndarray, prior: np.ndarray | float = 1.0) -> np.ndarray:
    unnormalised = prior * np.exp(exponents)
    return unnormalised / unnormalised.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize("clip", ["two_sided", "detached", "none"])
def test_entropy_weight(alpha: float, clip: str) -> None:
    result = optimum(REWARDS, alpha=alpha, clip=clip)
    np.testing.assert_allclose(result, gibbs(REWARDS / alpha), atol=1e-8)
    # The control: half the weight is another policy.
    assert np.abs(result - gibbs(REWARDS / (alpha / 2))).max() > 0.05


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_kl_weight(beta: float) -> None:
    result = optimum(REWARDS, beta=beta)
    np.testing.assert_allclose(result, gibbs(REWARDS / beta, REFERENCE), atol=1e-8)


def test_both_weights() -> None:
    """π ∝ (π_ref^β exp r)^(1/(α + β))."""
    result = optimum(REWARDS, alpha=0.4, beta=0.6)
    np.testing.assert_allclose(result, gibbs(REWARDS + 0.6 * np.log(REFERENCE)), atol=1e-8)


def test_log_vote_shares_end_at_the_vote_shares() -> None:
    votes = np.array([[48, 1, 1, 1], [20, 19, 11, 1], [13, 13, 13, 12]])
    shares = votes / votes.sum(axis=1, keepdims=True)
    result = optimum(np.log(shares), alpha=1.0)
    np.testing.assert_allclose(result, shares, atol=1e-8)


def test_expected_reward_alone_ends_at_the_argmax() -> None:
    """However close the runner-up: trained on vote shares, the model is surer than the voters."""
    shares = np.array([[0.40, 0.38, 0.12, 0.10], [0.1, 0.2, 0.3, 0.4], [0.2, 0.26, 0.24, 0.3]])
    result = optimum(shares, rate=10.0)
    np.testing.assert_allclose(result, np.eye(4)[[0, 3, 3]], atol=1e-4)


def test_std_scaling_moves_the_optimum() -> None:
    """π ∝ exp(r/(α σ)), σ the reward's own deviation under π: another temperature per input.

    So rewards in other units end at the same policy with std, and at another one without.
    """
    scaled = optimum(REWARDS, alpha=3.0, scale="std")
    mean = (scaled * REWARDS).sum(axis=1, keepdims=True)
    sigma = np.sqrt((scaled * (REWARDS - mean) ** 2).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(scaled, gibbs(REWARDS / (3 * sigma)), atol=1e-8)
    assert np.abs(scaled - gibbs(REWARDS / 3)).max() > 0.05
    assert np.ptp(sigma) > 0.02

    np.testing.assert_allclose(optimum(5 * REWARDS, alpha=3.0, scale="std"), scaled, atol=1e-8)
    assert np.abs(optimum(5 * REWARDS, alpha=3.0) - optimum(REWARDS, alpha=3.0)).max() > 0.05


def test_std_scaling_can_outrun_the_entropy() -> None:
    """One right class of two, log-odds x: the fixed point asks x = 2 cosh(x/2)/α.

    Below α = min cosh(y)/y = 1.509 there is none, and the policy becomes certain; without the
    scale it stops at odds of e^(1/α).
    """
    reward = np.array([[1.0, 0.0]])
    certain = optimum(reward, alpha=1.4, scale="std", rate=0.1, steps=79)
    assert certain[0, 1] < 0.01
    balanced = optimum(reward, alpha=1.4)
    np.testing.assert_allclose(balanced, gibbs(reward / 1.4), atol=1e-8)
    stable = optimum(reward, alpha=1.6, scale="std", rate=0.1, steps=600)
    odds = np.log(stable[0, 0] / stable[0, 1])
    assert odds == pytest.approx(2 * np.cosh(odds / 2) / 1.6, abs=1e-6)

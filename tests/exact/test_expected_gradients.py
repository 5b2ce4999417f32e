"""What each objective does on average: the w(p) table, and sampling against its expectation.

For a 0/1 reward with success probability p every expected gradient is w(p)·∇p.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from visgrpo.objectives import advantages, draw, estimator_weights, surrogate

# Four inputs, four classes; p from near 0 to near 1. Input 2 has two right classes.
LOGITS = np.array(
    [[-4.0, 1.0, 0.5, 0.0], [0.3, -0.2, 0.8, 0.1], [1.0, 0.7, -1.0, 0.2], [6.0, 0.0, 1.0, -1.0]]
)
RIGHT = np.array([[1.0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0]])
POLICY = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
P = (POLICY * RIGHT).sum(axis=1)
GRADIENT_OF_P = POLICY * (RIGHT - P[:, None])  # ∂p/∂z_k = π_k (1[k right] - p)


def enumerated_gradient(estimator: str, scale: str) -> np.ndarray:
    """Minus the logit gradient (N, K), per input, of one step over all the classes."""
    logits = torch.from_numpy(LOGITS).requires_grad_()
    log_probs = logits.log_softmax(-1)
    weights = estimator_weights(estimator, log_probs)
    a = advantages(torch.from_numpy(RIGHT), scale=scale, weights_NG=weights, eps=0.0)
    loss = surrogate(log_probs[..., None], log_probs[..., None], a, weights_NG=weights).loss
    return -torch.autograd.grad(loss * len(LOGITS), logits)[0].numpy()


def expected_sampled_gradient(
    group_size: int, rewards_of: Callable[[Tensor], Tensor], row: int, **knobs: str
) -> np.ndarray:
    """The exact mean over all K^G groups of input ``row``, each with its probability."""
    logits = torch.from_numpy(LOGITS[row]).requires_grad_()
    log_probs = logits.log_softmax(-1)
    groups = torch.tensor(list(itertools.product(range(4), repeat=group_size)))  # (4^G, G)
    chances = torch.from_numpy(POLICY[row])[groups].prod(dim=1)
    a = advantages(rewards_of(groups), eps=0.0, **knobs)
    total = torch.zeros((), dtype=torch.float64)
    for group, chance, group_advantages in zip(groups, chances, a, strict=True):
        tokens = log_probs[group].reshape(1, -1, 1)
        total = total + chance * surrogate(tokens, tokens, group_advantages[None]).loss
    return -torch.autograd.grad(total, logits)[0].numpy()


@pytest.mark.parametrize(
    ("scale", "w"), [("none", 1 + 0 * P), ("std", 1 / np.sqrt(P * (1 - P))), ("mean", 1 / P)]
)
def test_exact_estimator(scale: str, w: np.ndarray) -> None:
    result = enumerated_gradient("exact", scale)
    np.testing.assert_allclose(result, w[:, None] * GRADIENT_OF_P, rtol=1e-9, atol=1e-14)


def test_mean_scaling_is_cross_entropy() -> None:
    """Also with several right classes: the loss is then -log of their total probability."""
    logits = torch.from_numpy(LOGITS).requires_grad_()
    right = torch.from_numpy(RIGHT)
    log_p = logits.log_softmax(-1).masked_fill(right == 0, -math.inf).logsumexp(-1)
    expected = torch.autograd.grad(log_p.sum(), logits)[0].numpy()
    np.testing.assert_allclose(enumerated_gradient("exact", "mean"), expected, atol=1e-13)


@pytest.mark.parametrize("row", range(4))
@pytest.mark.parametrize("group_size", [2, 3, 4])
@pytest.mark.parametrize(("baseline", "shrinks"), [("leave_one_out", False), ("mean", True)])
def test_sampled_without_scale(row: int, group_size: int, baseline: str, shrinks: bool) -> None:
    """RLOO has w = 1; Dr. GRPO (G - 1)/G, for an output is part of its own baseline."""
    result = expected_sampled_gradient(
        group_size,
        lambda groups: torch.from_numpy(RIGHT[row])[groups],
        row,
        baseline=baseline,
        scale="none",
    )
    w = (group_size - 1) / group_size if shrinks else 1.0
    np.testing.assert_allclose(result, w * GRADIENT_OF_P[row], rtol=1e-9, atol=1e-14)


def test_sampled_without_baseline() -> None:
    result = expected_sampled_gradient(
        3, lambda groups: torch.from_numpy(RIGHT[1])[groups], 1, baseline="none", scale="none"
    )
    np.testing.assert_allclose(result, GRADIENT_OF_P[1], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("row", range(4))
@pytest.mark.parametrize("group_size", [2, 3, 4])
def test_sampled_with_std(row: int, group_size: int) -> None:
    """GRPO's finite group: with S ~ Bin(G, p) successes and s = S/G,

    w = √((G - 1)/G) E[√(s(1 - s))] / (p(1 - p)), which tends to 1/√(p(1 - p)) with G.
    """
    result = expected_sampled_gradient(
        group_size, lambda groups: torch.from_numpy(RIGHT[row])[groups], row, scale="std"
    )
    np.testing.assert_allclose(
        result, w_of_grpo(P[row], group_size) * GRADIENT_OF_P[row], rtol=1e-9, atol=1e-14
    )


def w_of_grpo(p: float, group_size: int) -> float:
    mean = sum(
        math.comb(group_size, k)
        * p**k
        * (1 - p) ** (group_size - k)
        * math.sqrt(k * (group_size - k)) / group_size
        for k in range(group_size + 1)
    )  # fmt: skip
    return math.sqrt((group_size - 1) / group_size) * mean / (p * (1 - p))


def test_grpo_tends_to_the_exact_std_weight() -> None:
    limits = 1 / np.sqrt(P * (1 - P))
    gaps = [
        [abs(w_of_grpo(p, g) / w - 1) for p, w in zip(P, limits, strict=True)] for g in (8, 500)
    ]
    assert max(gaps[1]) < 0.15
    assert all(late < early for early, late in zip(*gaps, strict=True))


@pytest.mark.parametrize("group_size", [2, 3])
def test_sampled_means_the_exact_gradient_for_graded_rewards(group_size: int) -> None:
    """Beyond 0/1: Σ_k π_k (r_k - r̄) ∇log π_k, by enumeration of all groups."""
    graded = np.array([0.3, -1.0, 2.0, 0.7])
    result = expected_sampled_gradient(
        group_size,
        lambda groups: torch.from_numpy(graded)[groups],
        1,
        baseline="leave_one_out",
        scale="none",
    )
    expected = POLICY[1] * (graded - POLICY[1] @ graded)
    np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-14)


def monte_carlo_gradients(n: int, group_size: int, baseline: str) -> np.ndarray:
    """Minus the logit gradients (n, K) of n independent groups of input 1."""
    logits = torch.from_numpy(LOGITS[1]).repeat(n, 1).requires_grad_()
    log_probs = logits.log_softmax(-1)
    uniforms = torch.from_numpy(np.random.default_rng(11).random((n, group_size)))
    outputs = draw(log_probs, uniforms)
    a = advantages(torch.from_numpy(RIGHT[1])[outputs], baseline=baseline, scale="none")
    tokens = log_probs.gather(1, outputs)[..., None]
    weights = estimator_weights("sampled", tokens[..., 0])
    loss = surrogate(tokens, tokens, a, weights_NG=weights).loss
    return -torch.autograd.grad(loss * n, logits)[0].numpy()


@pytest.mark.parametrize(
    ("baseline", "unbiased"), [("leave_one_out", True), ("none", True), ("mean", False)]
)
def test_monte_carlo_lands_within_its_standard_error(baseline: str, unbiased: bool) -> None:
    """Through draw, advantages and surrogate. The mean baseline's (G - 1)/G is the control: the
    same bound refuses it."""
    n = 40_000
    gradients = monte_carlo_gradients(n, 4, baseline)
    standard_error = gradients.std(axis=0, ddof=1) / math.sqrt(n)
    z = np.abs(gradients.mean(axis=0) - GRADIENT_OF_P[1]) / standard_error
    assert (z.max() < 4) == unbiased


def test_uniform_gradient_is_a_over_k() -> None:
    """GRPO-RM at π = π_old: with z-scores over the classes the loss's logit gradient is -A_k/K."""
    logits = torch.from_numpy(LOGITS).requires_grad_()
    log_probs = logits.log_softmax(-1)
    rewards = torch.from_numpy(np.random.default_rng(12).random(LOGITS.shape))
    weights = estimator_weights("uniform", log_probs)
    a = advantages(rewards, weights_NG=weights, eps=0.0)
    tokens = log_probs[..., None]
    loss = surrogate(tokens, tokens, a, weights_NG=weights).loss * len(LOGITS)
    result = torch.autograd.grad(loss, logits)[0].numpy()
    r = rewards.numpy()
    z_score = (r - r.mean(1, keepdims=True)) / r.std(1, keepdims=True)
    np.testing.assert_allclose(result, -z_score / 4, rtol=1e-10, atol=1e-14)


def test_uniform_gradient_without_centring() -> None:
    """Without the baseline ΣA is not 0 and the softmax pulls: -(A_k - π_k ΣA)/K."""
    logits = torch.from_numpy(LOGITS).requires_grad_()
    log_probs = logits.log_softmax(-1)
    weights = estimator_weights("uniform", log_probs)
    a = advantages(torch.from_numpy(RIGHT), baseline="none", scale="none", weights_NG=weights)
    tokens = log_probs[..., None]
    loss = surrogate(tokens, tokens, a, weights_NG=weights).loss * len(LOGITS)
    result = torch.autograd.grad(loss, logits)[0].numpy()
    expected = -(RIGHT - POLICY * RIGHT.sum(1, keepdims=True)) / 4
    np.testing.assert_allclose(result, expected, rtol=1e-10, atol=1e-14)


def gradient_size(estimator: str, confidence: float) -> float:
    """The largest logit gradient for one right class of four, ``confidence`` above the others."""
    logits = torch.tensor([[confidence, 0.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    log_probs = logits.log_softmax(-1)
    weights = estimator_weights(estimator, log_probs)
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    a = advantages(rewards, weights_NG=weights, eps=0.0)
    tokens = log_probs[..., None]
    loss = surrogate(tokens, tokens, a, weights_NG=weights).loss
    return torch.autograd.grad(loss, logits)[0].abs().max().item()


@pytest.mark.parametrize("confidence", [0.0, 2.0, 8.0, 16.0])
def test_uniform_does_not_shrink_as_the_model_becomes_right(confidence: float) -> None:
    """√(K - 1)/K for ever, where the exact estimator's falls as √(p(1 - p))."""
    assert gradient_size("uniform", confidence) == pytest.approx(math.sqrt(3) / 4, rel=1e-9)
    p = math.exp(confidence) / (math.exp(confidence) + 3)
    exact = gradient_size("exact", confidence)
    assert exact == pytest.approx(math.sqrt(p * 3 / (math.exp(confidence) + 3)), rel=1e-6)

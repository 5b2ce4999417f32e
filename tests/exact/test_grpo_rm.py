"""GRPO-RM's step over the class set against its closed forms, gradients included.

With p = π_old, r_k = c·1[k = y] - p_k and A its z-score over the K classes (population std σ, plus
ε = 1e-4), the logit gradient of an image at π = π_old is -A_k / K; all in float64 loops here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from visgrpo.data.batches import Batch
from visgrpo.methods.class_set import ClassSetGRPO, OldPolicy
from visgrpo.methods.labels import LabelGRPO
from visgrpo.methods.method import LossResult
from visgrpo.objectives import Objective
from visgrpo.rewards.sets import parse_rewards

EPS = 1e-4
GRPO_RM = ("hard", "uniformity")


def method(
    n_classes: int,
    *,
    c: float = 1.0,
    rewards: Sequence[str] = GRPO_RM,
    scale: Any = "std",
    estimator: Any = "uniform",
) -> ClassSetGRPO:
    classes = tuple(str(k) for k in range(n_classes))
    weights = [c, *(1.0 for _ in rewards[1:])]
    policy = LabelGRPO(
        rewards=parse_rewards(rewards, weights, classes),
        objective=Objective(scale=scale),
        classes=classes,
        estimator=estimator,
    )
    return ClassSetGRPO(policy)


def step(
    grpo: ClassSetGRPO, logits_NK: Tensor, labels_N: Tensor, old_NK: Tensor | None = None
) -> tuple[LossResult, Tensor]:
    """The loss of logits that are the model's own output, and its gradient by them (N, K)."""
    leaf = logits_NK.clone().requires_grad_()
    batch = Batch(torch.arange(len(labels_N)), logits_NK, labels_N, {})
    old = None if old_NK is None else OldPolicy(replace(batch, inputs=old_NK), 0)
    result = grpo.loss(lambda inputs: leaf, batch, old, 0)
    return result, torch.autograd.grad(result.loss, leaf)[0]


def some_logits(n_classes: int, n_inputs: int = 5, spread: float = 1.5) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng([n_classes, n_inputs])
    logits_NK = torch.from_numpy(rng.normal(scale=spread, size=(n_inputs, n_classes))).float()
    return logits_NK, torch.from_numpy(rng.integers(0, n_classes, n_inputs))


def softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits - logits.max())
    return odds / odds.sum()


def z_score(rewards_K: np.ndarray) -> np.ndarray:
    centred = rewards_K - rewards_K.mean()
    return centred / (math.sqrt((centred**2).mean()) + EPS)


# At π = π_old


@pytest.mark.parametrize("n_classes", [2, 3, 10, 200])
@pytest.mark.parametrize("c", [1.0, 0.9, 0.5])
def test_logit_gradient(n_classes: int, c: float) -> None:
    logits_NK, labels_N = some_logits(n_classes)
    expected = []
    for logits, label in zip(logits_NK.double().numpy(), labels_N.tolist(), strict=True):
        rewards_K = -softmax(logits)
        rewards_K[label] += c
        expected.append(-z_score(rewards_K) / n_classes / len(labels_N))
    _, gradient_NK = step(method(n_classes, c=c), logits_NK, labels_N)
    np.testing.assert_allclose(gradient_NK.numpy(), expected, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("n_classes", [2, 3, 10, 200])
@pytest.mark.parametrize("c", [1.0, 0.9, 0.5])
def test_it_is_label_smoothing_brought_to_one_length(n_classes: int, c: float) -> None:
    """Cross-entropy to c·1[y] + (1 - c)/K has the gradient -(r_k - mean), of length √K·σ."""
    logits_NK, labels_N = some_logits(n_classes)
    smoothed = logits_NK.double().requires_grad_()
    F.cross_entropy(smoothed, labels_N, label_smoothing=1 - c, reduction="sum").backward()
    assert smoothed.grad is not None
    lengths_N1 = smoothed.grad.norm(dim=1, keepdim=True)
    shrink_N1 = 1 / (1 + EPS * math.sqrt(n_classes) / lengths_N1)  # what ε takes away: σ/(σ + ε)
    expected_NK = smoothed.grad / lengths_N1 * shrink_N1 / math.sqrt(n_classes)

    _, gradient_NK = step(method(n_classes, c=c), logits_NK, labels_N)
    torch.testing.assert_close(
        gradient_NK.double() * len(labels_N), expected_NK, rtol=2e-4, atol=1e-6
    )


@pytest.mark.parametrize("c", [1.0, 0.7])
def test_without_scale_it_is_cross_entropy_over_k(c: float) -> None:
    logits_NK, labels_N = some_logits(7)
    plain = logits_NK.clone().requires_grad_()
    F.cross_entropy(plain, labels_N, label_smoothing=1 - c).backward()
    assert plain.grad is not None
    _, gradient_NK = step(method(7, c=c, scale="none"), logits_NK, labels_N)
    torch.testing.assert_close(gradient_NK, plain.grad / 7, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("c", [0.9, 0.6])
def test_free_logits_end_at_the_smoothed_label(c: float) -> None:
    n_classes, labels_N = 4, torch.tensor([2, 0])
    grpo = method(n_classes, c=c, scale="none")
    logits_NK = torch.tensor([[1.0, 0.0, -1.0, 2.0], [0.0, 0.0, 3.0, 0.0]])
    for _ in range(500):
        logits_NK = logits_NK - 4 * n_classes * step(grpo, logits_NK, labels_N)[1]
    policy_NK = logits_NK.softmax(-1)
    wrong = (1 - c) / n_classes
    expected_NK = torch.full((2, n_classes), wrong)
    expected_NK[torch.arange(2), labels_N] += c
    torch.testing.assert_close(policy_NK, expected_NK, atol=1e-4, rtol=0)


# Two classes


@pytest.mark.parametrize("p", [0.02, 0.3, 0.5, 0.9, 0.99])
def test_of_two_classes_uniformity_is_inert(p: float) -> None:
    """A = ±w/(w + ε) with w = 1 - p_y, so that its sign is all that the rewards say."""
    logits_NK, labels_N = torch.tensor([[math.log(p / (1 - p)), 0.0]]), torch.tensor([0])
    _, both_NK = step(method(2), logits_NK, labels_N)
    size = (1 - p) / (1 - p + EPS) / 2
    torch.testing.assert_close(both_NK, torch.tensor([[-size, size]]), rtol=1e-4, atol=0)
    _, alone_NK = step(method(2, rewards=["hard"]), logits_NK, labels_N)
    torch.testing.assert_close(both_NK, alone_NK, rtol=0.011, atol=0)  # ε/w at p = .99
    # It does not shrink where cross-entropy's (1 - p) does.
    assert both_NK.norm() > 0.99 / math.sqrt(2)


def test_of_two_classes_the_sign_flips_at_c() -> None:
    for gap, direction in ((0.55, 1.0), (0.59, 1.0), (0.61, -1.0), (0.9, -1.0)):  # p_y - p_w
        p = (1 + gap) / 2
        logits_NK = torch.tensor([[0.0, math.log(p / (1 - p))]])
        _, gradient_NK = step(method(2, c=0.6), logits_NK, torch.tensor([1]))
        w = abs(0.6 - gap) / 2
        assert -gradient_NK[0, 1].item() == pytest.approx(direction * w / (w + EPS) / 2, rel=1e-4)


# Many classes


def test_of_very_many_classes() -> None:
    """bf16 logits, some at ±1e4: everything between is float32 and finite, and right."""
    n_classes = 21_000
    rng = np.random.default_rng(0)
    logits_NK = torch.from_numpy(rng.normal(size=(4, n_classes)) * 3).bfloat16()
    labels_N = torch.tensor([0, 20_999, 7, 12_345])
    logits_NK[1, labels_N[1]] = 1e4  # sure and right: nothing is left to learn
    logits_NK[2, 5] = 1e4  # sure and wrong
    logits_NK[3, :10_000] = -1e4
    result, gradient_NK = step(method(n_classes), logits_NK, labels_N)
    assert result.loss.dtype == torch.float32
    assert gradient_NK.dtype == torch.bfloat16
    assert all(value.isfinite() for value in result.metrics.values())
    for row, label in enumerate(labels_N.tolist()):
        rewards_K = -softmax(logits_NK[row].double().numpy())
        rewards_K[label] += 1
        expected_K = -z_score(rewards_K) / n_classes / 4
        np.testing.assert_allclose(
            gradient_NK[row].float().numpy(), expected_K, rtol=0.01, atol=1e-9, err_msg=str(row)
        )
    assert gradient_NK[1].count_nonzero() == 0


def test_huge_differences_between_old_and_new() -> None:
    logits_NK = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]])
    for scale in ("std", "none"):
        grpo = method(3, c=0.5, scale=scale)
        result, gradient_NK = step(grpo, logits_NK, torch.tensor([0, 0]), old_NK=-logits_NK)
        assert result.loss.isfinite()
        assert gradient_NK.isfinite().all()


# Accuracy alone


@pytest.mark.parametrize("n_classes", [2, 5, 100])
@pytest.mark.parametrize("spread", [0.1, 8.0])
def test_accuracy_alone_pulls_the_same_whatever_was_learned(n_classes: int, spread: float) -> None:
    """σ = √(K - 1)/K, so A_y = √(K - 1), A_w = -1/√(K - 1): a gradient of length 1/√K for ever."""
    logits_NK, labels_N = some_logits(n_classes, spread=spread)
    logits_NK[0, labels_N[0]] = 30.0  # it has been learned
    root, sigma = math.sqrt(n_classes - 1), math.sqrt(n_classes - 1) / n_classes
    shrink = sigma / (sigma + EPS)
    expected_NK = torch.full((len(labels_N), n_classes), shrink / root / n_classes)
    expected_NK[torch.arange(len(labels_N)), labels_N] = -shrink * root / n_classes
    _, gradient_NK = step(method(n_classes, rewards=["hard"]), logits_NK, labels_N)
    gradient_NK = gradient_NK * len(labels_N)
    torch.testing.assert_close(gradient_NK, expected_NK, rtol=1e-4, atol=1e-7)
    lengths_N = gradient_NK.norm(dim=1)
    assert lengths_N.tolist() == pytest.approx(
        [shrink / math.sqrt(n_classes)] * len(labels_N), rel=1e-4
    )


# The weights of the classes


@pytest.mark.parametrize("scale", ["std", "none"])
def test_exact_is_the_expectation_under_the_policy(scale: str) -> None:
    """-Σ_k π_k A_k ∇log π_k, with mean and deviation of the rewards under π too."""
    logits_NK, labels_N = some_logits(5)
    expected = []
    for logits, label in zip(logits_NK.double().numpy(), labels_N.tolist(), strict=True):
        p_K = softmax(logits)
        rewards_K = 0.8 * np.eye(5)[label] - p_K
        a_K = rewards_K - p_K @ rewards_K
        if scale == "std":
            a_K = a_K / (math.sqrt(p_K @ a_K**2) + EPS)
        slopes_KK = np.eye(5) - p_K  # ∂ log π_k / ∂ z_j
        expected.append(-sum(p_K[k] * a_K[k] * slopes_KK[k] for k in range(5)) / len(labels_N))
    grpo = method(5, c=0.8, estimator="exact", scale=scale)
    _, gradient_NK = step(grpo, logits_NK, labels_N)
    np.testing.assert_allclose(gradient_NK.numpy(), expected, rtol=1e-4, atol=1e-7)


def test_the_clip_takes_the_gradient_of_some_classes_away() -> None:
    """Worked by hand: ratios 1.3, .9, .4, 1.3 and advantages of signs +, -, -, -.

    Class 0 has had its rise and class 2 its fall; class 1 is inside, class 3 went the wrong way.
    """
    old_NK = torch.tensor([[0.40, 0.30, 0.20, 0.10]]).log()
    new_NK = torch.tensor([[0.52, 0.27, 0.08, 0.13]]).log()
    a_K = np.array([0.6, -0.3, -0.2, -0.1]) / (math.sqrt(0.125) + EPS)
    result, gradient_NK = step(method(4), new_NK, torch.tensor([0]), old_NK)
    value = -(1.2 * a_K[0] + 0.9 * a_K[1] + 0.8 * a_K[2] + 1.3 * a_K[3]) / 4
    assert result.loss.item() == pytest.approx(value, rel=1e-5)
    pulls = -(0.9 * a_K[1]) / 4, -(1.3 * a_K[3]) / 4
    expected_K = [
        -(pulls[0] + pulls[1]) * 0.52,
        pulls[0] - (pulls[0] + pulls[1]) * 0.27,
        -(pulls[0] + pulls[1]) * 0.08,
        pulls[1] - (pulls[0] + pulls[1]) * 0.13,
    ]
    np.testing.assert_allclose(gradient_NK[0].numpy(), expected_K, rtol=1e-5)
    shown = {name: value.item() for name, value in result.metrics.items()}
    assert shown["clip_ratio/low_mean"] == pytest.approx(0.25)
    assert shown["clip_ratio/high_mean"] == pytest.approx(0.25)
    assert shown["clip_ratio/region_mean"] == pytest.approx(0.5)
    assert shown["ratio_mean"] == pytest.approx((1.3 + 0.9 + 0.4 + 1.3) / 4)
    # Expectations under the old policy, of rewards .6, -.3, -.2, -.1.
    assert shown["reward"] == pytest.approx(0.24 - 0.09 - 0.04 - 0.01)
    assert shown["rewards/hard/mean"] == pytest.approx(0.4)
    assert shown["rewards/uniformity/mean"] == pytest.approx(-(0.16 + 0.09 + 0.04 + 0.01))
    assert shown["reward_std"] == pytest.approx(math.sqrt(0.125), rel=1e-5)


def test_the_gradient_under_a_stale_policy_by_finite_differences() -> None:
    logits_NK, labels_N = some_logits(4, n_inputs=3)
    old_NK = logits_NK + 0.3 * torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    grpo = method(4, c=0.9)
    _, gradient_NK = step(grpo, logits_NK, labels_N, old_NK)
    for row, column in np.ndindex(3, 4):
        shift_NK = torch.zeros(3, 4)
        shift_NK[row, column] = 1e-2
        ahead, behind = (
            step(grpo, logits_NK + sign * shift_NK, labels_N, old_NK)[0].loss.item()
            for sign in (1, -1)
        )
        slope = (ahead - behind) / 2e-2
        assert gradient_NK[row, column].item() == pytest.approx(slope, abs=3e-4)


# Mixed precision


def test_autocast_leaves_rewards_and_advantages_alone() -> None:
    """Near the fixed point c·1[y] - p is a small difference, which eight bits cannot hold."""
    logits_NK = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    logits_NK[:, 0] = torch.tensor([7.2, 7.3, 7.4])  # p_y about .9
    labels_N = torch.zeros(3, dtype=torch.long)
    grpo = method(100, c=0.9)
    _, expected_NK = step(grpo, logits_NK, labels_N)
    with torch.autocast("cpu", torch.bfloat16):
        _, gradient_NK = step(grpo, logits_NK, labels_N)
    torch.testing.assert_close(gradient_NK, expected_NK, rtol=1e-4, atol=1e-7)

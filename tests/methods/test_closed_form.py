"""Gradients in closed form against autograd on the definition, in float64."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from label_tools import FixedReference, grpo
from torch import Tensor

from visgrpo.data.batches import Batch
from visgrpo.methods import closed_form
from visgrpo.methods.class_set import without_graph
from visgrpo.objectives import Objective

R, K = 6, 5
REWARDS: dict[str, tuple[Any, ...]] = {
    "hard": ("hard",),
    "as published": ("hard", "uniformity"),
    "of wrong ones": ("hard", "uniformity-wrong"),
    "spread": ("spread", "hard"),
    "in a set of three": ("any-of:3", "uniformity"),
    "near misses": ("top-k:2", "uniformity"),  # no shape
}
WEIGHTS_R = torch.tensor([0.0, 2.0, 0.5, 1.0, 1.5, 1.0])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rewards_of(name: str, p_RK: Tensor, labels_R: Tensor) -> Tensor:
    """Literally, of every class."""
    right = F.one_hot(labels_R, K).double()
    true = (p_RK * right).sum(1, keepdim=True)
    if name == "hard":
        return right
    if name == "any-of":
        slope = 3 * (1 - true) ** 2
        return 1 - (1 - true) ** 3 - slope * true + slope * right
    if name == "uniformity":
        return -p_RK
    if name == "uniformity-wrong":
        return -p_RK * (1 - right)
    if name == "spread":
        return ((1 - true) / (K - 1) - p_RK) * (1 - right)
    near = ((p_RK > true).sum(1, keepdim=True) < 2).double()
    return torch.maximum(right, 0.5 * near)


def defined(policy: Any, names: tuple[str, ...], logits_RK: Tensor, labels_R: Tensor) -> Tensor:
    """The loss of each row, with gradient, by the definition."""
    log_p = (logits_RK / policy.temperature).log_softmax(1)
    p = log_p.exp()
    old = p.detach()
    rewards = sum(
        weight * rewards_of(name, old, labels_R)
        for name, weight in zip(names, policy.rewards.weights, strict=True)
    )
    weights = old if policy.estimator == "exact" else torch.full_like(old, 1 / K)
    mean = (weights * rewards).sum(1, keepdim=True)
    std = (weights * (rewards - mean) ** 2).sum(1, keepdim=True).sqrt()
    advantages = rewards - (mean if policy.objective.baseline == "mean" else 0)
    if policy.objective.scale == "std":
        advantages = advantages / (std + 1e-4)
    loss = -(weights * advantages * (log_p - log_p.detach() + 1)).sum(1)
    if policy.beta:
        reference = policy.reference._log_probs_MK.double()
        reference = (reference / policy.temperature).log_softmax(1)
        loss = loss + policy.beta * (p * (log_p - reference)).sum(1)
    return loss + policy.entropy_weight * (p * log_p).sum(1)


@pytest.mark.parametrize("baseline", ["mean", "none"])
@pytest.mark.parametrize("scale", ["std", "none"])
@pytest.mark.parametrize("rewards", REWARDS)
@pytest.mark.parametrize("estimator", ["uniform", "exact"])
def test_gradient_is_that_of_the_definition(
    estimator: Any, rewards: str, scale: Any, baseline: Any
) -> None:
    logits_RK, labels_R = 2 * random(R, K), torch.arange(R) % K
    batch = Batch(torch.arange(R), logits_RK, labels_R, {})
    names = tuple(name.split(":")[0] for name in REWARDS[rewards])
    for beta, bonus, temperature, weighted in product([0.0, 0.7], [0.0, 0.3], [1.0, 0.6], [0, 1]):
        policy = grpo(
            rewards=REWARDS[rewards],
            reward_weights=[1.0, 0.8][: len(names)],
            n_classes=K,
            estimator=estimator,
            objective=Objective(scale=scale, baseline=baseline),
            reference=FixedReference(random(R, K, seed=1)) if beta else None,
            beta=beta,
            entropy_weight=bonus,
            temperature=temperature,
        )
        weights_R = WEIGHTS_R if weighted else None
        gradient_RK = torch.empty(R, K)
        loss, metrics = closed_form.first_pass(
            policy, logits_RK, batch, 0, weights_R, gradient_RK, 1.0
        )
        between_lines = torch.empty(R, K)
        others = closed_form.first_pass(
            policy, logits_RK, replace(batch, logged=False), 0, weights_R, between_lines, 1.0
        )
        assert torch.equal(between_lines, gradient_RK)
        assert torch.equal(others[0], loss)
        assert {"frac_reward_zero_std"} <= others[1].keys() < metrics.keys()
        leaf = logits_RK.double().requires_grad_()
        each_R = defined(policy, names, leaf, labels_R)
        expected = (each_R * (WEIGHTS_R.double() if weighted else 1)).mean()
        (theirs,) = torch.autograd.grad(expected, leaf)
        scale_of = theirs.abs().max()
        assert (gradient_RK - theirs).abs().max() < 2e-6 * scale_of + 1e-8
        precise_RK = torch.empty(R, K, dtype=torch.float64)
        closed_form.first_pass(policy, leaf.detach(), batch, 0, weights_R, precise_RK, 1.0)
        assert (precise_RK - theirs).abs().max() < 1e-6 * scale_of + 1e-10
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=2e-6)
        general = policy.first_pass(logits_RK, batch, 0, weights_R).metrics
        assert metrics.keys() == general.keys()
        for name, value in general.items():
            assert metrics[name].item() == pytest.approx(value.item(), rel=1e-5, abs=1e-6), name


def test_cross_entropy_is_that_of_torch() -> None:
    logits_RK, labels_R = 3 * random(R, K), torch.arange(R) % K
    gradient_RK = torch.empty(R, K)
    batch = Batch(torch.arange(R), logits_RK, labels_R, {})
    loss, _ = closed_form.cross_entropy(logits_RK, batch, WEIGHTS_R, gradient_RK, 0.5)
    leaf = logits_RK.double().requires_grad_()
    each_R = F.cross_entropy(leaf, labels_R, reduction="none")
    expected = 0.5 * (each_R * WEIGHTS_R).mean()
    (theirs,) = torch.autograd.grad(expected, leaf)
    torch.testing.assert_close(gradient_RK.double(), theirs, rtol=1e-5, atol=1e-8)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("estimator", ["uniform", "exact", None])
def test_places_of_masks_are_rows_wherever_they_lie(estimator: Any) -> None:
    """Inputs, places and classes, class by class in memory: as the rows, in parts of any size."""
    lying_NKP, labels_NP = 2 * random(3, K, 4), torch.arange(12).view(3, 4) % K
    logits_NPK, weights_NP = lying_NKP.movedim(1, -1), random(3, 4, seed=2).abs()
    policy = estimator and grpo(
        rewards=("hard", "uniformity"), n_classes=K, estimator=estimator, entropy_weight=0.1
    )

    def outcome(logits: Tensor, labels: Tensor, weights: Tensor, numbers: int) -> Any:
        def part(some_logits: Tensor, some: Any, gradient: Tensor, share: float) -> Any:
            batch = Batch(labels[some], some_logits, labels[some], {})
            if policy is None:
                return closed_form.cross_entropy(some_logits, batch, weights[some], gradient, share)
            weighted = weights[some]
            return closed_form.first_pass(policy, some_logits, batch, 0, weighted, gradient, share)

        leaf = logits.clone().requires_grad_()
        loss, metrics = without_graph(part, leaf, numbers)
        return {"loss": loss.detach(), **metrics}, torch.autograd.grad(loss, leaf)[0]

    flat = logits_NPK.reshape(12, K), labels_NP.flatten(), weights_NP.flatten()
    metrics, gradient = outcome(*flat, 10**6)
    for numbers in (1, 2 * K, 4 * K, 9 * K, 10**6):
        ours, theirs = outcome(logits_NPK, labels_NP, weights_NP, numbers)
        torch.testing.assert_close(ours, metrics, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(theirs.reshape(12, K), gradient, rtol=1e-5, atol=1e-8)


def test_equal_rewards_teach_nothing_however_they_round() -> None:
    """p = 1/3 three times: minus it, every class earns the same."""
    logits_RK = torch.zeros(2, 3)
    batch = Batch(torch.arange(2), logits_RK, torch.tensor([0, 2]), {})
    policy = grpo(rewards=("uniformity",), n_classes=3, estimator="uniform")
    gradient_RK = torch.empty(2, 3)
    _, metrics = closed_form.first_pass(policy, logits_RK, batch, 0, None, gradient_RK, 1.0)
    assert torch.equal(gradient_RK, torch.zeros(2, 3))
    assert metrics["frac_reward_zero_std"] == 1
    assert metrics["accuracy"] == 0.5  # of equal ones the first is the answer


@pytest.mark.parametrize("estimator", ["uniform", "exact"])
def test_certain_policies_and_classes_ruled_out_give_numbers(estimator: Any) -> None:
    logits_RK = torch.tensor([[200.0, 0, -torch.inf, 0], [0, -torch.inf, 3e4, 1]])
    batch = Batch(torch.arange(2), logits_RK, torch.tensor([0, 3]), {})
    policy = grpo(
        rewards=("hard", "uniformity"), n_classes=4, estimator=estimator, entropy_weight=0.1
    )
    gradient_RK = torch.empty(2, 4)
    loss, metrics = closed_form.first_pass(policy, logits_RK, batch, 0, None, gradient_RK, 1.0)
    assert gradient_RK.isfinite().all()
    assert loss.isfinite()
    assert all(value.isfinite() for value in metrics.values())
    assert metrics["entropy"].item() == pytest.approx(0.0, abs=1e-6)

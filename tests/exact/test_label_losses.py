"""Rival losses against independent ways to the same number."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from sklearn.metrics import jaccard_score
from torch import Tensor

from visgrpo.objectives.label_losses import (
    OF_SETS,
    loss_of_each,
    loss_of_sets,
    lovasz_softmax,
)

SHARES = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64)


def some(rows: int = 30, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits_RK = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    return logits_RK, torch.randint(3, (rows,), generator=generator)


def test_losses_of_each_decision_by_hand() -> None:
    logits_RK, labels_R = some()
    p_RK = logits_RK.exp() / logits_RK.exp().sum(1, keepdim=True)
    for row, label in enumerate(labels_R.tolist()):
        p = p_RK[row]
        odds = SHARES * logits_RK[row].exp()
        expected = {
            "ce": -p[label].log(),
            "smooth": -(0.9 * p[label].log() + 0.1 * p.log().mean()),
            "gce": (1 - p[label] ** 0.7) / 0.7,
            "weighted": -p[label].log() / (3 * SHARES[label]),
            "balanced": -(odds[label] / odds.sum()).log(),
        }
        for name, value in expected.items():
            ours = loss_of_each(name, logits_RK, labels_R, SHARES)[row]
            torch.testing.assert_close(ours, value, msg=name)


def test_the_balanced_loss_is_least_at_a_class_for_each_share() -> None:
    """Features that say nothing: the best logits are equal, whatever the shares."""
    labels_R = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    z_K = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    loss = loss_of_each("balanced", z_K.expand(10, -1), labels_R, SHARES).mean()
    assert torch.autograd.grad(loss, z_K)[0].abs().max() < 1e-12


@pytest.mark.parametrize("name", ["dice", "jaccard", "lovasz"])
def test_whole_answers_lose_what_the_score_says(name: str) -> None:
    _, labels_R = some()
    answers_R = torch.randint(4, (30,), generator=torch.Generator().manual_seed(9))
    logits_RK = 1e3 * torch.nn.functional.one_hot(answers_R, 4).double()
    loss = loss_of_sets(name, logits_RK, labels_R, torch.zeros(30, dtype=torch.long), 1)
    iou = jaccard_score(labels_R, answers_R, average=None, labels=[0, 1, 2])
    score = iou if name != "dice" else 2 * iou / (1 + iou)
    assert loss.item() == pytest.approx(1 - score.mean())


def test_scopes_are_apart_and_empty_ones_count_for_nothing() -> None:
    logits_RK, labels_R = some()
    scopes_R = torch.arange(30) // 10 * 2  # 0, 2 and 4
    for name in (*OF_SETS, "lovasz"):
        parts = [
            loss_of_sets(
                name, logits_RK[i : i + 10], labels_R[i : i + 10], torch.zeros(10).long(), 1
            )
            for i in (0, 10, 20)
        ]
        ours = loss_of_sets(name, logits_RK, labels_R, scopes_R, 6)
        torch.testing.assert_close(ours, torch.stack(parts).mean())


def test_lovasz_is_an_integral_over_thresholds() -> None:
    """The extension of a set function f is ∫ f({d: error_d > θ}) dθ over (0, 1)."""
    logits_RK, labels_R = some(rows=12, seed=3)
    p_RK, total = logits_RK.softmax(1), 0.0
    for c in range(3):
        true_R = labels_R == c
        errors_R = (true_R.double() - p_RK[:, c]).abs()
        edges = [0.0, *sorted(errors_R.tolist())]
        for low, high in pairwise(edges):
            wrong_R = errors_R > (low + high) / 2
            answered_R = true_R ^ wrong_R
            iou = (true_R & answered_R).sum() / (true_R | answered_R).sum()
            total += (high - low) * (1 - iou.item())
    assert lovasz_softmax(p_RK, labels_R).item() == pytest.approx(total / 3)


@pytest.mark.parametrize("name", ["dice", "jaccard", "lovasz"])
def test_gradients_of_sets(name: str) -> None:
    logits_RK, labels_R = some(rows=8, seed=5)
    scopes_R = torch.zeros(8, dtype=torch.long)

    def loss(leaf: Tensor) -> Tensor:
        return loss_of_sets(name, leaf, labels_R, scopes_R, 1)

    assert torch.autograd.gradcheck(loss, logits_RK.requires_grad_())

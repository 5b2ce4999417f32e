"""The Bradley–Terry loss against closed forms, and what fitting it gives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from visgrpo.objectives import bradley_terry_loss


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_closed_forms() -> None:
    # σ(0) = 1/2; σ(log 3) = 3/4; σ(-log 3) = 1/4.
    chosen = torch.tensor([1.0, math.log(3), 0.0], dtype=torch.float64)
    rejected = torch.tensor([1.0, 0.0, math.log(3)], dtype=torch.float64)
    expected = (math.log(2) + math.log(4 / 3) + math.log(4)) / 3
    assert bradley_terry_loss(chosen, rejected).item() == pytest.approx(expected, rel=1e-12)


def test_only_differences_count() -> None:
    chosen, rejected = normal(2, 5)
    plain = bradley_terry_loss(chosen, rejected)
    torch.testing.assert_close(bradley_terry_loss(chosen + 3, rejected + 3), plain)


def test_gradient() -> None:
    """-(1 - P)/B on the chosen score, its opposite on the rejected; by finite differences too."""
    chosen, rejected = normal(2, 4)
    chosen.requires_grad_()
    rejected.requires_grad_()
    loss = bradley_terry_loss(chosen, rejected)
    of_chosen, of_rejected = torch.autograd.grad(loss, (chosen, rejected))
    leads = (chosen - rejected).tolist()
    expected = [-1 / (1 + math.exp(lead)) / 4 for lead in leads]
    assert of_chosen.tolist() == pytest.approx(expected)
    assert torch.equal(of_rejected, -of_chosen)
    assert torch.autograd.gradcheck(bradley_terry_loss, (chosen, rejected))


def test_far_apart_scores_stay_finite() -> None:
    chosen = torch.tensor([-500.0, 500.0], requires_grad=True)
    loss = bradley_terry_loss(chosen, -chosen.detach())
    loss.backward()
    assert loss.item() == pytest.approx(500)  # (1000 + 0)/2
    assert chosen.grad is not None
    assert chosen.grad.tolist() == [-0.5, 0.0]


def fitted(wins: dict[tuple[int, int], int], start: Tensor) -> Tensor:
    """Scores that minimise the loss of the pairs, each (winner, loser) so many times."""
    pairs = torch.tensor([pair for pair, times in wins.items() for _ in range(times)])
    scores = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [scores],
        max_iter=100,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-10,
        tolerance_change=0.0,
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = bradley_terry_loss(scores[pairs[:, 0]], scores[pairs[:, 1]])
        loss.backward()
        return loss

    optimizer.step(closure)
    return (scores - scores[0]).detach()


def test_counts_of_a_true_model_give_its_scores() -> None:
    # Strengths 1 : 2 : 6. a beats b in 1/3, b beats c in 1/4, a beats c in 1/7 of their meetings.
    wins = {(0, 1): 4, (1, 0): 8, (1, 2): 3, (2, 1): 9, (0, 2): 2, (2, 0): 12}
    expected = torch.tensor([0.0, math.log(2), math.log(6)], dtype=torch.float64)
    torch.testing.assert_close(fitted(wins, normal(3)), expected, rtol=0, atol=1e-5)


def test_counts_that_fit_no_scores_give_the_most_likely_ones() -> None:
    """Against Zermelo's iteration, w_i = wins_i / Σ_j n_ij/(w_i + w_j), of 1929."""
    wins = {(0, 1): 5, (1, 0): 3, (1, 2): 7, (2, 1): 1, (0, 2): 2, (2, 0): 6}
    strengths = [1.0, 1.0, 1.0]
    for _ in range(2000):
        for i in range(3):
            met = [(j, wins[i, j] + wins[j, i]) for j in range(3) if j != i]
            won = sum(wins[i, j] for j, _ in met)
            strengths[i] = won / sum(n / (strengths[i] + strengths[j]) for j, n in met)
    expected = torch.tensor([math.log(w / strengths[0]) for w in strengths], dtype=torch.float64)
    torch.testing.assert_close(fitted(wins, normal(3)), expected, rtol=0, atol=1e-5)

"""Generalised advantages against arithmetic by hand and the double sum of their definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from visgrpo.objectives import gae


def by_double_sum(
    rewards_BT: Tensor,
    values_BT: Tensor,
    counts: list[int],
    g: float,
    lam: float,
) -> Tensor:
    """A_t = Σ_l (γλ)^l (r_{t+l} + γ V_{t+l+1} - V_{t+l}), term by term."""
    advantages_BT = torch.zeros_like(rewards_BT)
    for row, count in enumerate(counts):
        values = [*values_BT[row, :count].tolist(), 0.0]
        for t in range(count):
            advantages_BT[row, t] = sum(
                (g * lam) ** (s - t) * (float(rewards_BT[row, s]) + g * values[s + 1] - values[s])
                for s in range(t, count)
            )
    return advantages_BT


def test_by_hand() -> None:
    # γ = 0.5, λ = 0.5, so γλ = 0.25; rewards 0, 0, 1; values 0.4, 0.8, 0.6; then the end.
    # δ_2 = 1 + 0.5·0   - 0.6 =  0.4      A_2 = 0.4                        R_2 = 1.0
    # δ_1 = 0 + 0.5·0.6 - 0.8 = -0.5      A_1 = -0.5 + 0.25·0.4  = -0.4    R_1 = 0.4
    # δ_0 = 0 + 0.5·0.8 - 0.4 =  0.0      A_0 =  0.0 + 0.25·-0.4 = -0.1    R_0 = 0.3
    rewards = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    values = torch.tensor([[0.4, 0.8, 0.6]], dtype=torch.float64)
    found, returns = gae(rewards, values, torch.ones(1, 3), gamma=0.5, lam=0.5)
    expected = torch.tensor([[-0.1, -0.4, 0.4]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    torch.testing.assert_close(returns, torch.tensor([[0.3, 0.4, 1.0]], dtype=torch.float64))


def test_nothing_comes_after_the_last_token_by_hand() -> None:
    # γ = 1, λ = 0.5; two tokens count; rewards 0, 1; values 2, 3; the value after them is padding.
    # δ_1 = 1 + 0 - 3 = -2     A_1 = -2                   R_1 = 1
    # δ_0 = 0 + 3 - 2 =  1     A_0 = 1 + 0.5·-2 = 0       R_0 = 2
    rewards, values = torch.tensor([[0.0, 1.0, 7.0]]), torch.tensor([[2.0, 3.0, 8.0]])
    found, returns = gae(rewards, values, torch.tensor([[1, 1, 0]]), lam=0.5)
    assert found.tolist() == [[0.0, -2.0, 0.0]]
    assert returns.tolist() == [[2.0, 1.0, 0.0]]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (0.99, 0.0), (1.0, 1.0)])
def test_equals_the_double_sum(gamma: float, lam: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(5, 9, generator=generator, dtype=torch.float64)
    values = torch.randn(5, 9, generator=generator, dtype=torch.float64)
    counts = [9, 1, 4, 0, 8]
    mask = torch.arange(9) < torch.tensor(counts)[:, None]
    expected = by_double_sum(rewards, values, counts, gamma, lam)
    dirty_rewards, dirty_values = (x.masked_fill(~mask, torch.nan) for x in (rewards, values))
    found, returns = gae(dirty_rewards, dirty_values, mask, gamma=gamma, lam=lam)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(returns, (expected + values).masked_fill(~mask, 0.0))


def test_lambda_one_is_the_return_to_go() -> None:
    """With λ = γ = 1 the values cancel: returns are sums of the rewards to come."""
    generator = torch.Generator().manual_seed(1)
    rewards = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    values = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    found, returns = gae(rewards, values, torch.ones(3, 6), lam=1.0)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(returns, to_go)
    torch.testing.assert_close(found, to_go - values)


def test_a_critic_that_is_right_leaves_no_advantage() -> None:
    rewards = torch.tensor([[0.0, 0.0, 0.0, 2.0]])
    values = torch.full((1, 4), 2.0)
    found, returns = gae(rewards, values, torch.ones(1, 4))
    assert found.abs().max() == 0
    assert torch.equal(returns, values)


def test_padding_changes_nothing_and_nothing_is_differentiated() -> None:
    generator = torch.Generator().manual_seed(2)
    rewards, values = torch.randn(2, 3, 4, generator=generator)
    values.requires_grad_()
    found, returns = gae(rewards, values, torch.ones(3, 4))
    wider = [torch.nn.functional.pad(x, (0, 3), value=9.0) for x in (rewards, values)]
    mask = torch.nn.functional.pad(torch.ones(3, 4), (0, 3))
    padded, _ = gae(*wider, mask)
    assert torch.equal(padded[:, :4], found)
    assert padded[:, 4:].abs().max() == 0
    assert not found.requires_grad
    assert not returns.requires_grad

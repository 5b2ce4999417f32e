"""Whitening and the clipped value loss, by hand and against numpy."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from visgrpo.objectives import masked_moments, value_loss, whiten

MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_whiten_by_hand() -> None:
    # 1, 2, 3, 6 count: mean 12/4 = 3, variance (4 + 1 + 0 + 9)/3 = 14/3, unbiased.
    values = torch.tensor([[1.0, 2.0, 50.0], [3.0, 6.0, math.nan]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0], [1, 1, 0]])
    deviation = math.sqrt(14 / 3)
    expected = torch.tensor([[-2.0, -1.0, 0.0], [0.0, 3.0, 0.0]], dtype=torch.float64) / deviation
    torch.testing.assert_close(whiten(values, mask), expected)


def test_moments_are_those_of_numpy() -> None:
    values = normal(3, 4)
    kept = values.numpy()[MASK.numpy().astype(bool)]
    mean, variance = masked_moments(values.masked_fill(MASK == 0, torch.nan), MASK)
    assert mean.item() == pytest.approx(kept.mean(), rel=1e-12)
    assert variance.item() == pytest.approx(kept.var(ddof=1), rel=1e-12)


def test_parts_with_the_statistics_of_the_whole() -> None:
    values = normal(3, 4)
    statistics = masked_moments(values, MASK)
    parts = [whiten(values[r : r + 1], MASK[r : r + 1], statistics=statistics) for r in range(3)]
    torch.testing.assert_close(torch.cat(parts), whiten(values, MASK))


@pytest.mark.parametrize("constant", [0.0, 0.1, 1234.567, -1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_values_have_no_spread(constant: float, dtype: torch.dtype) -> None:
    values = torch.full((3, 4), constant, dtype=dtype)
    whitened = whiten(values, MASK)
    assert whitened.dtype == dtype
    assert whitened.abs().max() < 1e-5


def test_one_value_and_none() -> None:
    one = torch.tensor([[1, 0, 0, 0]])
    assert whiten(normal(1, 4), one).tolist() == [[0.0] * 4]
    assert whiten(normal(1, 4), torch.zeros(1, 4)).tolist() == [[0.0] * 4]


def test_value_loss_by_hand() -> None:
    # ε = 0.5; columns: not moved far; moved far towards R; moved far away from R; masked.
    #   V      2.0    3.0    3.0
    #   V_old  1.8    2.0    2.0
    #   R      1.0    4.0    1.0
    #   clip   2.0    2.5    2.5
    #   (V-R)²     1.0    1.0    4.0
    #   (clip-R)²  1.0    2.25   2.25
    #   max        1.0    2.25   4.0      ½ · 7.25 / 3; the clip decides for one of three
    # Gradient (V - R)/3 where the clip does not decide: 1/3, 0, 2/3.
    values = torch.tensor([[2.0, 3.0, 3.0, math.nan]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[1.8, 2.0, 2.0, 5.0]], dtype=torch.float64, requires_grad=True)
    returns = torch.tensor([[1.0, 4.0, 1.0, 5.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 0]])
    result = value_loss(values, old, returns, mask, clip=0.5)
    assert result.loss.item() == pytest.approx(7.25 / 6, rel=1e-12)
    assert result.clip_share.item() == pytest.approx(1 / 3)
    gradient, of_old, of_returns = torch.autograd.grad(
        result.loss, (values, old, returns), allow_unused=True
    )
    assert gradient.tolist() == [pytest.approx([1 / 3, 0.0, 2 / 3, 0.0])]
    assert of_old is None
    assert of_returns is None
    # Without a clip: ½ (1 + 1 + 4)/3.
    plain = value_loss(values, old, returns, mask, clip=None)
    assert plain.loss.item() == pytest.approx(1.0)
    assert plain.clip_share.item() == 0


@pytest.mark.parametrize("clip", [None, 0.3])
def test_value_loss_gradient_by_finite_differences(clip: float | None) -> None:
    values, old, returns = normal(3, 3, 4, seed=3)
    values.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v: value_loss(v, old, returns, MASK, clip=clip).loss, (values,)
    )
    shares = value_loss(values, old, returns, MASK, clip=0.3).clip_share
    assert 0 < shares < 1


def test_value_losses_of_parts_add_up() -> None:
    values, old, returns = normal(3, 3, 4, seed=4)
    whole = value_loss(values, old, returns, MASK, clip=0.2).loss
    parts = [
        value_loss(values[r], old[r], returns[r], MASK[r], clip=0.2, tokens=MASK.sum()).loss
        for r in (slice(0, 1), slice(1, 3))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_value_loss_of_nothing_is_zero() -> None:
    values, old, returns = normal(3, 2, 4)
    values.requires_grad_()
    result = value_loss(values, old, returns, torch.zeros(2, 4), clip=0.2)
    result.loss.backward()
    assert result.loss.item() == result.clip_share.item() == 0
    assert values.grad is not None
    assert values.grad.abs().max() == 0

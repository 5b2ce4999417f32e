"""Weight-space interpolation against values by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from visgrpo.errors import UserError
from visgrpo.measures import interpolate


def states() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    start = {"w": torch.tensor([0.0, 8.0]), "frozen": torch.tensor([0.1]), "ids": torch.arange(3)}
    end = {"w": torch.tensor([4.0, 0.0]), "frozen": torch.tensor([0.1]), "ids": torch.arange(3)}
    return start, end


@pytest.mark.parametrize(
    ("alpha", "expected"), [(0.0, [0.0, 8.0]), (0.25, [1.0, 6.0]), (1.0, [4.0, 0.0])]
)
def test_by_hand(alpha: float, expected: list[float]) -> None:
    mixed = interpolate(*states(), alpha)
    assert list(mixed) == ["w", "frozen", "ids"]
    assert mixed["w"].tolist() == expected
    assert torch.equal(mixed["ids"], torch.arange(3))


def test_linear_models_interpolate_their_outputs() -> None:
    """For a linear layer f_θ(x) is linear in θ, so the outputs interpolate too."""
    generator = torch.Generator().manual_seed(0)
    start, end, x = (torch.randn(4, 4, generator=generator) for _ in range(3))
    mixed = interpolate({"weight": start}, {"weight": end}, 0.3)["weight"]
    torch.testing.assert_close(x @ mixed, 0.7 * (x @ start) + 0.3 * (x @ end))


@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.7])
def test_equal_tensors_keep_their_bits(alpha: float) -> None:
    weights = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    weights[0] = -torch.inf  # as in a mask
    assert torch.equal(interpolate({"w": weights}, {"w": weights.clone()}, alpha)["w"], weights)


def test_half_precision_is_mixed_in_float32() -> None:
    start, end = torch.tensor([1.0]).bfloat16(), torch.tensor([1.0078125]).bfloat16()
    mixed = interpolate({"w": start}, {"w": end}, 0.5)["w"]
    assert mixed.dtype == torch.float32
    assert mixed.item() == 1.00390625  # between two neighbours of bfloat16


def test_inputs_are_left_alone() -> None:
    start, end = states()
    for tensor in interpolate(start, end, 0.5).values():
        tensor.zero_()
    for state, untouched in zip((start, end), states(), strict=True):
        assert all(torch.equal(state[name], untouched[name]) for name in untouched)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": torch.zeros(3)}, r'"w" has shape \(2,\) in the start model and \(3,\) in the end'),
        ({"ids": torch.arange(3) + 1}, '"ids" is not of floats and differs'),
        ({"ids": torch.zeros(3)}, '"ids" is not of floats and differs'),
        ({"extra": torch.zeros(1)}, '"extra" is in the end model only'),
    ],
)
def test_tensors_that_do_not_fit(change: dict[str, Tensor], message: str) -> None:
    start, end = states()
    with pytest.raises(UserError, match=message):
        interpolate(start, end | change, 0.5)


def test_missing_tensor() -> None:
    start, end = states()
    del end["w"]
    with pytest.raises(UserError, match='"w" is in the start model only'):
        interpolate(start, end, 0.5)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_outside(alpha: float) -> None:
    with pytest.raises(UserError, match="must lie between 0"):
        interpolate(*states(), alpha)

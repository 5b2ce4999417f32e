"""Choices between two outputs: closed-form probabilities and the frequencies they lead to."""

from __future__ import annotations

import math

import pytest
import torch

from visgrpo.errors import UserError
from visgrpo.rewards.judge import can_be_compared, prefer_first, preference_probability


@pytest.mark.parametrize(
    ("a", "b", "scale", "probability"),
    [
        (0.5, 0.5, 0.1, 0.5),
        (0.6, 0.5, 0.1, 1 / (1 + math.exp(-1))),
        (0.5, 0.7, 0.1, 1 / (1 + math.exp(2))),
        (1.0, 0.0, 1e-9, 1.0),
        (0.6, 0.5, 0.0, 1.0),
        (0.5, 0.6, 0.0, 0.0),
        (0.5, 0.5, 0.0, 0.5),
    ],
)
def test_bradley_terry(a: float, b: float, scale: float, probability: float) -> None:
    first, second = torch.tensor([a]).double(), torch.tensor([b]).double()
    result = preference_probability(first, second, noise_scale=scale)
    torch.testing.assert_close(result, torch.tensor([probability]).double())


@pytest.mark.parametrize("lead", [-0.2, 0.0, 0.05, 0.3])
def test_frequencies_are_the_probabilities(lead: float) -> None:
    M = 100_000
    uniform_M = torch.rand(M, generator=torch.Generator().manual_seed(3))
    chosen_M = prefer_first(
        torch.full((M,), 0.5 + lead), torch.full((M,), 0.5), uniform_M, noise_scale=0.1
    )
    expected = 1 / (1 + math.exp(-lead / 0.1))
    error = math.sqrt(expected * (1 - expected) / M)
    assert chosen_M.dtype == torch.bool
    assert abs(chosen_M.double().mean().item() - expected) < 4 * error


def test_without_noise_the_better_is_always_chosen() -> None:
    uniform_M = torch.tensor([0.0, 0.0, 1 - 2**-24, 1 - 2**-24])
    a_M, b_M = torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 0.0, 1.0])
    chosen_M = prefer_first(a_M, b_M, uniform_M, noise_scale=0)
    assert chosen_M.tolist() == [True, False, True, False]


@pytest.mark.parametrize("scale", [-0.1, math.inf, math.nan])
def test_impossible_noise_is_refused(scale: float) -> None:
    with pytest.raises(UserError, match="noise of the preferences is"):
        prefer_first(torch.zeros(1), torch.ones(1), torch.zeros(1), noise_scale=scale)


def test_equal_scores_and_equal_texts_are_no_pair() -> None:
    compared_M = can_be_compared(
        ["a", "a", "a", "a"],
        ["b", "b", "a", "a"],
        torch.tensor([1.0, 1.0, 1.0, 1.0]),
        torch.tensor([0.0, 1.0, 0.0, 1.0]),
    )
    assert compared_M.tolist() == [True, False, False, False]

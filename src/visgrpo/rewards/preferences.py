"""Choices between two outputs by a judge who is sometimes wrong, from known scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from visgrpo.errors import UserError


def preference_probability(gold_a_M: Tensor, gold_b_M: Tensor, *, noise_scale: float) -> Tensor:
    """The probability that a is chosen over b, by Bradley and Terry (1952).

        P(a ≻ b) = σ((gold_a - gold_b) / noise_scale)

    Args:
        gold_a_M, gold_b_M: scores of the two outputs of M pairs.
        noise_scale: the difference in score at which 27 % of the choices are wrong; at 0 the better
            output is always chosen, and of two equal ones either.

    Returns:
        (M,) float64.

    Raises:
        UserError: the noise is negative or not finite.
    """
    if not 0 <= noise_scale < math.inf:
        raise UserError(
            f"The noise of the preferences is {noise_scale:g}: give a finite number from 0."
        )
    lead_M = gold_a_M.double() - gold_b_M.double()
    if noise_scale == 0:
        return (lead_M.sign() + 1) / 2
    return torch.sigmoid(lead_M / noise_scale)


def prefer_first(
    gold_a_M: Tensor, gold_b_M: Tensor, uniform_M: Tensor, *, noise_scale: float
) -> Tensor:
    """Choose between the outputs of M pairs: whether a is chosen, (M,) bool.

    Args:
        gold_a_M, gold_b_M, noise_scale: see `preference_probability`.
        uniform_M: numbers drawn from U[0, 1), one for each pair; all that is random here.

    Raises:
        UserError: the noise is negative or not finite.
    """
    return uniform_M < preference_probability(gold_a_M, gold_b_M, noise_scale=noise_scale)


def can_be_compared(
    texts_a: Sequence[str], texts_b: Sequence[str], gold_a_M: Tensor, gold_b_M: Tensor
) -> Tensor:
    """Whether two outputs make a pair: different texts with different scores, (M,) bool.

    A choice between equal scores is a coin's, with any noise, and teaches nothing.
    """
    differ_M = torch.tensor([a != b for a, b in zip(texts_a, texts_b, strict=True)])
    return differ_M.to(gold_a_M.device) & (gold_a_M != gold_b_M)

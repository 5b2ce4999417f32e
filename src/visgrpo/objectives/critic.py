"""The critic's mathematics for PPO: advantages of tokens, whitening, the value loss.

B rows of at most T tokens, padded on the right. Values are those of the state *before* each token.
What stands at masked places is never used and may be anything, NaN included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class ValueLoss:
    """The loss (a scalar with gradient) and the share of tokens that the clip decided for."""

    loss: Tensor
    clip_share: Tensor


def gae(
    rewards_BT: Tensor,
    values_BT: Tensor,
    mask_BT: Tensor,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Tensor, Tensor]:
    """Return generalised advantages and returns, (B, T) each, constants; masked places are 0.

        A_t = Σ_{l ≥ 0} (γλ)^l δ_{t+l},   δ_t = r_t + γ V_{t+1} - V_t,   R_t = A_t + V_t

    After its last token a row is worth nothing, also where it was cut off. Source: Schulman et al.
    2016, arXiv 1506.02438, eq. 16.

    Args:
        mask_BT: 1 at the tokens that count, which are the first ones of a row.
        gamma: discount of a token.
        lam: λ; 0 trusts the critic after one token, 1 the rewards to the end.
    """
    mask_BT = mask_BT.bool()
    rewards_BT = rewards_BT.detach().masked_fill(~mask_BT, 0.0)
    values_BT = values_BT.detach().masked_fill(~mask_BT, 0.0)
    next_values_BT = F.pad(values_BT[:, 1:], (0, 1))
    deltas_BT = rewards_BT + gamma * next_values_BT - values_BT
    # Of a row's padding the differences are 0: the sum over what comes later starts there.
    advantages_BT = torch.zeros_like(deltas_BT)
    later_B = deltas_BT.new_zeros(len(deltas_BT))
    for t in reversed(range(deltas_BT.shape[1])):
        later_B = deltas_BT[:, t] + gamma * lam * later_B
        advantages_BT[:, t] = later_B
    return advantages_BT, advantages_BT + values_BT


def masked_moments(
    values: Tensor, mask: Tensor, gather: Callable[[Tensor], Tensor] = lambda part_1: part_1
) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased variance (n - 1) of unmasked values, float64 scalars.

    Fewer than two values have variance 0, and none at all mean 0.

    Args:
        gather: brings the numbers (1,) of all processes together, (W,), where each has some of the
            values.
    """
    # In float64 the mean of equal numbers is off by too little to become a spread.
    kept = values[mask.bool()].double()
    count = gather(kept.new_tensor([len(kept)])).sum()
    mean = gather(kept.sum()[None]).sum() / count.clamp(min=1)
    squares = gather((kept - mean).square().sum()[None]).sum()
    return mean, squares / (count - 1).clamp(min=1)


def whiten(
    values_BT: Tensor,
    mask_BT: Tensor,
    *,
    statistics: tuple[Tensor, Tensor] | None = None,
    eps: float = 1e-8,
) -> Tensor:
    """Return values of mean 0 and variance 1 over unmasked tokens; masked places are 0.

        (v - mean) / √(variance + eps)

    Equal values become 0. Source: Huang et al. 2024, "The N+ implementation details of RLHF with
    PPO" (arXiv 2403.17031).

    Args:
        statistics: mean and variance to use instead of these values' own: of the whole batch, where
            this is a part of it. See :func:`masked_moments`.
        eps: added to the variance.
    """
    mean, variance = statistics or masked_moments(values_BT, mask_BT)
    whitened_BT = (values_BT - mean) * torch.rsqrt(variance + eps)
    return whitened_BT.to(values_BT.dtype).masked_fill(~mask_BT.bool(), 0.0)


def value_loss(
    values_BT: Tensor,
    old_values_BT: Tensor,
    returns_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip: float | None = 0.2,
    tokens: float | Tensor | None = None,
) -> ValueLoss:
    """Return half the squared error of the values, clipped around the old ones.

        mean over tokens of  ½ max((V - R)², (clip(V, V_old - ε, V_old + ε) - R)²)

    A value that has moved by more than ε towards its return has no gradient. Source: OpenAI's PPO,
    as in Huang et al. 2024 (arXiv 2403.17031).

    Args:
        values_BT: with gradient; none flows into the old values and the returns.
        clip: ε; None takes the plain squared error.
        tokens: what the sum is divided by, where these rows are a part of a batch: its unmasked
            tokens. None: those of these rows. ``clip_share`` is always of these rows.
    """
    masked_BT = ~mask_BT.bool()
    values_BT = values_BT.masked_fill(masked_BT, 0.0)
    old_values_BT = old_values_BT.detach().masked_fill(masked_BT, 0.0)
    returns_BT = returns_BT.detach().masked_fill(masked_BT, 0.0)
    errors_BT = (values_BT - returns_BT).square()
    count = mask_BT.bool().sum().clamp(min=1)
    clip_share = errors_BT.new_zeros(())
    if clip is not None:
        clipped_BT = torch.clamp(values_BT, old_values_BT - clip, old_values_BT + clip)
        clipped_errors_BT = (clipped_BT - returns_BT).square()
        clip_share = (clipped_errors_BT > errors_BT).sum() / count
        errors_BT = torch.maximum(errors_BT, clipped_errors_BT)
    loss = 0.5 * errors_BT.masked_fill(masked_BT, 0.0).sum() / (count if tokens is None else tokens)
    return ValueLoss(loss, clip_share)

"""The clipped surrogate: aggregation × ratio level × clip.

With ρ = π/π_old at a token, and A the advantage of its output:

    two_sided   -min(min(ρ, δ) A, clip(ρ, 1 - ε_low, 1 + ε_high) A)      PPO, Schulman et al. 2017
    detached    -stop_gradient(clip(ρ, 1 - ε_low, 1 + ε_high)) A log π    CISPO, arXiv 2506.13585
    soft        -(4/τ) σ(τ (ρ - 1)) A, τ by the sign of A           SAPO, arXiv 2511.20347
    none        -ρ A

δ > 1 + ε_high bounds what an output of negative advantage can weigh, which ``two_sided`` otherwise
leaves without bound (dual-clip PPO, Ye et al. 2020, arXiv 1912.09729). The gradient of ``soft``
falls off on both sides of ρ = 1, and nowhere to 0.

An off-policy mask leaves out outputs of negative advantage from which the policy has moved away:
those whose mean over tokens of log π_old - log π is above a threshold (DeepSeek-V3.2, arXiv
2512.02556). They still count in means.

On the first pass ρ = 1 and every clip gives the plain policy gradient; clips act with several inner
passes, minibatches, or outputs of an older policy. Labels are outputs of one token (T = 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from visgrpo.objectives.divergences import MAX_LOG_RATIO

Aggregation = Literal["sequence_mean", "token_mean", "constant"]
RatioLevel = Literal["token", "sequence"]
Clip = Literal["two_sided", "detached", "soft", "none"]


@dataclass(frozen=True)
class SurrogateResult:
    """The loss (a scalar with gradient) and what the clip did (scalars without).

    ``clip_low`` and ``clip_high`` are the shares of tokens at which the clip, or δ, takes the
    gradient away (``two_sided``) or caps the weight (``detached``); their sum is
    ``clip_ratio/region_mean``. ``ratio_mean`` is the mean ratio of tokens. Where the estimator
    gives outputs weights, a token counts for its output's weight: under ``exact`` these are
    expectations under the old policy.
    ``counted`` is the sum of these weights: how many tokens the shares and the mean are of.
    ``masked`` is the share of tokens that the off-policy mask leaves out; None without one.
    """

    loss: Tensor
    clip_low: Tensor
    clip_high: Tensor
    ratio_mean: Tensor
    counted: Tensor
    masked: Tensor | None = None


def surrogate(
    log_probs_NGT: Tensor,
    old_log_probs_NGT: Tensor,
    advantages: Tensor,
    *,
    mask_NGT: Tensor | None = None,
    weights_NG: Tensor | None = None,
    aggregation: Aggregation = "sequence_mean",
    ratio_level: RatioLevel = "token",
    clip: Clip = "two_sided",
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    delta: float | None = None,
    temperatures: tuple[float, float] = (1.0, 1.05),
    off_policy_mask: float | None = None,
    constant: float | Tensor = 1.0,
) -> SurrogateResult:
    """Return the surrogate loss of N groups of G outputs of at most T tokens.

    Args:
        log_probs_NGT: log π of the chosen tokens, with gradient.
        old_log_probs_NGT: log π_old of the same tokens; no gradient flows into it.
        advantages: (N, G), one per output, or (N, G, T), one per token; constants of the loss.
        mask_NGT: 1 at the tokens that count. Values at masked tokens are never exponentiated and
            may be anything, infinities and NaN included. None: every token counts.
        weights_NG: the estimator's weights, rows summing to 1. None: 1/G each. An output of weight
            0 is masked: it cannot happen, and its log-prob may be -inf.
        aggregation: see :func:`aggregate`.
        ratio_level: ``token``, or ``sequence``: one ratio per output, the geometric mean of its
            tokens' (GSPO, arXiv 2507.18071).
        delta: δ of the ``two_sided`` clip; None for no bound.
        temperatures: τ of the ``soft`` clip, where an advantage is positive and where it is not.
        off_policy_mask: the threshold, in nats per token; None leaves nothing out.
        constant: tokens that an output counts for with the ``constant`` aggregation.
    """
    log_probs_NGT = log_probs_NGT.float() if log_probs_NGT.dtype.itemsize < 4 else log_probs_NGT
    mask = _mask_like(log_probs_NGT, mask_NGT)
    if weights_NG is not None:
        mask = mask & (weights_NG > 0).unsqueeze(-1)
    log_probs = log_probs_NGT.masked_fill(~mask, 0.0)
    log_ratio = log_probs - old_log_probs_NGT.detach().masked_fill(~mask, 0.0)
    if ratio_level == "sequence":
        tokens = mask.sum(dim=-1, keepdim=True).clamp(min=1)
        log_ratio = (log_ratio.sum(dim=-1, keepdim=True) / tokens).expand_as(log_probs)
    advantage = advantages.detach()
    if advantage.ndim == 2:
        advantage = advantage.unsqueeze(-1)
    else:
        advantage = advantage.masked_fill(~mask, 0.0)
    kept = mask
    if off_policy_mask is not None:
        drift = -log_ratio.detach().masked_fill(~mask, 0.0).sum(dim=-1, keepdim=True)
        drift = drift / mask.sum(dim=-1, keepdim=True).clamp(min=1)
        kept = mask & ((advantage >= 0) | (drift <= off_policy_mask))
        advantage = advantage * kept
    ratio = log_ratio.clamp(max=MAX_LOG_RATIO).exp()
    capped = ratio.clamp(1 - epsilon_low, 1 + epsilon_high)
    below, above = ratio < 1 - epsilon_low, ratio > 1 + epsilon_high

    if clip == "two_sided":
        bounded = ratio if delta is None else ratio.clamp(max=delta)
        gain = torch.minimum(bounded * advantage, capped * advantage)
        above = (above & (advantage > 0)) | ((bounded < ratio) & (advantage < 0))
        below = below & (advantage < 0)
    elif clip == "detached":
        gain = capped.detach() * advantage * log_probs
    elif clip == "soft":
        positive, other = ratio.new_tensor(temperatures)
        tau = torch.where(advantage > 0, positive, other)
        gain = 4 / tau * torch.sigmoid(tau * (ratio - 1)) * advantage
        below = above = torch.zeros_like(mask)
    else:
        gain = ratio * advantage
        below = above = torch.zeros_like(mask)

    counts = mask.to(log_probs.dtype)
    if weights_NG is not None:
        counts = counts * weights_NG.detach().unsqueeze(-1)
    # The smallest count stands in for 0 when nothing at all is unmasked.
    total = counts.sum().clamp(min=torch.finfo(counts.dtype).tiny)

    def mean(values: Tensor) -> Tensor:
        return (values * counts).sum() / total

    return SurrogateResult(
        loss=aggregate(-gain, mask, weights_NG, how=aggregation, constant=constant),
        clip_low=mean(below),
        clip_high=mean(above),
        ratio_mean=mean(ratio.detach()),
        counted=counts.sum(),
        masked=None if off_policy_mask is None else mean(mask & ~kept),
    )


def on_policy_loss(
    log_probs_NG: Tensor, advantages_NG: Tensor, weights_NG: Tensor | None = None
) -> Tensor:
    """Return the surrogate loss of outputs of one token at π = π_old, where every ratio is 1.

    No clip acts there, all of them have the same gradient, A ∇log π, and the aggregations agree:
    this is :func:`surrogate` in a few passes over its tensors; with the ``soft`` clip up to a
    constant.
    """
    # An impossible output (-inf) adds its advantage and no gradient, instead of NaN.
    possible = log_probs_NG.clamp(min=torch.finfo(log_probs_NG.dtype).min)
    gain_NG = (1 + (possible - possible.detach())) * advantages_NG.detach()
    if weights_NG is None:
        return -gain_NG.mean()
    return -(weights_NG.detach() * gain_NG).sum() / len(gain_NG)


def aggregate(
    values_NGT: Tensor,
    mask_NGT: Tensor | None = None,
    weights_NG: Tensor | None = None,
    *,
    how: Aggregation = "sequence_mean",
    constant: float | Tensor = 1.0,
) -> Tensor:
    """Return one number for values at tokens, with w the weights within a group (1/G by default).

    sequence_mean   1/N Σ_n Σ_g w_ng (1/T_ng) Σ_t v      every output counts the same (GRPO)
    token_mean      Σ_ng w_ng Σ_t v / Σ_ng w_ng T_ng     every token counts the same (DAPO)
    constant        1/N Σ_n Σ_g w_ng Σ_t v / constant    no length bias at all (Dr. GRPO)

    The three agree on outputs of one token. An output without tokens adds 0. Where a batch is
    worked on in pieces, ``constant`` with the whole's mean tokens is the whole's ``token_mean``.
    """
    n_inputs, group_size, _ = values_NGT.shape
    mask = _mask_like(values_NGT, mask_NGT)
    if weights_NG is None:
        weights_NG = values_NGT.new_full((n_inputs, group_size), 1.0 / group_size)
    sums_NG = values_NGT.masked_fill(~mask, 0.0).sum(dim=-1)
    tokens_NG = mask.sum(dim=-1)
    if how == "sequence_mean":
        return (weights_NG * sums_NG / tokens_NG.clamp(min=1)).sum() / n_inputs
    if how == "token_mean":
        # The smallest weighted token count stands in for 0 when nothing at all is unmasked.
        tokens = (weights_NG * tokens_NG).sum().clamp(min=torch.finfo(weights_NG.dtype).tiny)
        return (weights_NG * sums_NG).sum() / tokens
    return (weights_NG * sums_NG).sum() / (n_inputs * constant)


def most_uncertain(
    entropies: Tensor,
    mask: Tensor,
    share: float,
    gather: Callable[[Tensor], Tensor] = lambda part_1: part_1,
) -> Tensor:
    """Return which tokens are among the given share of most entropy, bool, of the values' shape.

    The least of them is the quantile 1 - share of all unmasked values; what equals it is taken too.
    Source: Wang et al. 2025, "Beyond the 80/20 rule" (arXiv 2506.01939).

    Args:
        share: in (0, 1].
        gather: brings the numbers (B,) of all processes together, where each has some of the
            values, as many numbers each.
    """
    mask = mask.bool()
    most = int(gather(mask.sum()[None]).max())
    here = entropies.new_full((most,), torch.nan)
    here[: int(mask.sum())] = entropies[mask]
    everywhere = gather(here)
    ordered = everywhere[~everywhere.isnan()].sort().values
    if not len(ordered):
        return mask
    # As a quantile between two numbers is, but without its rounding.
    least = math.ceil((1 - share) * (len(ordered) - 1) - 1e-9)
    return mask & (entropies >= ordered[least])


def _mask_like(values: Tensor, mask: Tensor | None) -> Tensor:
    return torch.ones_like(values, dtype=torch.bool) if mask is None else mask.bool()

"""Advantages: how much better an output is than its group, or its batch; how groups are drawn.

    A = (r - baseline) / scale

Sources: GRPO, Shao et al. 2024 (arXiv 2402.03300), eq. 3; leave-one-out, Ahmadian et al. 2024
(arXiv 2402.14740); no scale, Liu et al. 2025 ("Dr. GRPO", arXiv 2503.20783).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from visgrpo.errors import UserError

Scope = Literal["group", "batch"]
Baseline = Literal["mean", "leave_one_out", "none"]
Scale = Literal["std", "batch_std", "mean", "none"]
Combination = Literal["sum_then_normalize", "normalize_then_sum"]
SCALE_EPS = 1e-4
"""Added to what advantages are divided by, in reward units."""


def advantages(
    rewards_NG: Tensor,
    *,
    scope: Scope = "group",
    baseline: Baseline = "mean",
    scale: Scale = "std",
    weights_NG: Tensor | None = None,
    eps: float = SCALE_EPS,
) -> Tensor:
    """Return the advantages (N, G) of rewards (N, G).

    With ``weights_NG`` (the estimator's weights, each row summing to 1: π_old for ``exact``, 1/K
    for ``uniform``) mean and standard deviation are those of that distribution, and the deviation
    is the population's. Without weights every output counts the same and the deviation is the
    sample's (n - 1), as in TRL. A group whose weights are all 0 is no part of the batch.

    A group (or, with batch scope, a batch) whose possible outputs all earn the same has advantages
    of exactly 0, whatever the rounding of its mean; without a baseline it is the group, or batch,
    that the scale is of, and with neither advantages are the rewards themselves.

    Args:
        rewards_NG: one reward for each of the G outputs of each of the N inputs; finite.
        scope: whether baseline and scale are taken over each group or over the whole batch.
        baseline: ``mean``; ``leave_one_out``, the mean of the *other* outputs; or ``none``.
        scale: ``std`` of the scope; ``batch_std``, the whole batch's whatever the scope of the
            baseline; ``mean``, the scope's mean reward; ``none``.
        eps: added to the scale, in reward units.

    Raises:
        UserError: for a group of one with group scope, ``leave_one_out`` with weights, and ``mean``
            scaling of negative rewards.
    """
    if not rewards_NG.is_floating_point() or rewards_NG.dtype.itemsize < 4:
        rewards_NG = rewards_NG.float()
    if scope == "batch":
        pool = rewards_NG.reshape(1, -1)
        weights = None if weights_NG is None else _over_batch(weights_NG)
    else:
        pool, weights = rewards_NG, weights_NG
    _refuse(pool, scope, baseline, scale, weights)
    equal = all_equal(pool, weights)[:, None]
    if baseline == "none" and scale == "batch_std":
        every_weight = None if weights is None else weights.reshape(1, -1)
        equal = all_equal(pool.reshape(1, -1), every_weight)[:, None]
    if baseline != "none" and scale != "mean":
        # Differences of numbers that lie close together are exact: 1e6 + 0.1 is centred like 0.1.
        pool = pool - (pool[:1, :1] if scale == "batch_std" else pool[:, :1])

    mean = _mean(pool, weights)
    centred = pool - _baseline(pool, mean, baseline)
    if scale == "std":
        centred = centred / (_std(pool, weights) + eps)
    elif scale == "batch_std":
        batch_weights = None if weights is None else _over_batch(weights)
        centred = centred / (_std(pool.reshape(1, -1), batch_weights) + eps)
    elif scale == "mean":
        centred = centred / (mean + eps)
    if baseline != "none" or scale != "none":
        centred = centred.masked_fill(equal, 0.0)
    return centred.reshape(rewards_NG.shape)


def combine_rewards(
    rewards_NGR: Tensor,
    reward_weights_R: Tensor,
    *,
    combination: Combination = "sum_then_normalize",
    scope: Scope = "group",
    baseline: Baseline = "mean",
    scale: Scale = "std",
    weights_NG: Tensor | None = None,
    eps: float = SCALE_EPS,
) -> Tensor:
    """Return the advantages (N, G) of R rewards, summed then normalised or the reverse.

    ``sum_then_normalize`` normalises Σ_r w_r·reward_r; ``normalize_then_sum`` gives every reward
    the same spread first, so that a reward in large units cannot drown the others.

    A reward that is NaN for all outputs of an input does not apply to it: it has no part in that
    input's advantages, and the input none in that reward's statistics over a batch.
    """
    applies_NR = ~rewards_NGR[:, 0].isnan()

    def normalise(rewards_NG: Tensor, weights_NG: Tensor | None = weights_NG) -> Tensor:
        return advantages(
            rewards_NG,
            scope=scope,
            baseline=baseline,
            scale=scale,
            weights_NG=weights_NG,
            eps=eps,
        )

    def normalise_some(rewards_NG: Tensor, applies_N: Tensor) -> Tensor:
        if bool(applies_N.all()):
            return normalise(rewards_NG)
        result_NG = torch.zeros_like(rewards_NG)
        if int(applies_N.sum()) * rewards_NG.shape[1] > 1:  # one output has no spread
            weights = None if weights_NG is None else weights_NG[applies_N]
            result_NG[applies_N] = normalise(rewards_NG[applies_N], weights)
        return result_NG

    parts = rewards_NGR.unbind(-1)
    if combination == "normalize_then_sum":
        parts = tuple(map(normalise_some, parts, applies_NR.unbind(-1)))
        return weighted_sum(torch.stack(parts, dim=-1), reward_weights_R)
    if not bool(applies_NR.all()):
        over_batch = baseline != "none" and (scope == "batch" or scale == "batch_std")
        parts = tuple(
            rewards_NG.nan_to_num(nan=float(rewards_NG.nanmean().nan_to_num()) if over_batch else 0)
            for rewards_NG in parts
        )
    return normalise(weighted_sum(torch.stack(parts, dim=-1), reward_weights_R))


def weighted_sum(values_NGR: Tensor, weights_R: Tensor) -> Tensor:
    """Return Σ_r w_r v_r, (N, G), reading one table (N, G) after the other."""
    total, *others = [
        values_NG if weight == 1.0 else values_NG * weight
        for values_NG, weight in zip(values_NGR.unbind(-1), weights_R.tolist(), strict=True)
    ]
    for values_NG in others:
        total = total + values_NG
    return total


def all_equal(rewards_NG: Tensor, weights_NG: Tensor | None = None) -> Tensor:
    """Return (N,) booleans: groups whose rewards are all the same, which teach nothing.

    An output of weight 0 cannot happen and does not count.
    """
    if weights_NG is None or weights_NG.stride(-1) == 0:  # one weight for all, seen many times
        lowest_N, highest_N = rewards_NG.aminmax(dim=1)
        return lowest_N == highest_N
    likeliest_NG = weights_NG.argmax(dim=1, keepdim=True)
    same_NG = rewards_NG == rewards_NG.gather(1, likeliest_NG)
    return (same_NG | (weights_NG == 0)).all(dim=1)


def _refuse(
    pool: Tensor, scope: Scope, baseline: Baseline, scale: Scale, weights: Tensor | None
) -> None:
    one_number = pool.numel() if scale == "batch_std" else pool.shape[1]
    if (pool.shape[1] == 1 and baseline != "none") or (
        one_number == 1 and scale in ("std", "batch_std")
    ):
        what = "A batch" if scope == "batch" else "A group"
        raise UserError(
            f"{what} of one output has no {'baseline' if baseline != 'none' else 'spread'}: "
            "take a larger group size, or batch scope with more than one input."
        )
    if baseline == "leave_one_out" and weights is not None:
        raise UserError(
            "The leave-one-out baseline needs sampled outputs: with every class enumerated the "
            'mean is already unbiased. Use baseline "mean" or the "sampled" estimator.'
        )
    if scale == "mean" and bool((pool < 0).any()):
        raise UserError(
            'Scale "mean" divides by the mean reward and needs rewards ≥ 0: shift the rewards or '
            'use scale "std" or "none".'
        )


def _over_batch(weights_NG: Tensor) -> Tensor:
    """Weights (1, N·G) that sum to 1; groups without any weight are no part of the batch."""
    groups = (weights_NG.sum(dim=1) > 0).sum().clamp(min=1)
    return weights_NG.reshape(1, -1) / groups


def _mean(pool: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return pool.mean(dim=1, keepdim=True)
    return (weights * pool).sum(dim=1, keepdim=True)


def _std(pool: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return pool.std(dim=1, keepdim=True)
    centred = pool - _mean(pool, weights)
    return (weights * centred.square()).sum(dim=1, keepdim=True).sqrt()


def _baseline(pool: Tensor, mean: Tensor, baseline: Baseline) -> Tensor:
    if baseline == "none":
        return torch.zeros_like(mean)
    if baseline == "mean":
        return mean
    others = pool.shape[1] - 1
    return (pool.sum(dim=1, keepdim=True) - pool) / others


# Three ways to take the expectation over a finite set of K outputs:
#
# sampled   G draws from π_old, weight 1/G each: the policy gradient, without bias
# exact     every class, weight π_old(k): the same gradient, without sampling variance
# uniform   every class, weight 1/K: GRPO-RM (arXiv 2511.15256). Not a policy gradient: at
#           π = π_old its logit gradient is A_k/K, which does not shrink as the model gets right

Estimator = Literal["sampled", "exact", "uniform"]


def draw(log_probs_NK: Tensor, uniforms_NG: Tensor) -> Tensor:
    """Draw G outputs with replacement from each row by inverting its distribution function.

    The caller brings the randomness, U(0, 1) numbers (N, G): the same numbers and log-probs give
    the same outputs on any number of processes.

    Returns:
        Class ids (N, G), int64. A class of probability 0 is never drawn.
    """
    cumulative_NK = log_probs_NK.detach().double().exp().cumsum(dim=-1)
    totals_N1 = cumulative_NK[:, -1:].contiguous()
    targets_NG = (uniforms_NG.double() * totals_N1).contiguous()
    # right=True finds the first class whose cumulative probability exceeds the target, which skips
    # classes of probability 0; a target rounded up to the total would find none: the last class
    # that adds to the total stands in.
    found = torch.searchsorted(cumulative_NK, targets_NG, right=True)
    return torch.minimum(found, torch.searchsorted(cumulative_NK, totals_N1))


def estimator_weights(estimator: Estimator, old_log_probs_NG: Tensor) -> Tensor | None:
    """Return the weights (N, G) of a group's outputs, rows summing to 1.

    None stands for equal weights of *sampled* outputs: their mean reward is itself an estimate,
    which is why their standard deviation is the sample's. With the enumerating estimators G = K.
    """
    if estimator == "sampled":
        return None
    if estimator == "exact":
        return old_log_probs_NG.detach().exp()
    # One number seen N × K times: reading it costs nothing.
    return old_log_probs_NG.new_tensor(1.0 / old_log_probs_NG.shape[-1]).expand_as(old_log_probs_NG)

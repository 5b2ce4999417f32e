"""What a batch says of a policy and its rewards: scalars without gradient, means over inputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from visgrpo.methods.groups import LabelGroups
from visgrpo.methods.method import Metrics
from visgrpo.objectives import all_equal, entropy, weighted_sum
from visgrpo.rewards import RewardSet


def mean_over_inputs(values_N: Tensor, input_weights_N: Tensor | None) -> Tensor:
    """Return the mean of one number per input, weighted where inputs count differently."""
    return values_N.mean() if input_weights_N is None else (values_N * input_weights_N).mean()


def policy_metrics(
    log_probs_NK: Tensor, labels_N: Tensor, input_weights_N: Tensor | None = None
) -> Metrics:
    """Return entropy, entropy/log K and training accuracy of a batch."""
    entropy_N = entropy(log_probs_NK)
    each = {
        "entropy": entropy_N,
        "entropy_normalized": entropy_N / math.log(log_probs_NK.shape[-1]),
        "accuracy": (log_probs_NK.argmax(dim=-1) == labels_N).float(),
    }
    return {name: mean_over_inputs(value, input_weights_N) for name, value in each.items()}


def reward_metrics(groups: LabelGroups, rewards: RewardSet) -> Metrics:
    """Return what the groups earned, in all and by each reward, and how much that differed.

    Rewards are the old policy's expectation where classes are enumerated, also under ``uniform``:
    with its own weights c·hard + uniformity would be worth (c - 1) / K, whatever was learned.
    """
    rewards_NG = weighted_sum(groups.rewards_NGR, rewards.weights_R)
    group_size = rewards_NG.shape[1]
    weights_NG, correction = groups.weights_NG, 1.0
    if weights_NG is None:  # the deviation of a sample, as in TRL
        weights_NG = torch.full_like(rewards_NG, 1.0 / group_size)
        correction = group_size / max(group_size - 1, 1)
    expected_NG = weights_NG
    if groups.weights_NG is not None:
        # Log-probs of all classes stay as they are; those of a subset are brought to a sum of 1.
        log_probs_NG = groups.old_log_probs_NG
        if groups.coverage_N is not None:  # labels that nobody has judged are no outputs
            log_probs_NG = log_probs_NG.masked_fill(groups.weights_NG == 0, -torch.inf)
        expected_NG = log_probs_NG.softmax(dim=1)
    mean_N1 = (weights_NG * rewards_NG).sum(dim=1, keepdim=True)
    variance_N = (weights_NG * (rewards_NG - mean_N1).square()).sum(dim=1) * correction
    each = {
        "reward": (expected_NG * rewards_NG).sum(dim=1),
        "reward_std": variance_N.sqrt(),
        "frac_reward_zero_std": all_equal(rewards_NG, groups.weights_NG).float(),
        "advantage_abs": (weights_NG * groups.advantages_NG.abs()).sum(dim=1),
    }
    for i, name in enumerate(rewards.names):
        each[f"rewards/{name}/mean"] = (expected_NG * groups.rewards_NGR[..., i]).sum(dim=1)
    metrics = {
        name: mean_over_inputs(value, groups.metric_weights_N) for name, value in each.items()
    }
    if groups.coverage_N is not None:  # of all images, those without any feedback too
        metrics["feedback/coverage"] = groups.coverage_N.mean()
    return metrics

"""The group of label outputs that one batch is optimised on, frozen at the time of its rollout.

Where nobody knows the reward of some outputs, the policy is conditioned on the set S of those of an
input that have one,

    π_S(k) = π(k) / Σ_{j ∈ S} π(j),

when groups are drawn or enumerated, and when they are scored: ratios are π_S / π_S,old. π_S does
not change with the odds between S and the rest, so that whatever the advantages are, no gradient
reaches a logit outside S: what nobody has seen is neither praised nor blamed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from visgrpo.data.batches import Batch
from visgrpo.methods.method import Metrics, Shards
from visgrpo.objectives import Objective, all_equal, combine_rewards, entropy, weighted_sum
from visgrpo.objectives.advantages import Combination, Estimator, estimator_weights
from visgrpo.rewards.labels import Known
from visgrpo.rewards.sets import RewardSet


@dataclass(frozen=True)
class LabelGroups:
    """N groups of G labels with everything that the loss needs, without gradient.

    With an enumerating estimator the group is the class set: G = K and output k is class k.

    Attributes:
        outputs_NG: class ids, int64.
        old_log_probs_NG: log π_old of the outputs.
        rewards_NGR: each of R rewards, unweighted.
        advantages_NG: what the surrogate multiplies.
        weights_NG: the estimator's weights; None for 1/G.
        reference_log_probs_NK: the reference's distribution; None without a KL term.
        labels_N: true class ids, for the supervised part and the accuracy.
        labelled_N: which labels the supervised part may see, bool; or how much each counts there.
        input_weights_N: how much each input counts; None where all count the same. Their mean is
            1, or less where other inputs of the batch have nothing to decide.
        coverage_N: the old policy's probability of the labels that people's feedback is known of;
            None where rewards are not from feedback.
        usable_NK: bool, the outputs that the policy is conditioned on; None for all.
    """

    outputs_NG: Tensor
    old_log_probs_NG: Tensor
    rewards_NGR: Tensor
    advantages_NG: Tensor
    weights_NG: Tensor | None
    reference_log_probs_NK: Tensor | None
    labels_N: Tensor
    labelled_N: Tensor
    input_weights_N: Tensor | None = None
    coverage_N: Tensor | None = None
    usable_NK: Tensor | None = None

    @property
    def metric_weights_N(self) -> Tensor | None:
        """How much each input counts in what is logged: means are over those with feedback."""
        if self.usable_NK is None or self.input_weights_N is None:
            return self.input_weights_N
        # Where nobody has judged any image of a piece, the smallest number stands in for 0.
        tiny = torch.finfo(self.input_weights_N.dtype).tiny
        return self.input_weights_N / self.input_weights_N.mean().clamp(min=tiny)

    def select(self, rows: Tensor) -> LabelGroups:
        """Return the groups of some inputs, for a minibatch."""

        def pick(value: Tensor | None) -> Any:
            return None if value is None else value[rows]

        return LabelGroups(**{f.name: pick(getattr(self, f.name)) for f in fields(self)})


def advantages_of(
    rewards_NGR: Tensor,
    weights_R: Tensor,
    objective: Objective,
    combination: Combination,
    shards: Shards,
    weights_NG: Tensor | None = None,
) -> Tensor:
    """Return this process's advantages (N, G); batch statistics are those of all processes."""
    local = len(rewards_NGR)
    whole = objective.scope == "batch" or objective.scale == "batch_std"
    if whole:
        rewards_NGR = shards.gather(rewards_NGR)
        weights_NG = None if weights_NG is None else shards.gather(weights_NG)
    advantages_NG = combine_rewards(
        rewards_NGR,
        weights_R.to(rewards_NGR),
        combination=combination,
        scope=objective.scope,
        baseline=objective.baseline,
        scale=objective.scale,
        weights_NG=weights_NG,
    )
    start = shards.rank * local if whole else 0
    return advantages_NG[start : start + local]


def places_of(batch: Batch, shards: Shards) -> Tensor:
    """Return the places (N,) of this process's rows in the batch of all processes."""
    if batch.positions_N is not None:
        return batch.positions_N
    return shards.rank * len(batch) + torch.arange(len(batch))


def uniforms_for(seed: int, step: int, positions_N: Tensor, total: int, *shape: int) -> Tensor:
    """Return the U(0, 1) numbers (N, *shape) that draw the groups of one step.

    They are made for the whole global batch and cut, so that any number of processes draws the
    same groups, and from (seed, step) alone, so that a resumed run does too.
    """
    numbers = torch.rand(total, *shape, generator=_of_step(seed, step), dtype=torch.float64)
    return numbers[positions_N]


def subset_offsets(seed: int, step: int, n_classes: int, size: int) -> Tensor:
    """Return (size,) offsets from an image's true class to the classes of its group in one step.

    The first is 0, the true class; the others are drawn from 1 … K - 1 without replacement, so that
    for every image each wrong class is equally likely. Images share the draw: it costs K numbers
    and not N × K, and any number of processes makes the same.
    """
    others = torch.randperm(n_classes - 1, generator=_of_step(seed, step))[: size - 1] + 1
    return torch.cat([torch.zeros(1, dtype=torch.long), others])


def _of_step(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % (2**63))


def weights_with_inputs(groups: LabelGroups) -> Tensor | None:
    """Return the weights (N, G) of all outputs, in which inputs count for what they do.

    Rows sum to the input's own weight. None stands for 1/G everywhere.
    """
    if groups.input_weights_N is None:
        return groups.weights_NG
    if groups.weights_NG is None:
        shape = groups.old_log_probs_NG.shape
        return (groups.input_weights_N[:, None] / shape[1]).expand(shape)
    return groups.weights_NG * groups.input_weights_N[:, None]


def mean_over_inputs(values_N: Tensor, input_weights_N: Tensor | None) -> Tensor:
    """Return the mean of one number per input, weighted where inputs count differently."""
    return values_N.mean() if input_weights_N is None else (values_N * input_weights_N).mean()


def policy_measures(entropy_N: Tensor, right_N: Tensor, n_classes: int) -> Metrics:
    """Return entropy, entropy/log K and whether the likeliest class is true, each of N inputs."""
    return {
        "entropy": entropy_N,
        "entropy_normalized": entropy_N / math.log(n_classes),
        "accuracy": right_N.to(entropy_N.dtype),
    }


def policy_metrics(
    log_probs_NK: Tensor, labels_N: Tensor, input_weights_N: Tensor | None = None
) -> Metrics:
    """Return the means of `policy_measures` over a batch."""
    right_N = log_probs_NK.argmax(dim=-1) == labels_N
    each = policy_measures(entropy(log_probs_NK), right_N, log_probs_NK.shape[-1])
    return {name: mean_over_inputs(value, input_weights_N) for name, value in each.items()}


REWARD_METRICS = ("reward", "reward_std", "frac_reward_zero_std", "advantage_abs")


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


def silent_share(groups: LabelGroups, rewards: RewardSet) -> Metrics:
    """Return the share of groups whose outputs earned the same, as `reward_metrics` does."""
    silent_N = all_equal(weighted_sum(groups.rewards_NGR, rewards.weights_R), groups.weights_NG)
    share = mean_over_inputs(silent_N.float(), groups.metric_weights_N)
    return {"frac_reward_zero_std": share}


def conditioned(log_probs_NK: Tensor, usable_NK: Tensor) -> Tensor:
    """Return log π_S (N, K), -inf outside S; log π where S is empty, so that numbers are finite."""
    outside_NK = ~usable_NK & usable_NK.any(dim=1, keepdim=True)
    return log_probs_NK.masked_fill(outside_NK, -torch.inf).log_softmax(dim=-1)


@dataclass(frozen=True)
class Support:
    """What the groups of N inputs can be made of.

    Attributes:
        log_probs_NK: the old policy among the possible outputs, -inf for the others; where an
            input has none, the old policy itself, so that numbers stay finite.
        usable_NK: bool, the possible outputs; None where all are.
        decided_N: bool, which inputs have a possible output; None where all have.
        coverage_N: the old policy's probability of what was observed; None where rewards are known
            of every output.
    """

    log_probs_NK: Tensor
    usable_NK: Tensor | None = None
    decided_N: Tensor | None = None
    coverage_N: Tensor | None = None

    @classmethod
    def of(cls, old_NK: Tensor, known: Known | None) -> Support:
        """Condition the old policy, log π (N, K), on the outputs that have a reward."""
        if known is None:
            return cls(old_NK)
        coverage_N = (old_NK.exp() * known.observed_NK).sum(dim=-1)
        usable_NK = known.usable_NK
        if usable_NK is None:
            return cls(old_NK, coverage_N=coverage_N)
        among_NK = conditioned(old_NK, usable_NK)
        return cls(among_NK, usable_NK, usable_NK.any(dim=1), coverage_N)

    def input_weights(self, given_N: Tensor | None) -> Tensor | None:
        """Return how much each input counts: nothing where no output is possible."""
        if self.decided_N is None:
            return given_N
        decided_N = self.decided_N.to(self.log_probs_NK.dtype)
        return decided_N if given_N is None else given_N * decided_N

    def weights(self, estimator: Estimator, among_NG: Tensor) -> Tensor | None:
        """Return the estimator's weights (N, G) of outputs with these log-probs; rows sum to 1."""
        if self.decided_N is None or estimator != "uniform":
            return estimator_weights(estimator, among_NG)
        possible_NG = (among_NG > -torch.inf).to(among_NG.dtype)
        return possible_NG / possible_NG.sum(dim=1, keepdim=True)

    def weights_in_batch(
        self, weights_NG: Tensor | None, outputs_NG: Tensor, objective: Objective
    ) -> Tensor | None:
        """Return the weights that advantages are taken with.

        Statistics of a batch are those of the inputs that have possible outputs. The others weigh
        0, for which sampled outputs need weights too: their deviation is then the population's.
        """
        in_groups = objective.scope == "group" and objective.scale != "batch_std"
        if self.decided_N is None or in_groups:
            return weights_NG
        if weights_NG is None:
            weights_NG = torch.full_like(outputs_NG, 1, dtype=self.log_probs_NK.dtype)
            weights_NG = weights_NG / outputs_NG.shape[1]
        return weights_NG * self.decided_N[:, None]

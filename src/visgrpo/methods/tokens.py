"""The token policy: the GRPO loss on groups of completions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from visgrpo.data.batches import Batch
from visgrpo.methods.dead_groups import redrawn, told
from visgrpo.methods.groups import advantages_of
from visgrpo.methods.labels import CLIP_METRICS
from visgrpo.methods.method import LossResult, Metrics, Shards
from visgrpo.methods.token_groups import TokenGroups, TokenRollouts, sequence_kl
from visgrpo.models.language import LanguageModel, Scores
from visgrpo.objectives import (
    Objective,
    aggregate,
    all_equal,
    most_uncertain,
    token_kl,
    weighted_sum,
)
from visgrpo.objectives.advantages import Combination
from visgrpo.objectives.divergences import KLEstimator
from visgrpo.objectives.surrogate import Aggregation, SurrogateResult


@dataclass(frozen=True)
class TokenTerms:
    """What all methods over tokens add to their surrogate in the same way.

        L = surrogate + β·KL(π ‖ π_ref) - α·H(π)

    Attributes:
        kl_in: whether KL is a term of the loss, or taken from the reward (k1 of the old policy).
        kl_estimator: of the loss's KL; tokens are weighted by π/π_old, so that the gradient of k1
            and k3 is the KL's.
        entropy_weight: α, per nat, of the whole softmax.
        mask_truncated: leave completions that the length limit cut off out of the loss.
        top_entropy: the share of the tokens that the surrogate learns from, those that were drawn
            with most entropy in the whole batch; the others still count in its means.
        on_policy: the policy that is updated is the one that drew: its ratios are 1 exactly,
            whatever generation's rounding.
    """

    kl_in: str = "loss"
    kl_estimator: KLEstimator = "k3"
    entropy_weight: float = 0.0
    mask_truncated: bool = False
    top_entropy: float = 1.0
    on_policy: bool = True

    def mask(self, groups: TokenGroups) -> Tensor:
        """Return the tokens (N, G, T) that are learned from."""
        mask_NGT = groups.mask_NGT
        if groups.learned_NG is not None:
            mask_NGT = mask_NGT & groups.learned_NG.unsqueeze(-1)
        if self.mask_truncated:
            mask_NGT = mask_NGT & groups.ended_NG.unsqueeze(-1)
        return mask_NGT

    def counted(self, groups: TokenGroups, shards: Shards) -> TokenGroups:
        """Return the groups of a whole share with what the loss counts in the whole batch."""
        mask_NGT = self.mask(groups)
        here_12 = torch.stack([mask_NGT.sum(), torch.ones_like(mask_NGT[..., 0]).sum()])
        tokens, completions = shards.gather(here_12[None]).sum(dim=0).tolist()
        mean_N = torch.full_like(groups.mean_tokens_N, tokens / completions)
        groups = replace(groups, learned_tokens_N=mean_N)
        if groups.entropies_NGT is None:
            return groups
        uncertain_NGT = most_uncertain(
            groups.entropies_NGT, mask_NGT, self.top_entropy, shards.gather
        )
        return replace(groups, uncertain_NGT=uncertain_NGT)

    def advantages(self, groups: TokenGroups) -> Tensor:
        """Return the advantages that the surrogate takes: 0 at tokens that it leaves out."""
        if groups.uncertain_NGT is None:
            return groups.advantages
        each = groups.advantages if groups.advantages.ndim == 3 else groups.advantages[..., None]
        return each * groups.uncertain_NGT

    def score(
        self,
        model: Any,
        groups: TokenGroups,
        rollouts: TokenRollouts,
        *,
        logged: bool = True,
        critic_alone: bool = False,
    ) -> Scores:
        """Run the policy, and the critic if there is one, over the completions, with gradient.

        Entropies that are no part of the loss are made in logged steps alone.
        """
        return model(
            groups.prompts_NP,
            groups.lengths_N,
            groups.tokens_NGT,
            rollouts.sampling.distribution,
            pictures=groups.pictures,
            read=groups.read,
            entropies="gradient" if self.entropy_weight else "value" if logged else "none",
            critic_alone=critic_alone,
        )

    @property
    def compares(self) -> bool:
        """Whether the log-probs that tokens were drawn with are compared with others."""
        return not self.on_policy or self.kl_in == "reward"

    @property
    def asks(self) -> dict[str, bool]:
        """What groups must hold beside tokens, as `TokenRollouts.draw` is asked for it."""
        return {"rescored": self.compares, "entropies": self.top_entropy < 1}

    def old_log_probs(self, scores: Scores, groups: TokenGroups) -> Tensor:
        return scores.log_probs.detach() if self.on_policy else groups.old_log_probs_NGT

    def add(
        self,
        result: SurrogateResult,
        scores: Scores,
        groups: TokenGroups,
        coefficient: float,
        aggregation: Aggregation,
        constant: float | Tensor,
    ) -> tuple[Tensor, Metrics]:
        """Add the terms to a surrogate loss; return it with the metrics of the policy."""
        mask_NGT = self.mask(groups)
        loss = result.loss
        metrics = {
            "clip_ratio/low_mean": result.clip_low,
            "clip_ratio/high_mean": result.clip_high,
            "clip_ratio/region_mean": result.clip_low + result.clip_high,
            "ratio_mean": result.ratio_mean,
            "completions/mean_length": groups.mask_NGT.sum(dim=-1).float().mean(),
            "completions/clipped_ratio": 1 - groups.ended_NG.float().mean(),
        }
        if result.masked is not None:
            metrics["off_policy_ratio"] = result.masked
        if scores.entropy is not None:
            metrics["entropy"] = groups.mean_over_tokens(scores.entropy.detach())
        if groups.reference_log_probs_NGT is not None:
            with torch.no_grad():
                for estimator, name in (("k3", "kl"), ("k1", "kl_k1")):
                    each = self._kl(scores.log_probs, groups, groups.mask_NGT, estimator, None)
                    metrics[name] = groups.mean_over_tokens(each)
            if self.kl_in == "loss" and coefficient:
                old = self.old_log_probs(scores, groups)
                kl_NGT = self._kl(scores.log_probs, groups, mask_NGT, self.kl_estimator, old)
                loss = loss + coefficient * aggregate(
                    kl_NGT, mask_NGT, how=aggregation, constant=constant
                )
        if self.entropy_weight:
            assert scores.entropy is not None
            bonus = aggregate(scores.entropy, mask_NGT, how=aggregation, constant=constant)
            loss = loss - self.entropy_weight * bonus
        return loss, metrics

    @staticmethod
    def _kl(
        log_probs_NGT: Tensor,
        groups: TokenGroups,
        mask_NGT: Tensor,
        estimator: Any,
        old_log_probs_NGT: Tensor | None,
    ) -> Tensor:
        assert groups.reference_log_probs_NGT is not None
        return token_kl(
            log_probs_NGT,
            groups.reference_log_probs_NGT,
            estimator=estimator,
            old_log_probs=old_log_probs_NGT,
            mask=mask_NGT,
        )


@dataclass(frozen=True)
class TokenGRPO:
    """GRPO over completions, in every published variant of its objective.

    Attributes:
        best_only: rejection sampling instead (RAFT, Dong et al. 2023, arXiv 2304.06767): the best
            completion of a group is imitated, with advantage 1, and the others have no part in the
            loss.
        redraws: how often a group is drawn again at most, while all of it earns the same.
        insert_truth: put a batch's true answers into groups that are all wrong.
        read_once: let the update go on from the prompts as the rollout read them, where one update
            learns from a batch as a whole, by the weights that drew.
    """

    rollouts: TokenRollouts
    objective: Objective
    terms: TokenTerms
    combination: Combination = "sum_then_normalize"
    best_only: bool = False
    redraws: int = 0
    insert_truth: bool = False
    read_once: bool = False

    @torch.no_grad()
    def rollout(self, model: LanguageModel, batch: Batch, step: int, *, chunk: int) -> TokenGroups:
        """Draw groups from the old policy, and give them their advantages."""
        self.rollouts.move_reference(step)
        coefficient = self.rollouts.memory.kl_weight
        kept = not (self.redraws or self.insert_truth)
        whole = model.engine == "shared" and chunk == len(batch)
        keep_read = self.read_once and kept and whole
        asks = self.terms.asks
        groups = self.rollouts.draw(model, batch, step, chunk, keep_read=keep_read, **asks)
        if self.redraws:
            groups = redrawn(self.rollouts, model, batch, step, chunk, groups, self.redraws, **asks)
        if self.insert_truth:
            groups = told(self.rollouts, model, batch, groups)
        advantages_NG = self._advantages(groups, coefficient)
        groups = replace(
            groups,
            advantages=advantages_NG,
            learned_NG=advantages_NG > 0 if self.best_only else None,
        )
        return self.terms.counted(groups, self.rollouts.shards)

    def loss(self, model: Any, batch: Batch, groups: TokenGroups, step: int) -> LossResult:
        """Return the loss of some groups and its metrics."""
        scores = self.terms.score(model, groups, self.rollouts, logged=batch.logged)
        mask_NGT = self.terms.mask(groups)
        aggregation, constant = token_aggregation(
            self.objective.aggregation, groups, mask_NGT, self.rollouts.sampling.max_new_tokens
        )
        result = self.objective.surrogate(
            scores.log_probs,
            self.terms.old_log_probs(scores, groups),
            self.terms.advantages(groups),
            mask_NGT=mask_NGT,
            aggregation=aggregation,
            constant=constant,
        )
        coefficient = self.rollouts.memory.kl_weight
        loss, metrics = self.terms.add(result, scores, groups, coefficient, aggregation, constant)
        return LossResult(
            loss,
            {**reward_metrics(groups, self.rollouts), **metrics},
            groups,
            {**reward_weights(groups, self.rollouts), **of_tokens(result)},
        )

    def samples(self, groups: TokenGroups, rows: int) -> list[dict[str, Any]]:
        """Return the first groups as plain data for ``samples.jsonl``."""
        return samples_of(groups, self.rollouts, rows)

    def _advantages(self, groups: TokenGroups, coefficient: float) -> Tensor:
        rewards_NGR = groups.rewards_NGR
        weights_R = self.rollouts.rewards.weights_R.to(rewards_NGR)
        if self.terms.kl_in == "reward" and coefficient:
            rewards_NGR = torch.cat([rewards_NGR, -sequence_kl(groups)[..., None]], dim=-1)
            weights_R = torch.cat([weights_R, weights_R.new_tensor([coefficient])])
        if self.best_only:
            totals_NG = weighted_sum(rewards_NGR.nan_to_num(nan=0.0), weights_R)
            return best_of_each(totals_NG).float()
        advantages_NG = advantages_of(
            rewards_NGR, weights_R, self.objective, self.combination, self.rollouts.shards
        )
        return advantages_NG.float()


def best_of_each(rewards_NG: Tensor) -> Tensor:
    """Return 1 for the best output of each group and 0 for the others; 0 where all are equal."""
    best_NG = torch.zeros_like(rewards_NG).scatter(1, rewards_NG.argmax(1, keepdim=True), 1.0)
    return best_NG.masked_fill(all_equal(rewards_NG)[:, None], 0.0)


def token_aggregation(
    aggregation: Aggregation, groups: TokenGroups, mask_NGT: Tensor, max_new_tokens: int
) -> tuple[Aggregation, float | Tensor]:
    """Return how a piece of a batch is aggregated so that its pieces add up to the whole.

    A mean over tokens becomes a sum over tokens divided by how many of a completion the whole batch
    counts in the mean: it does not depend on how the batch was cut up, and tokens that are masked
    count neither above nor below. The constant of Dr. GRPO is the length limit.
    """
    if aggregation == "token_mean":
        mean_N = groups.learned_tokens_N
        mean = mask_NGT.sum(dim=-1).to(groups.mean_tokens_N).mean() if mean_N is None else mean_N[0]
        # The smallest number stands in for 0 where no token counts: the sum above it is 0 too.
        return "constant", mean.clamp(min=torch.finfo(mean.dtype).tiny)
    return aggregation, float(max_new_tokens)


def reward_metrics(groups: TokenGroups, rollouts: TokenRollouts) -> Metrics:
    """Return what the groups earned, in all and by each reward, and how much that differed."""
    rewards_NGR, rewards = groups.rewards_NGR, rollouts.rewards
    totals_NG = weighted_sum(rewards_NGR.nan_to_num(nan=0.0), rewards.weights_R)
    advantages = groups.advantages
    metrics = {
        "reward": totals_NG.mean(),
        "reward_std": totals_NG.std(dim=1).mean()
        if totals_NG.shape[1] > 1
        else totals_NG.new_zeros(()),
        # A group of one has nothing to differ from: its lesson is the critic's or the batch's.
        "frac_reward_zero_std": all_equal(totals_NG).float().mean()
        if totals_NG.shape[1] > 1
        else totals_NG.new_zeros(()),
        "advantage_abs": advantages.abs().mean()
        if advantages.ndim == 2
        else groups.mean_over_tokens(advantages.abs()),
    }
    for i, name in enumerate(rewards.names):
        metrics[f"rewards/{name}/mean"] = rewards_NGR[..., i].nanmean().nan_to_num(nan=0.0)
    if groups.draws_N is not None:
        metrics["draws"] = groups.draws_N.mean()
    if groups.told_N is not None:
        metrics["told"] = groups.told_N.float().mean()
    if groups.gold_NG is not None:
        metrics["gold_reward"] = groups.gold_NG.mean()
    return metrics


def reward_weights(groups: TokenGroups, rollouts: TokenRollouts) -> Metrics:
    """Return how much the mean of each reward counts: for the completions that it applies to."""
    applied_R = (~groups.rewards_NGR.isnan()).sum(dim=(0, 1))
    names = [f"rewards/{name}/mean" for name in rollouts.rewards.names]
    return dict(zip(names, applied_R, strict=True))


def of_tokens(result: SurrogateResult) -> Metrics:
    """Return how much the surrogate's metrics count: for the tokens that they are means over."""
    masked = () if result.masked is None else ("off_policy_ratio",)
    return dict.fromkeys((*CLIP_METRICS, "ratio_mean", *masked), result.counted)


def samples_of(groups: TokenGroups, rollouts: TokenRollouts, rows: int) -> list[dict[str, Any]]:
    """Return the first groups as plain data for ``samples.jsonl``."""
    rewards_NGR = groups.rewards_NGR.nan_to_num(nan=0.0)
    totals_NG = weighted_sum(rewards_NGR, rollouts.rewards.weights_R)
    advantages = groups.advantages
    if advantages.ndim == 3:  # of the first token: what the whole completion is worth
        advantages = advantages[..., 0]
    samples = []
    for i, (prompt, completions) in enumerate(groups.texts[:rows]):
        sample: dict[str, Any] = {
            "prompt": prompt,
            "outputs": list(completions),
            "rewards": totals_NG[i].tolist(),
            "advantages": advantages[i].tolist(),
            "ended": groups.ended_NG[i].tolist(),
        }
        if groups.truths is not None:
            sample["label"] = groups.truths[i]
        if groups.gold_NG is not None:
            sample["gold"] = groups.gold_NG[i].tolist()
        samples.append(sample)
    return samples

"""PPO over completions: a critic's value of every state instead of the group's mean reward."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from visgrpo.data.batches import Batch
from visgrpo.methods.method import LossResult
from visgrpo.methods.token_groups import TokenGroups, TokenRollouts
from visgrpo.methods.tokens import (
    TokenTerms,
    of_tokens,
    reward_metrics,
    reward_weights,
    samples_of,
    token_aggregation,
)
from visgrpo.models.language import LanguageModel
from visgrpo.objectives import PRESETS, Objective, weighted_sum
from visgrpo.objectives.critic import gae, masked_moments, value_loss, whiten


@dataclass(frozen=True)
class TokenPPO:
    """PPO (Schulman et al. 2017) as it is used on language models (Huang et al. 2024).

        L = surrogate of every token's advantage + c·value loss (+ the terms of `TokenTerms`)

    The reward of a completion comes at its last token, KL to the start (where it is in the reward)
    at every token. A completion that was cut off counts as ended: its reward is of what is there.

    Attributes:
        gamma: discount of a token.
        lam: λ of the generalised advantage estimate.
        whiten_advantages: bring the advantages of the whole batch to mean 0 and variance 1.
        objective: of which the ratio level and the clip are taken.
        value_clip: how far a value may move from the one it was rolled out with; None for any.
        value_weight: c.
        critic_warmup: first steps in which the critic learns alone: a policy that follows a critic
            which knows nothing yet is pushed by the lengths of its completions.
    """

    rollouts: TokenRollouts
    terms: TokenTerms
    gamma: float = 1.0
    lam: float = 0.95
    whiten_advantages: bool = True
    objective: Objective = PRESETS["grpo"]
    value_clip: float | None = 0.2
    value_weight: float = 0.1
    critic_warmup: int = 0

    @torch.no_grad()
    def rollout(self, model: LanguageModel, batch: Batch, step: int, *, chunk: int) -> TokenGroups:
        """Draw groups from the old policy; the old critic gives their tokens advantages."""
        self.rollouts.move_reference(step)
        coefficient = self.rollouts.memory.kl_weight
        steer = step >= self.critic_warmup  # before, the policy is at its start: there is no KL
        groups = self.rollouts.draw(model, batch, step, chunk, steer=steer, **self.terms.asks)
        values_NGT = groups.old_values_NGT
        if values_NGT is None:
            values_NGT = torch.cat(
                [
                    model.values(
                        groups.prompts_NP[rows], groups.lengths_N[rows], groups.tokens_NGT[rows]
                    )
                    for rows in torch.arange(len(batch)).split(chunk)
                ]
            )
        advantages_BT, returns_BT = gae(
            self._token_rewards(groups, coefficient).flatten(0, 1),
            values_NGT.flatten(0, 1),
            groups.mask_NGT.flatten(0, 1),
            gamma=self.gamma,
            lam=self.lam,
        )
        mask_BT, gather = groups.mask_NGT.flatten(0, 1), self.rollouts.shards.gather
        # The advantages are what is left of the returns once the values are taken away.
        left = masked_moments(advantages_BT, mask_BT, gather)
        _, of_returns = masked_moments(returns_BT, mask_BT, gather)
        explained = 1 - left[1] / of_returns if of_returns > 0 else torch.zeros_like(of_returns)
        if self.whiten_advantages:
            advantages_BT = whiten(advantages_BT, mask_BT, statistics=left)
        shape = groups.mask_NGT.shape
        groups = replace(
            groups,
            advantages=advantages_BT.view(shape),
            returns_NGT=returns_BT.view(shape),
            old_values_NGT=values_NGT,
            explained_variance_N=explained.float().expand(len(batch)),
        )
        return self.terms.counted(groups, self.rollouts.shards)

    def loss(self, model: Any, batch: Batch, groups: TokenGroups, step: int) -> LossResult:
        """Return the loss of some groups and its metrics."""
        warming_up = step < self.critic_warmup
        scores = self.terms.score(
            model, groups, self.rollouts, logged=batch.logged, critic_alone=warming_up
        )
        assert scores.values is not None
        assert groups.old_values_NGT is not None
        assert groups.returns_NGT is not None
        mask_NGT = self.terms.mask(groups)
        limit = self.rollouts.sampling.max_new_tokens
        aggregation, constant = token_aggregation("token_mean", groups, mask_NGT, limit)
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
        values = value_loss(
            scores.values.flatten(0, 1),
            groups.old_values_NGT.flatten(0, 1),
            groups.returns_NGT.flatten(0, 1),
            mask_NGT.flatten(0, 1),
            clip=self.value_clip,
            tokens=constant * mask_NGT.shape[0] * mask_NGT.shape[1],
        )
        metrics["value_loss"] = values.loss.detach()
        metrics["value_clip_ratio"] = values.clip_share
        assert groups.explained_variance_N is not None
        metrics["explained_variance"] = groups.explained_variance_N.mean()
        # Times 0 and not left out: every process of several waits for every parameter's gradient.
        loss = self.value_weight * values.loss + loss * float(not warming_up)
        return LossResult(
            loss,
            {**reward_metrics(groups, self.rollouts), **metrics},
            groups,
            {
                **reward_weights(groups, self.rollouts),
                **of_tokens(result),
                "value_clip_ratio": result.counted,
            },
        )

    def samples(self, groups: TokenGroups, rows: int) -> list[dict[str, Any]]:
        """Return the first groups as plain data for ``samples.jsonl``."""
        return samples_of(groups, self.rollouts, rows)

    def _token_rewards(self, groups: TokenGroups, coefficient: float) -> Tensor:
        """Return the reward (N, G, T) of each token."""
        rewards_NGR = groups.rewards_NGR.nan_to_num(nan=0.0)
        totals_NG = weighted_sum(rewards_NGR, self.rollouts.rewards.weights_R)
        last_NG1 = groups.mask_NGT.sum(dim=-1, keepdim=True) - 1
        rewards_NGT = torch.zeros_like(groups.old_log_probs_NGT)
        rewards_NGT = rewards_NGT.scatter(-1, last_NG1, totals_NG.to(rewards_NGT).unsqueeze(-1))
        if self.terms.kl_in == "reward" and coefficient:
            assert groups.reference_log_probs_NGT is not None
            kl_NGT = groups.old_log_probs_NGT - groups.reference_log_probs_NGT
            rewards_NGT = rewards_NGT - coefficient * kl_NGT.masked_fill(~groups.mask_NGT, 0.0)
        return rewards_NGT

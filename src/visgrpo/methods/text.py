"""Supervised learning on text: the next token, answers, which of two completions is preferred."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visgrpo.data.batches import Batch
from visgrpo.methods.method import ONE_PROCESS, LossResult, Shards, WithoutGroups
from visgrpo.objectives.preferences import bradley_terry_loss


@dataclass(frozen=True)
class NextToken(WithoutGroups):
    """SFT: cross-entropy of each token of a block given those before it, mean over tokens."""

    def loss(self, model: Any, batch: Batch, groups: None, step: int) -> LossResult:
        first_B1, rest_BT = batch.inputs[:, :1], batch.inputs[:, 1:]
        lengths_B = torch.ones_like(batch.labels_N)
        scores = model(first_B1, lengths_B, rest_BT.unsqueeze(1))
        loss = -scores.log_probs.mean()
        metrics = {"nll": loss.detach(), "entropy": scores.entropy.detach().mean()}
        return LossResult(loss, metrics)


@dataclass(frozen=True)
class AnswerLengths:
    """How many tokens the answers of N prompts have in the mean over the whole batch."""

    mean_tokens_N: Tensor

    def select(self, rows: Tensor) -> AnswerLengths:
        return AnswerLengths(self.mean_tokens_N[rows])


@dataclass(frozen=True)
class AnswerTokens(WithoutGroups):
    """SFT on answers: cross-entropy of their tokens, the end's included, given their prompts.

    What is learned is told by the token ids themselves: prompt and answer are tokenized apart, and
    an answer's places hold its ids, -1 after the end. The mean is over the answers' tokens in the
    whole batch, however it was cut up.
    """

    shards: Shards = ONE_PROCESS

    def rollout(self, old_model: Any, batch: Batch, step: int, *, chunk: int) -> AnswerLengths:
        """Draw nothing; see how long the answers of the whole batch are."""
        assert batch.answers_NT is not None
        mean = self.shards.gather((batch.answers_NT >= 0).sum(dim=1).float().mean()[None]).mean()
        return AnswerLengths(mean.expand(len(batch)))

    def loss(self, model: Any, batch: Batch, groups: AnswerLengths, step: int) -> LossResult:
        answers_NT = batch.answers_NT
        assert answers_NT is not None
        mask_NT = answers_NT >= 0
        scores = model(
            batch.inputs,
            batch.labels_N,
            answers_NT.clamp(min=0).unsqueeze(1),
            pictures=batch.pictures,
        )
        tokens = groups.mean_tokens_N.sum()

        def mean(values_N1T: Tensor) -> Tensor:
            return values_N1T.squeeze(1).masked_fill(~mask_NT, 0.0).sum() / tokens

        nll = mean(-scores.log_probs)
        metrics = {"nll": nll.detach(), "entropy": mean(scores.entropy.detach())}
        return LossResult(nll, metrics, groups)


@dataclass(frozen=True)
class PreferredCompletion(WithoutGroups):
    """A reward model's lesson: the chosen completion scores above the rejected one."""

    def loss(self, model: Any, batch: Batch, groups: None, step: int) -> LossResult:
        scores_B2 = model(batch.inputs.flatten(0, 1), batch.labels_N.flatten()).view(-1, 2)
        chosen_B, rejected_B = scores_B2.unbind(1)
        loss = bradley_terry_loss(chosen_B, rejected_B)
        difference_B = (chosen_B - rejected_B).detach()
        metrics = {
            "accuracy": (difference_B > 0).float().mean(),
            "margin": difference_B.mean(),
        }
        return LossResult(loss, metrics)

"""Learning from examples on the same loop: cross-entropy of labels and tokens, preferences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visgrpo.data.batches import Batch
from visgrpo.methods.groups import LabelGroups, policy_metrics
from visgrpo.methods.labels import (
    LabelGRPO,
    Model,
    labelled_cross_entropy,
)
from visgrpo.methods.method import ONE_PROCESS, LossResult, Shards, WithoutGroups
from visgrpo.models.reference import Reference
from visgrpo.objectives import categorical_kl
from visgrpo.objectives.label_losses import mean_loss
from visgrpo.objectives.losses import bradley_terry_loss
from visgrpo.objectives.token_distribution import Entropies
from visgrpo.rewards.sets import RewardSet


@dataclass(frozen=True)
class Supervised(WithoutGroups):
    """Losses of the true label, with the metrics of a GRPO run beside it.

    ``reward`` is the policy's expected reward, Σ_k π_k r_k: what a GRPO run's sampled mean
    estimates. ``kl`` is there when a reference is.

    Attributes:
        losses: whose sum is minimised, by the names of `visgrpo.objectives.label_losses`.
        shares_K: of the classes in training; None where no loss asks.
    """

    rewards: RewardSet
    classes: tuple[str, ...]
    reference: Reference | None = None
    labelled: Callable[[Tensor], Tensor] | None = None
    losses: tuple[str, ...] = ("ce",)
    shares_K: Tensor | None = None

    def loss(self, model: Model, batch: Batch, groups: None, step: int) -> LossResult:
        """Return the loss of a batch, over its labelled images only.

        Of each image it is divided by the size of the whole batch; losses of sets are of the
        labelled images together.
        """
        logits_NK = model(batch.inputs)
        labelled_N = torch.ones_like(batch.labels_N, dtype=torch.bool)
        if self.labelled is not None:
            labelled_N = self.labelled(batch.indices_N)
        if self.losses == ("ce",):
            loss = labelled_cross_entropy(logits_NK, batch.labels_N, labelled_N)
        elif labelled_N.any():
            own = logits_NK[labelled_N].float(), batch.labels_N[labelled_N]
            share = labelled_N.float().mean()
            loss = mean_loss(self.losses, *own, self.shares_K, weights_R=share)
        else:
            loss = logits_NK.sum() * 0.0
        return LossResult(loss, self._metrics(logits_NK.detach(), batch))

    def _metrics(self, logits_NK: Tensor, batch: Batch) -> dict[str, Tensor]:
        log_probs_NK = logits_NK.float().log_softmax(dim=-1)
        expected_N, _ = self.rewards.expected(
            log_probs_NK.exp(), label=batch.labels_N, classes=self.classes, **batch.columns
        )
        metrics = policy_metrics(log_probs_NK, batch.labels_N)
        metrics["reward"] = expected_N.mean()
        if self.reference is not None:
            reference_NK = self.reference.log_probs(batch)
            metrics["kl"] = categorical_kl(log_probs_NK, reference_NK).mean()
        return metrics


@dataclass(frozen=True)
class WarmStart:
    """Supervised for the first steps, then GRPO."""

    supervised: Supervised
    grpo: LabelGRPO
    steps: int

    def rollout(
        self, old_model: Model, batch: Batch, step: int, *, chunk: int
    ) -> LabelGroups | None:
        return None if step < self.steps else self.grpo.rollout(old_model, batch, step, chunk=chunk)

    def loss(self, model: Model, batch: Batch, groups: LabelGroups | None, step: int) -> LossResult:
        if step < self.steps:
            return self.supervised.loss(model, batch, None, step)
        return self.grpo.loss(model, batch, groups, step)

    def samples(self, groups: LabelGroups, rows: int) -> list[dict[str, Any]]:
        return self.grpo.samples(groups, rows)


@dataclass(frozen=True)
class NextToken(WithoutGroups):
    """SFT: cross-entropy of each token of a block given those before it, mean over tokens."""

    def loss(self, model: Any, batch: Batch, groups: None, step: int) -> LossResult:
        first_B1, rest_BT = batch.inputs[:, :1], batch.inputs[:, 1:]
        lengths_B = torch.ones_like(batch.lengths_N)
        scores = model(first_B1, lengths_B, rest_BT.unsqueeze(1), entropies=_entropies(batch))
        loss = -scores.log_probs.mean()
        metrics = {"nll": loss.detach()}
        if scores.entropy is not None:
            metrics["entropy"] = scores.entropy.detach().mean()
        return LossResult(loss, metrics)


def _entropies(batch: Batch) -> Entropies:
    """Of tokens: they are only shown, so made in logged steps alone."""
    return "value" if batch.logged else "none"


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

    Attributes:
        weights_M: what a token of each row of the data counts; None for 1.
    """

    shards: Shards = ONE_PROCESS
    weights_M: Tensor | None = None

    def rollout(self, old_model: Any, batch: Batch, step: int, *, chunk: int) -> AnswerLengths:
        """Draw nothing; see how long the answers of the whole batch are, by weight."""
        mean = self.shards.gather(self._weights(batch).sum(dim=1).mean()[None]).mean()
        return AnswerLengths(mean.expand(len(batch)))

    def loss(self, model: Any, batch: Batch, groups: AnswerLengths, step: int) -> LossResult:
        answers_NT = batch.answers_NT
        assert answers_NT is not None
        weights_NT = self._weights(batch)
        scores = model(
            batch.prompts_NP,
            batch.lengths_N,
            answers_NT.clamp(min=0).unsqueeze(1),
            pictures=batch.pictures,
            entropies=_entropies(batch),
        )
        tokens = groups.mean_tokens_N.sum()

        def mean(values_N1T: Tensor) -> Tensor:
            values_NT = values_N1T.squeeze(1).where(weights_NT > 0, 0.0)
            return (values_NT * weights_NT).sum() / tokens

        nll = mean(-scores.log_probs)
        metrics = {"nll": nll.detach()}
        if scores.entropy is not None:
            metrics["entropy"] = mean(scores.entropy.detach())
        return LossResult(nll, metrics, groups)

    def _weights(self, batch: Batch) -> Tensor:
        """What every token counts, (N, T); 0 after the end."""
        assert batch.answers_NT is not None
        weights_NT = (batch.answers_NT >= 0).float()
        if self.weights_M is None:
            return weights_NT
        rows_N = batch.indices_N.to(self.weights_M.device)
        return weights_NT * self.weights_M[rows_N].to(weights_NT)[:, None]


@dataclass(frozen=True)
class PreferredCompletion(WithoutGroups):
    """A reward model's lesson: the chosen completion scores above the rejected one."""

    def loss(self, model: Any, batch: Batch, groups: None, step: int) -> LossResult:
        scores_B2 = model(batch.inputs.flatten(0, 1), batch.lengths_N.flatten()).view(-1, 2)
        chosen_B, rejected_B = scores_B2.unbind(1)
        loss = bradley_terry_loss(chosen_B, rejected_B)
        difference_B = (chosen_B - rejected_B).detach()
        metrics = {
            "accuracy": (difference_B > 0).float().mean(),
            "margin": difference_B.mean(),
        }
        return LossResult(loss, metrics)

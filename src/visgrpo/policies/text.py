"""Supervised learning on text: the next token, and which of two completions is preferred."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visgrpo.data.batches import Batch
from visgrpo.objectives.preferences import bradley_terry_loss
from visgrpo.policies.metrics import Metrics


@dataclass(frozen=True)
class SupervisedLoss:
    """A loss with gradient and its metrics; there are no groups."""

    loss: Tensor
    metrics: Metrics
    groups: None = None


class _WithoutGroups:
    def rollout(self, old_model: Any, batch: Batch, step: int, *, chunk: int) -> None:
        """There is nothing to draw."""

    def samples(self, groups: Any, rows: int) -> list[dict[str, Any]]:
        """A supervised run has no groups to show."""
        return []


@dataclass(frozen=True)
class NextToken(_WithoutGroups):
    """SFT: cross-entropy of each token of a block given those before it, mean over tokens."""

    def loss(self, model: Any, batch: Batch, groups: None, step: int) -> SupervisedLoss:
        first_B1, rest_BT = batch.inputs[:, :1], batch.inputs[:, 1:]
        lengths_B = torch.ones_like(batch.labels_N)
        scores = model(first_B1, lengths_B, rest_BT.unsqueeze(1))
        loss = -scores.log_probs.mean()
        metrics = {"nll": loss.detach(), "entropy": scores.entropy.detach().mean()}
        return SupervisedLoss(loss, metrics)


@dataclass(frozen=True)
class PreferredCompletion(_WithoutGroups):
    """A reward model's lesson: the chosen completion scores above the rejected one."""

    def loss(self, model: Any, batch: Batch, groups: None, step: int) -> SupervisedLoss:
        scores_B2 = model(batch.inputs.flatten(0, 1), batch.labels_N.flatten()).view(-1, 2)
        chosen_B, rejected_B = scores_B2.unbind(1)
        loss = bradley_terry_loss(chosen_B, rejected_B)
        difference_B = (chosen_B - rejected_B).detach()
        metrics = {
            "accuracy": (difference_B > 0).float().mean(),
            "margin": difference_B.mean(),
        }
        return SupervisedLoss(loss, metrics)

"""Cross-entropy on the same loop: the baseline beside every GRPO run, and its warm start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visgrpo.data.batches import Batch
from visgrpo.methods.groups import LabelGroups
from visgrpo.methods.labels import (
    LabelGRPO,
    Model,
    ReferenceLike,
    labelled_cross_entropy,
)
from visgrpo.methods.method import LossResult, WithoutGroups
from visgrpo.methods.metrics import policy_metrics
from visgrpo.objectives import categorical_kl
from visgrpo.rewards import RewardSet


@dataclass(frozen=True)
class Supervised(WithoutGroups):
    """Cross-entropy of the true label, with the metrics of a GRPO run beside it.

    ``reward`` is the policy's expected reward, Σ_k π_k r_k: what a GRPO run's sampled mean
    estimates. ``kl`` is there when a reference is.
    """

    rewards: RewardSet
    classes: tuple[str, ...]
    reference: ReferenceLike | None = None
    labelled: Callable[[Tensor], Tensor] | None = None

    def loss(self, model: Model, batch: Batch, groups: None, step: int) -> LossResult:
        """Return the mean cross-entropy of a batch, over its labelled images only."""
        logits_NK = model(batch.inputs)
        labelled_N = torch.ones_like(batch.labels_N, dtype=torch.bool)
        if self.labelled is not None:
            labelled_N = self.labelled(batch.indices_N)
        loss = labelled_cross_entropy(logits_NK, batch.labels_N, labelled_N)
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

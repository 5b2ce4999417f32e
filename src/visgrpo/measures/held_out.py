"""One held-out data set and a classifier that changes: its measures now, and at the start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visgrpo.data.batches import InputFunction, sequential
from visgrpo.data.table import Table
from visgrpo.measures.agreement import agreement
from visgrpo.measures.classification import evaluate_logits, scalar_measures
from visgrpo.measures.over import Team, logits_of
from visgrpo.rewards.sets import RewardSet


@dataclass(frozen=True)
class HeldOut:
    """Evaluates a classifier on one data set, in the precision it trains in.

    Attributes:
        start_logits_MK: of the classifier when this was made; KL is taken to them.
        rewards: what the run optimises; their expectation under the policy is one of the measures.
        votes_MK: people's votes on these images, to measure agreement with; None where unknown.
    """

    classifier: nn.Module
    dataset: Table
    inputs: InputFunction
    processes: Team
    start_logits_MK: Tensor
    rewards: RewardSet | None = None
    votes_MK: Tensor | None = None

    @classmethod
    def at_start(
        cls,
        classifier: nn.Module,
        dataset: Table,
        inputs: InputFunction,
        processes: Team,
        rewards: RewardSet | None = None,
        votes_MK: Tensor | None = None,
    ) -> HeldOut:
        """Remember the logits of the classifier as it is now."""
        logits_MK = logits_of(classifier, dataset, inputs, processes)
        return cls(classifier, dataset, inputs, processes, logits_MK, rewards, votes_MK)

    def start(self) -> dict[str, Any]:
        """Return all measures of the start."""
        return self._all(self.start_logits_MK)

    def now(self) -> dict[str, Any]:
        """Return all measures of the classifier as it is now."""
        return self._all(self._logits())

    def scalars(self) -> dict[str, float]:
        """Return the measures of now that are one number; cheap for any number of classes."""
        logits_MK = self._logits()
        labels_M = torch.from_numpy(self.dataset.labels)
        return {
            **scalar_measures(logits_MK, labels_M, self.start_logits_MK),
            **self._reward(logits_MK),
            **self._agreement(logits_MK),
        }

    def _logits(self) -> Tensor:
        return logits_of(self.classifier, self.dataset, self.inputs, self.processes)

    def _all(self, logits_MK: Tensor) -> dict[str, Any]:
        labels_M = torch.from_numpy(self.dataset.labels)
        measures = evaluate_logits(logits_MK, labels_M, self.dataset.classes, self.start_logits_MK)
        return {**measures, **self._reward(logits_MK), **self._agreement(logits_MK)}

    def _agreement(self, logits_MK: Tensor) -> dict[str, float]:
        if self.votes_MK is None or not self.votes_MK.any():
            return {}
        return agreement(logits_MK, self.votes_MK, torch.from_numpy(self.dataset.labels))

    def _reward(self, logits_MK: Tensor) -> dict[str, float]:
        if self.rewards is None:
            return {}
        reward = expected_reward(self.rewards, logits_MK, self.dataset)
        return {} if reward is None else {"reward": reward}


def expected_reward(rewards: RewardSet, logits_MK: Tensor, dataset: Table) -> float | None:
    """Return the mean over images of Σ_k π_k r_k, with the rewards' weights.

    Images of which nobody has judged any label are left out; None if that is all of them.

    Args:
        logits_MK: of every row of the data set, in its order.
    """
    total, images = 0.0, 0
    for batch in sequential(dataset, _no_input, 256):
        expected_N, decided_N = rewards.expected(
            logits_MK[batch.indices_N].softmax(dim=-1),
            label=batch.labels_N,
            classes=dataset.classes,
            **batch.columns,
        )
        if decided_N is not None:
            expected_N = expected_N[decided_N]
        total += float(expected_N.sum())
        images += len(expected_N)
    return total / images if images else None


def _no_input(index: int, rng: np.random.Generator) -> Tensor:
    """Rewards look at labels and columns, not at pixels."""
    return torch.empty(0)

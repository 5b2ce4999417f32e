"""One held-out data set and a classifier that changes: its measures now, and at the start."""

from __future__ import annotations

from collections.abc import Callable
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

_OF_POLICY = ("entropy", "entropy_normalized", "kl")


@dataclass(frozen=True)
class HeldOut:
    """Evaluates a classifier on one data set, in the precision it trains in.

    Attributes:
        start_logits_MK: of the classifier when this was made; KL is taken to them.
        rewards: what the run optimises; their expectation under the policy is one of the measures.
        votes_MK: people's votes on these images, to measure agreement with; None where unknown.
        temperature: of the policy, softmax(logits / temperature), whose entropy, KL and reward are
            measured; how sure and how right an answer is, is that of the classifier itself.
    """

    classifier: nn.Module
    dataset: Table
    inputs: InputFunction
    processes: Team
    start_logits_MK: Tensor
    rewards: RewardSet | None = None
    votes_MK: Tensor | None = None
    temperature: float = 1.0

    @classmethod
    def at_start(
        cls,
        classifier: nn.Module,
        dataset: Table,
        inputs: InputFunction,
        processes: Team,
        rewards: RewardSet | None = None,
        votes_MK: Tensor | None = None,
        temperature: float = 1.0,
    ) -> HeldOut:
        """Remember the logits of the classifier as it is now."""
        logits_MK = logits_of(classifier, dataset, inputs, processes)
        return cls(
            classifier, dataset, inputs, processes, logits_MK, rewards, votes_MK, temperature
        )

    def start(self) -> dict[str, Any]:
        """Return all measures of the start."""
        return self._measures(self.start_logits_MK, evaluate_logits, self.dataset.classes)

    def now(self) -> dict[str, Any]:
        """Return all measures of the classifier as it is now."""
        return self._measures(self._logits(), evaluate_logits, self.dataset.classes)

    def scalars(self) -> dict[str, float]:
        """Return the measures of now that are one number; cheap for any number of classes."""
        return self._measures(self._logits(), scalar_measures)

    def _logits(self) -> Tensor:
        return logits_of(self.classifier, self.dataset, self.inputs, self.processes)

    def _measures(
        self, logits_MK: Tensor, measure: Callable[..., dict[str, Any]], *more: Any
    ) -> dict[str, Any]:
        """Return measures of logits, and what rewards and people say of them."""
        labels_M = torch.from_numpy(self.dataset.labels)
        measures = measure(logits_MK, labels_M, *more, self.start_logits_MK)
        policy_MK, start_MK = (
            logits.float() / self.temperature for logits in (logits_MK, self.start_logits_MK)
        )
        if self.temperature != 1.0:
            of_policy = scalar_measures(policy_MK, labels_M, start_MK)
            measures |= {name: of_policy[name] for name in _OF_POLICY}
        if self.rewards is not None:
            reward = expected_reward(self.rewards, policy_MK, self.dataset)
            measures |= {} if reward is None else {"reward": reward}
        if self.votes_MK is not None and self.votes_MK.any():
            measures |= agreement(logits_MK, self.votes_MK, labels_M)
        return measures


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

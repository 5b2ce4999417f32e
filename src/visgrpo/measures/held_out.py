"""One held-out data set and a classifier that changes: its measures now, and at the start."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visgrpo.data.batches import InputFunction, sequential
from visgrpo.data.table import Table
from visgrpo.errors import UserError
from visgrpo.measures.classification import Z_95, evaluate_logits, scalar_measures
from visgrpo.measures.over import Team, logits_of
from visgrpo.objectives.counts import Counts, CountScore
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
        measures = self._measures(self._logits(), scalar_measures)
        measures.pop("reward_interval", None)
        return measures

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
            measures |= expected_reward(self.rewards, policy_MK, self.dataset)
            costs_KK = self.rewards.costs()
            if costs_KK is not None:
                measures["cost"] = (
                    costs_KK.cpu()[labels_M, logits_MK.argmax(dim=1).cpu()].mean().item()
                )
        if self.votes_MK is not None and self.votes_MK.any():
            measures |= agreement(logits_MK, self.votes_MK, labels_M)
        return measures


def expected_reward(
    rewards: RewardSet, logits_MK: Tensor, dataset: Table
) -> dict[str, float | list[float]]:
    """Return the mean over images of Σ_k π_k r_k, with the rewards' weights.

    Scores of counts are those of all images together, of the expected counts. Images of which
    nobody has judged any label are left out; nothing is returned if that is all of them.
    `reward_interval` is the mean's 95 % interval over images, mean ± 1.96 sd / √M, where no score
    is of counts.

    Args:
        logits_MK: of every row of the data set, in its order.
    """
    scored, counted = 0.0, bool(rewards.counted)
    if counted:
        labels_M = torch.from_numpy(dataset.labels)
        p_MK = logits_MK.softmax(dim=-1).cpu()
        counts = Counts.of(p_MK, labels_M, torch.zeros_like(labels_M), 1)
        scored = score_of_counts(rewards, counts)
        if rewards.of_labels is None:
            return {"reward": scored}
        rewards = rewards.of_labels
    found = []
    for batch in sequential(dataset, _no_input, 256):
        expected_N, decided_N = rewards.expected(
            logits_MK[batch.indices_N].softmax(dim=-1),
            label=batch.labels_N,
            classes=dataset.classes,
            **batch.columns,
        )
        if decided_N is not None:
            expected_N = expected_N[decided_N]
        found.append(expected_N.double())
    expected_M = torch.cat(found)
    if not len(expected_M):
        return {}
    mean = expected_M.mean().item()
    if counted:
        return {"reward": mean + scored}
    half = Z_95 * expected_M.std(correction=0).item() / math.sqrt(len(expected_M))
    return {"reward": mean, "reward_interval": [mean - half, mean + half]}


def score_of_counts(rewards: RewardSet, counts: Counts) -> float:
    """Return the weighted sum of the scores that are made of counts, of one scope."""
    weights = dict(zip(rewards.names, rewards.weights, strict=True))
    return sum(
        weights[name] * CountScore(*reward.numbers).scores(counts).item()
        for name, reward in rewards.counted.items()
    )


def _no_input(index: int, rng: np.random.Generator) -> Tensor:
    """Rewards look at labels and columns, not at pixels."""
    return torch.empty(0)


DISAGREE_BELOW = 0.9
"""People disagree on an image where its commonest answer has a smaller share of the votes."""


def agreement(logits_MK: Tensor, votes_MK: Tensor, labels_M: Tensor) -> dict[str, float]:
    """Compare a classifier with people's votes, in float64.

    With q the share of an image's votes and π the classifier's distribution, means over the images
    that have votes:

    * `people_cross_entropy`: -Σ_k q_k log π_k, in nats;
    * `people_kl`: KL(q ‖ π), which is that less the entropy of q: 0 for people's own distribution;
    * `people_accuracy`: how often the likeliest class has the most votes (any of them, in a tie);
    * `disagreed`: the share of images on which people disagree (see `DISAGREE_BELOW`), and
      `disagreed_accuracy`, by the true label, on those; left out where there are none.

    Args:
        logits_MK: of the classifier.
        votes_MK: numbers of votes, ≥ 0; images without any are left out.
        labels_M: true class ids.

    Raises:
        UserError: shapes do not fit, or no image has votes.
    """
    if votes_MK.shape != logits_MK.shape or labels_M.shape != logits_MK.shape[:1]:
        raise UserError(
            f"Shapes do not fit: logits {tuple(logits_MK.shape)}, votes {tuple(votes_MK.shape)}, "
            f"labels {tuple(labels_M.shape)}."
        )
    voted_M = votes_MK.sum(dim=1) > 0
    if not voted_M.any():
        raise UserError("None of these images has votes, so there are no people to agree with.")
    votes_NK = votes_MK[voted_M].double()
    log_probs_NK = logits_MK[voted_M].detach().cpu().double().log_softmax(dim=1)
    answers_N, labels_N = log_probs_NK.argmax(dim=1), labels_M[voted_M]
    shares_NK = votes_NK / votes_NK.sum(dim=1, keepdim=True)
    cross_N = -(shares_NK * log_probs_NK).sum(dim=1)
    entropy_N = -torch.special.xlogy(shares_NK, shares_NK).sum(dim=1)
    most_N = votes_NK.max(dim=1).values
    popular_N = votes_NK.gather(1, answers_N[:, None])[:, 0] == most_N
    measures = {
        "people_cross_entropy": cross_N.mean().item(),
        "people_kl": (cross_N - entropy_N).mean().item(),
        "people_accuracy": popular_N.double().mean().item(),
    }
    disagreed_N = shares_NK.max(dim=1).values < DISAGREE_BELOW
    measures["disagreed"] = disagreed_N.double().mean().item()
    if disagreed_N.any():
        right_N = (answers_N == labels_N)[disagreed_N]
        measures["disagreed_accuracy"] = right_N.double().mean().item()
    return measures

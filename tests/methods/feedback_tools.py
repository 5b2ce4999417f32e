"""Tables of feedback, batches that name their rows, and a label policy in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from label_tools import names
from torch import Tensor

from visgrpo.data.batches import Batch
from visgrpo.feedback.reward import FeedbackReward, Log, LoggedGRPO
from visgrpo.methods.labels import LabelGRPO
from visgrpo.objectives import Objective
from visgrpo.rewards.sets import RewardSet, parse_rewards

PLAIN = Objective(scale="none")


class Double(LabelGRPO):
    """Leaves float64 logits as they are, to be compared with closed forms."""

    def log_probs(self, logits_NK: Tensor) -> Tensor:
        return (logits_NK / self.temperature).log_softmax(dim=-1)


class DoubleLogged(LoggedGRPO):
    """The same, on a log."""

    def log_probs(self, logits_NK: Tensor) -> Tensor:
        return (logits_NK / self.temperature).log_softmax(dim=-1)


def table(worth_MK: Any, known_MK: Any, *, masks: bool = True) -> FeedbackReward:
    worth = torch.as_tensor(worth_MK, dtype=torch.float64)
    return FeedbackReward(worth, torch.as_tensor(known_MK).bool(), masks=masks)


def rewards_of(
    feedback: Mapping[str, FeedbackReward], weights: Sequence[float] | None, n_classes: int
) -> RewardSet:
    return parse_rewards(list(feedback), weights, names(n_classes), feedback)


def learner(
    *tables: FeedbackReward,
    weights: Sequence[float] | None = None,
    objective: Objective = PLAIN,
    **settings: Any,
) -> Double:
    """GRPO on tables of feedback, unscaled unless the objective says otherwise."""
    n_classes = tables[0].worth_MK.shape[1]
    feedback = dict(zip(("clicks", "dwell"), tables, strict=False))
    return Double(
        rewards=rewards_of(feedback, weights, n_classes),
        objective=objective,
        classes=names(n_classes),
        **settings,
    )


def logged(
    reward: FeedbackReward, log: Log, *, objective: Objective = PLAIN, **settings: Any
) -> Any:
    n_classes = reward.worth_MK.shape[1]
    return DoubleLogged(
        rewards=rewards_of({"clicks": reward}, None, n_classes),
        objective=objective,
        classes=names(n_classes),
        estimator=settings.pop("estimator", "exact"),
        log=log,
        **settings,
    )


def rows(inputs: Tensor, labels: Tensor | None = None, feedback: list[int] | None = None) -> Batch:
    """A batch whose rows are those of the table, unless the table's are named."""
    indices = torch.arange(len(inputs))
    labels = torch.zeros_like(indices) if labels is None else labels
    return Batch(indices, inputs, labels, {"feedback_row": feedback or indices.tolist()})


def gradient(
    policy: LabelGRPO, logits: Tensor, batch: Batch | None = None, step: int = 0
) -> Tensor:
    """Minus the gradient of the first pass in the logits, of every input by itself."""
    logits = logits.clone().requires_grad_()
    batch = rows(logits) if batch is None else batch
    loss = policy.loss(lambda inputs: logits, batch, None, step).loss
    return -torch.autograd.grad(loss, logits)[0] * len(logits)

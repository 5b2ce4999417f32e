"""Batches, processes and policies for the tests of the label policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from visgrpo.data.batches import Batch
from visgrpo.methods.labels import LabelGRPO
from visgrpo.methods.method import OneProcess
from visgrpo.objectives import Objective
from visgrpo.rewards.sets import parse_rewards

LOGITS = torch.tensor(
    [[1.2, -0.3, 0.4, 0.0], [0.1, 0.9, -1.0, 0.6], [-0.5, 0.2, 1.5, 0.3], [0.0, 0.1, 0.2, -1.1]],
    dtype=torch.float64,
)
LABELS = torch.tensor([0, 3, 2, 1])
PRICES = [1.0, 2.0, 3.0, 4.0]


class OneOfTwo:
    """One of two processes, whose gather joins the parts by a function of (call, tensor)."""

    world_size = 2

    def __init__(self, rank: int, join: Callable[[int, Tensor], Tensor]) -> None:
        self.rank = rank
        self._join, self._calls = join, 0

    def gather(self, tensor: Tensor) -> Tensor:
        self._calls += 1
        return self._join(self._calls - 1, tensor)


class FixedReference:
    """Answers with the log-softmax of given logits, by row of the data set."""

    def __init__(self, logits_MK: Tensor) -> None:
        self._log_probs_MK = logits_MK.float().log_softmax(-1)

    def log_probs(self, batch: Batch) -> Tensor:
        return self._log_probs_MK[batch.indices_N]


def batch_of(labels: Tensor = LABELS, inputs: Tensor = LOGITS) -> Batch:
    """Rows 0 to N; the inputs are the logits themselves unless given."""
    prices = [PRICES[row % len(PRICES)] for row in range(len(labels))]
    return Batch(torch.arange(len(labels)), inputs, labels, {"price": prices})


def names(n_classes: int) -> tuple[str, ...]:
    return tuple("abcdefghijklmnopqrstuvwxyz"[:n_classes])


def grpo(
    *,
    rewards: Sequence[Any] = ("hard",),
    reward_weights: Sequence[float] | None = None,
    objective: Objective | None = None,
    n_classes: int = 4,
    shards: Any = None,
    **settings: Any,
) -> LabelGRPO:
    """A label policy; anything else by name."""
    return LabelGRPO(
        rewards=parse_rewards(rewards, reward_weights, names(n_classes)),
        objective=objective or Objective(),
        classes=names(n_classes),
        shards=shards or OneProcess(),
        **settings,
    )


def graded(outputs_NG: Tensor, label: Tensor) -> Tensor:
    """A reward with more than two values: the nearer the class number, the better."""
    return 1.0 / (1.0 + (outputs_NG - label[:, None]).abs())

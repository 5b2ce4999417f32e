"""What scores of counts pay for each decision of a batch: see `visgrpo.objectives.counts`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from visgrpo.methods.method import ONE_PROCESS, Metrics, Shards
from visgrpo.objectives.counts import Counts, CountScore
from visgrpo.rewards.sets import RewardSet

CountScope = Literal["image", "batch", "running"]
FORGET = 0.9
"""What a batch counts for beside the next one in running counts: ten batches in all."""
INPUT = "input"
"""The column that says which input of the batch a decision belongs to."""


@dataclass(frozen=True)
class Paid:
    """A reward that is a table of its own for each of N inputs: what an answer changes of a score.

    Attributes:
        right_NK: for the true class of a decision.
        wrong_NK: for another class.
    """

    right_NK: Tensor
    wrong_NK: Tensor

    def __call__(self, outputs_NG: Tensor, /, *, label: Tensor, **columns: Any) -> Tensor:
        places_N = columns[INPUT]
        wrong_NG = self.wrong_NK[places_N].gather(1, outputs_NG)
        right_N1 = self.right_NK[places_N, label][:, None]
        return torch.where(outputs_NG == label[:, None], right_N1, wrong_NG)


@dataclass(frozen=True)
class Credit:
    """What all scores of counts pay the decisions of N inputs.

    Attributes:
        paid: by the name of the reward.
        scores: the scores themselves, by name, of the policy's expected counts.
    """

    paid: Mapping[str, Paid]
    scores: Metrics

    def select(self, rows: Tensor) -> Credit:
        paid = {n: Paid(p.right_NK[rows], p.wrong_NK[rows]) for n, p in self.paid.items()}
        return Credit(paid, self.scores)

    def logged(self, metrics: Metrics, rewards: RewardSet) -> Metrics:
        """Put the scores into metrics in the place of what single decisions were paid."""
        changed = dict(metrics)
        for name, weight in zip(rewards.names, rewards.weights, strict=True):
            if name in self.scores:
                key, score = f"rewards/{name}/mean", self.scores[name]
                changed["reward"] = changed["reward"] + weight * (score - changed[key])
                changed[key] = score
        return changed


@dataclass(eq=False)
class Counting:
    """Counts what a policy answers, and makes tables of it.

    Payments are in units of a loss that is the mean over images of the mean over their decisions:
    that mean's policy gradient is the one of the score.

    Attributes:
        rewards: those among which scores of counts are.
        scope: what a score is of: each image, the whole batch, or the batch together with the ones
            before it, which count less and less.
    """

    rewards: RewardSet
    scope: CountScope
    shards: Shards = ONE_PROCESS
    _before: Tensor | None = field(default=None, init=False)  # (4, K), float64: see `_remember`

    def credit(self, counts: Counts, decisions_N: Tensor) -> Credit:
        """Return what is paid, from the counts of each of N inputs; call it once a step.

        Args:
            decisions_N: how many decisions each input has.
        """
        stacked, times = counts.stacked(), decisions_N.to(counts.right_SK)
        if self.scope != "image":
            whole = self.shards.gather(stacked.sum(dim=1, keepdim=True).transpose(0, 1)).sum(0)
            stacked = whole.unsqueeze(1)
            times = times * len(times) * self.shards.world_size
            if self.scope == "running":
                stacked, weight = self._remember(stacked)
                times = times * weight
        counts = Counts(*stacked)
        paid: dict[str, Paid] = {}
        scores: Metrics = {}
        for name, reward in self.rewards.counted.items():
            score = CountScore(*reward.numbers)
            each = (row * times[:, None] for row in score.changes(counts))
            paid[name] = Paid(*each)
            scores[name] = score.scores(counts).nanmean().nan_to_num()
        return Credit(paid, scores)

    def _remember(self, stacked: Tensor) -> tuple[Tensor, float]:
        """Add a batch to the running counts; return them, and how many batches they weigh."""
        now = torch.cat([stacked[:, 0], torch.ones_like(stacked[0])]).double()
        if self._before is not None:
            now = now + FORGET * self._before.to(now.device)
        self._before = now
        return now[:3, None].to(stacked), float(now[3, 0])

    @property
    def weights(self) -> Mapping[str, Tensor]:
        return {}

    def state(self) -> dict[str, float]:
        if self._before is None:
            return {}
        return {str(place): value for place, value in enumerate(self._before.flatten().tolist())}

    def restore(self, state: Mapping[str, float]) -> None:
        values = torch.tensor([state[str(i)] for i in range(len(state))], dtype=torch.float64)
        self._before = values.view(4, -1) if state else None

    def metrics(self) -> Mapping[str, float]:
        return {}

"""What is answered, given probabilities: the likeliest class, the cheapest, or none; class biases.

Rules that need no training, so that training has something to beat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from visgrpo.errors import UserError
from visgrpo.objectives.counts import Counts, CountScore
from visgrpo.rewards.tables import read_table

NO_ANSWER = -1
WIDTHS = (3.0, 1.0, 0.3)
"""How far biases are moved in each round, in nats; 24 places are tried."""


@dataclass(frozen=True)
class Decision:
    """How probabilities become answers.

    Attributes:
        name: as it was written.
        costs_KK: of answers, rows of truth: the answer is that of least expected cost,
            argmin_a Σ_k p_k cost[k, a] (Bayes' decision). None for the likeliest class.
        threshold: the probability below which there is no answer.
    """

    name: str = "argmax"
    costs_KK: Tensor | None = None
    threshold: float = 0.0

    @classmethod
    def parse(cls, text: str, classes: Sequence[str]) -> Decision:
        """From "argmax", "cost:FILE" or "threshold:T".

        Raises:
            UserError: for anything else, or a file that is no table of costs.
        """
        rule, _, argument = text.partition(":")
        if text == "argmax":
            return cls()
        if rule == "cost" and argument:
            return cls(text, read_table(argument, classes).double())
        if rule == "threshold":
            try:
                value = float(argument)
            except ValueError:
                value = 0.0
            if 0 < value <= 1:
                return cls(text, threshold=value)
        raise UserError(
            f'--decide "{text}" is no rule: write argmax, cost:FILE (a table as for --reward cost) '
            "or threshold:T with T in (0, 1], below which there is no answer."
        )

    def answers(self, probabilities_MK: Tensor) -> Tensor:
        """Return class ids (M,), `NO_ANSWER` where there is none."""
        if self.costs_KK is not None:
            return (probabilities_MK.double() @ self.costs_KK).argmin(dim=1)
        confidence_M, answers_M = probabilities_MK.max(dim=1)
        return answers_M.where(confidence_M >= self.threshold, NO_ANSWER)

    def measures(self, logits_MK: Tensor, labels_M: Tensor) -> dict[str, float]:
        """Measure the answers: accuracy, that by class, what share is answered, and what it costs.

        No answer counts as wrong in `accuracy`, and not at all in `answered_accuracy`.
        """
        answers_M = self.answers(logits_MK.cpu().double().softmax(dim=1))
        right_M, answered_M = answers_M == labels_M, answers_M != NO_ANSWER
        by_class = [right_M[labels_M == k].double().mean() for k in labels_M.unique()]
        measures = {
            "accuracy": right_M.double().mean().item(),
            "balanced_accuracy": torch.stack(by_class).mean().item(),
        }
        if self.threshold:
            measures["answered"] = answered_M.double().mean().item()
            if answered_M.any():
                measures["answered_accuracy"] = right_M[answered_M].double().mean().item()
        if self.costs_KK is not None:
            measures["cost"] = self.costs_KK[labels_M, answers_M].mean().item()
        return measures


def fit_biases(logits_MK: Tensor, labels_M: Tensor, score: CountScore) -> Tensor:
    """Return biases (K,) of the classes under which the likeliest ones have the highest score.

    One class after the other is moved to the best of some places, in three finer rounds. Fit them
    on validation data: they are as many parameters as there are classes.
    """
    logits_MK, labels_M = logits_MK.cpu().double(), labels_M.cpu()
    K = logits_MK.shape[1]
    biases_K = torch.zeros(K, dtype=torch.float64)

    def value_of(answers_M: Tensor) -> float:
        counts_KK = torch.bincount(labels_M * K + answers_M, minlength=K * K).view(K, K).double()
        sides = counts_KK.diagonal(), counts_KK.sum(dim=1), counts_KK.sum(dim=0)
        return score.scores(Counts(*(side[None] for side in sides))).item()

    best = value_of(logits_MK.argmax(dim=1))
    for width in WIDTHS:
        for k in range(K):
            others_MK = logits_MK + biases_K
            others_MK[:, k] = -torch.inf
            highest_M, rival_M = others_MK.max(dim=1)
            places = biases_K[k] + width * torch.linspace(-1, 1, 25, dtype=torch.float64)
            for place in places.tolist():
                wins_M = logits_MK[:, k] + place > highest_M
                value = value_of(rival_M.masked_fill(wins_M, k))
                if value > best:
                    best, biases_K[k] = value, place
    return biases_K

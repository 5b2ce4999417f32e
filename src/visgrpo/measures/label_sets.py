"""How good sets of labels are: by image, by label, as a whole."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visgrpo.data.batches import InputFunction
from visgrpo.data.table import Table
from visgrpo.errors import UserError
from visgrpo.measures.over import Team, logits_of
from visgrpo.rewards.sets import RewardSet


def set_measures(logits_MK: Tensor, sets_MK: Tensor) -> dict[str, float]:
    """Measure sets of the labels that are likelier than not, in float64.

    Args:
        logits_MK: a label's probability is the sigmoid of its own.
        sets_MK: the true sets, of 0 and 1.

    Returns:
        * `f1` and `jaccard`: means over images; 1 for an empty set where nothing is true;
        * `macro_f1`: the mean over the labels that any image has of their own F1;
        * `whole_sets`: share of images whose set is right as a whole;
        * `nll`: mean binary cross-entropy, nats a label.

    Raises:
        UserError: a logit is NaN or infinite.
    """
    if not logits_MK.isfinite().all():
        raise UserError(
            "NaN or infinity in the logits: the model has diverged; try a lower learning rate."
        )
    logits_MK, true_MK = logits_MK.double(), sets_MK.bool()
    said_MK = logits_MK > 0
    both_MK, either_MK = said_MK & true_MK, said_MK | true_MK
    sizes_M = said_MK.sum(1) + true_MK.sum(1)
    empty_M = sizes_M == 0
    here_K = true_MK.any(dim=0)
    f1_K = 2 * both_MK.sum(0) / (said_MK.sum(0) + true_MK.sum(0)).clamp(min=1)
    measures = {
        "f1": (2 * both_MK.sum(1) / sizes_M.clamp(min=1)).where(~empty_M, 1.0),
        "jaccard": (both_MK.sum(1) / either_MK.sum(1).clamp(min=1)).where(~empty_M, 1.0),
        "macro_f1": f1_K[here_K] if here_K.any() else torch.tensor([math.nan]),
        "whole_sets": (said_MK == true_MK).all(dim=1),
        "nll": F.binary_cross_entropy_with_logits(logits_MK, true_MK.double()),
    }
    return {name: value.double().mean().item() for name, value in measures.items()}


@dataclass(frozen=True)
class HeldOutSets:
    """Evaluates a classifier of sets on one data set.

    Attributes:
        rewards: what the run optimises; the sets that are likelier than not earn them.
    """

    classifier: nn.Module
    dataset: Table
    inputs: InputFunction
    processes: Team
    rewards: RewardSet | None = None

    def now(self) -> dict[str, Any]:
        """Return all measures, and `examples`."""
        return {"examples": len(self.dataset), **self.scalars()}

    def scalars(self) -> dict[str, float]:
        """Return the measures that are one number."""
        logits_MK = logits_of(self.classifier, self.dataset, self.inputs, self.processes)
        sets_MK = sets_of(self.dataset)
        measures = set_measures(logits_MK, sets_MK)
        if self.rewards is not None:
            rewards_M1R = self.rewards(
                (logits_MK > 0).long()[:, None, None],
                label=sets_MK[:, None],
                probabilities=logits_MK.sigmoid(),
                classes=self.dataset.classes,
            )
            measures["reward"] = (rewards_M1R @ self.rewards.weights_R).double().mean().item()
        return measures


def sets_of(dataset: Table) -> Tensor:
    """Return the true sets of all images, (M, K) int64."""
    return torch.tensor([list(row) for row in dataset["sets"]], dtype=torch.long)

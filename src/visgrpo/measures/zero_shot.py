"""Run a classifier over a data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from visgrpo.data.batches import CachedInputs, InputFunction, Rows, sequential
from visgrpo.methods import labels as policies


class Shards(policies.Shards, Protocol):
    """Which part of the work is this process's, and where it is done."""

    @property
    def device(self) -> torch.device: ...


@torch.no_grad()
def run_over(
    function: Callable[[Tensor], Tensor],
    dataset: Rows,
    inputs: InputFunction,
    shards: Shards,
    *,
    batch_size: int = 256,
) -> Tensor:
    """Return what a function makes of every input, (M, …) on the CPU, in the data set's order.

    Every process computes its share of the rows and all get the whole; the last row is repeated
    where the shares would not be equal. Results leave the device batch by batch.
    """
    share = -(-len(dataset) // shards.world_size)
    rows = np.arange(shards.rank * share, (shards.rank + 1) * share).clip(max=len(dataset) - 1)
    if shards.world_size == 1:
        mine: InputFunction = inputs  # a copy of cached inputs could take gigabytes
    elif isinstance(inputs, CachedInputs):
        mine = inputs.take(rows)
    else:
        mine = lambda index, rng: inputs(int(rows[index]), rng)  # noqa: E731
    parts = []
    for batch in sequential(dataset.subset(rows), mine, batch_size):
        # Rows of all processes, rank by rank: as many of each, since their shares are equal.
        together = shards.gather(function(batch.inputs.to(shards.device))).cpu()
        parts.append(together.unflatten(0, (shards.world_size, -1)))
    return torch.cat(parts, dim=1).flatten(0, 1)[: len(dataset)]


def predict_logits(
    classifier: nn.Module,
    dataset: Rows,
    inputs: InputFunction,
    shards: Shards,
    *,
    batch_size: int = 256,
) -> Tensor:
    """Return logits (M, K) of a classifier in evaluation mode, float32 on the CPU."""
    training = classifier.training
    classifier.eval()
    logits_MK = run_over(classifier, dataset, inputs, shards, batch_size=batch_size)
    classifier.train(training)
    return logits_MK.float()

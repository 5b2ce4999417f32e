"""One pass over held-out rows, shared by all processes: rows in order, or their sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from visgrpo.data.batches import Batch, Collating, InputFunction, sequential
from visgrpo.data.table import Table
from visgrpo.methods.method import Shards
from visgrpo.progress import Bar

Inputs = InputFunction | Collating


class Team(Shards, Protocol):
    """The processes: which part of the work is whose, where and how precisely it is done."""

    @property
    def device(self) -> torch.device: ...
    @property
    def is_main(self) -> bool: ...
    def autocast(self) -> AbstractContextManager[None]: ...
    def any(self, flag: bool) -> bool: ...
    def wait(self) -> None: ...


def batches(
    dataset: Table, inputs: Inputs, team: Team, size: int, rows: np.ndarray | None = None
) -> Iterator[Batch]:
    """Yield some rows, on the device, with their places in the data set; by default all of them.

    A bar counts them, where they are more than one batch.
    """
    total = len(dataset) if rows is None else len(rows)
    with Bar(f"measuring {dataset.name}", total, shown=team.is_main and total > size) as bar:
        for batch in sequential(dataset, inputs, size, rows=rows):
            yield replace(batch, positions_N=batch.indices_N).to(team.device)
            bar.to(bar.done + len(batch))


@torch.no_grad()
def over(
    function: Callable[[Batch], Tensor],
    dataset: Table,
    inputs: Inputs,
    team: Team,
    *,
    batch_size: int = 256,
) -> Tensor:
    """Return what a function makes of every row, (M, …) on the CPU, in the data set's order.

    Every process computes its share of the rows and all get the whole; the last row is repeated
    where the shares would not be equal. Results leave the device batch by batch.

    Args:
        function: from a batch of N rows to (N, …); the rows of all batches have one shape.
    """
    share = -(-len(dataset) // team.world_size)
    rows = np.arange(team.rank * share, (team.rank + 1) * share).clip(max=len(dataset) - 1)
    parts = []
    for batch in batches(dataset, inputs, team, batch_size, rows):
        # Rows of all processes, rank by rank: as many of each, since their shares are equal.
        together = team.gather(function(batch)).cpu()
        parts.append(together.unflatten(0, (team.world_size, -1)))
    return torch.cat(parts, dim=1).flatten(0, 1)[: len(dataset)]


@torch.no_grad()
def sums_over(
    function: Callable[[Batch], Sequence[Tensor]],
    zeros: Sequence[Tensor],
    dataset: Table,
    inputs: Inputs,
    team: Team,
    *,
    batch_size: int,
) -> list[Tensor]:
    """Return sums over all rows, on the CPU: no row counts twice, and none need be kept.

    Args:
        function: from a batch to its sums, of the shapes and types of ``zeros``.
        zeros: the sums of no rows at all, which a process without a share has.
    """
    share = -(-len(dataset) // team.world_size)
    rows = np.arange(len(dataset))[team.rank * share : (team.rank + 1) * share]
    totals = [zero.to(team.device) for zero in zeros]
    for batch in batches(dataset, inputs, team, batch_size, rows):
        for total, part in zip(totals, function(batch), strict=True):
            total += part
    return [team.gather(total[None]).sum(dim=0).cpu() for total in totals]


def logits_of(
    classifier: nn.Module, dataset: Table, inputs: Inputs, team: Team, *, batch_size: int = 256
) -> Tensor:
    """Return logits (M, K) of a classifier in evaluation mode, float32 on the CPU."""
    training = classifier.training
    classifier.eval()
    logits_MK = outputs_of(classifier, dataset, inputs, team, batch_size=batch_size)
    classifier.train(training)
    return logits_MK


def outputs_of(
    function: Callable[[Tensor], Tensor],
    dataset: Table,
    inputs: Inputs,
    team: Team,
    *,
    batch_size: int = 256,
) -> Tensor:
    """Return what a model makes of every input, (M, …) float32 on the CPU.

    In the precision that training computes in, as are logits.
    """
    with team.autocast():
        return over(
            lambda batch: function(batch.inputs), dataset, inputs, team, batch_size=batch_size
        ).float()

"""One batch: rows of a data set, with what was made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from visgrpo.data.pictures import Pictures


@dataclass(frozen=True)
class Batch:
    """N rows of a data set.

    Attributes:
        indices_N: rows of the data set, int64.
        inputs: (N, …), what the input function made of them: usually pixels (N, 3, H, W).
        labels_N: class ids, int64: (N,), or masks (N, H, W) that the input function made together
            with the inputs.
        columns: those of `batch_columns`, each a list of N values.
        positions_N: places of the rows in the batch of all processes; None where this is all of
            it, or all of a consecutive share.
        pictures: the images beside prompts; None where there are none.
        answers_NT: ids of the tokens that a prompt is to be answered with, -1 after the end; None
            where none are given.
    """

    indices_N: Tensor
    inputs: Tensor
    labels_N: Tensor
    columns: Mapping[str, list[Any]]
    positions_N: Tensor | None = None
    pictures: Pictures | None = None
    answers_NT: Tensor | None = None

    def __len__(self) -> int:
        return len(self.indices_N)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with its tensors on `device`."""
        return Batch(
            self.indices_N.to(device),
            self.inputs.to(device),
            self.labels_N.to(device),
            self.columns,
            self.positions_N,
            None if self.pictures is None else self.pictures.to(device),
            None if self.answers_NT is None else self.answers_NT.to(device),
        )

    def select(self, rows: Sequence[int] | Tensor) -> Batch:
        """Return the rows at positions `rows` of this batch, in that order."""
        positions = torch.as_tensor(rows, dtype=torch.long, device=self.indices_N.device)
        chosen = positions.tolist()
        return Batch(
            self.indices_N[positions],
            self.inputs[positions],
            self.labels_N[positions],
            {name: [column[row] for row in chosen] for name, column in self.columns.items()},
            None if self.positions_N is None else self.positions_N[positions.cpu()],
            None if self.pictures is None else self.pictures.select(positions),
            None if self.answers_NT is None else self.answers_NT[positions],
        )


class MadeRows(NamedTuple):
    """What an input function made of N rows, as in `Batch`; None for what it does not make."""

    inputs: Tensor
    labels_N: Tensor | None = None
    pictures: Pictures | None = None
    answers_NT: Tensor | None = None


@runtime_checkable
class Collating(Protocol):
    """An input function that puts its own rows together: they differ in shape."""

    def __call__(self, index: int, rng: np.random.Generator) -> Any:
        """Return what is made of one row."""

    def collate(self, made: Sequence[Any]) -> MadeRows:
        """Return what was made of some rows as one batch."""

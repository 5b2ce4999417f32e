"""One pass over a data set: every row, in order, by any number of processes; or their sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from teams import One, together
from torch import Tensor

from visgrpo.data.batches import CachedInputs, InputFunction
from visgrpo.data.roles import image_table
from visgrpo.measures.over import Team, batches, outputs_of, sums_over

M = 10
INPUTS_M = torch.arange(2.0 * M).reshape(M, 2)
DATASET = image_table("rows", ("a", "b"), np.arange(M) % 2, [None] * M)  # type: ignore[list-item]


def rows_one_by_one(index: int, rng: np.random.Generator) -> Tensor:
    return INPUTS_M[index]


@pytest.mark.parametrize("inputs", [CachedInputs(INPUTS_M), rows_one_by_one])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_every_row_in_order_for_all(
    inputs: InputFunction, world_size: int, batch_size: int
) -> None:
    def tripled(team: Team) -> tuple[Tensor, int]:
        found = outputs_of(lambda x: x * 3, DATASET, inputs, team, batch_size=batch_size)
        return found, team.largest  # type: ignore[attr-defined]

    for found, largest in together(world_size, tripled):
        assert torch.equal(found, INPUTS_M * 3)
        assert largest <= world_size * batch_size


@pytest.mark.parametrize("world_size", [1, 3, 6])
def test_sums_count_every_row_once(world_size: int) -> None:
    """Of ten rows, six processes have two each, and the last none."""

    def sums(team: Team) -> list[Tensor]:
        return sums_over(
            lambda batch: [batch.inputs.sum(dim=0), torch.tensor(len(batch))],
            [torch.zeros(2), torch.tensor(0)],
            DATASET,
            CachedInputs(INPUTS_M),
            team,
            batch_size=2,
        )

    for total, rows in together(world_size, sums):
        assert torch.equal(total, INPUTS_M.sum(dim=0))
        assert rows == M


def test_batches_know_their_rows() -> None:
    """Random numbers go by a row's place in the data set, whoever works on it."""
    rows = np.array([7, 2, 5])
    found = list(batches(DATASET, CachedInputs(INPUTS_M), One(), 2, rows))
    assert [batch.indices_N.tolist() for batch in found] == [[7, 2], [5]]
    assert [batch.positions_N.tolist() for batch in found] == [[7, 2], [5]]  # type: ignore[union-attr]
    assert torch.equal(torch.cat([batch.inputs for batch in found]), INPUTS_M[rows])
    assert torch.cat([batch.labels_N for batch in found]).tolist() == [1, 0, 1]


class OnDevice(Tensor):
    """A tensor that tells when it is moved to the CPU."""

    moved: list[int] = []  # noqa: RUF012

    def cpu(self) -> Tensor:  # type: ignore[override]
        self.moved.append(len(self))
        return self.as_subclass(Tensor)


def test_results_leave_the_device_batch_by_batch() -> None:
    OnDevice.moved.clear()
    seen = []

    def function(x: Tensor) -> Tensor:
        seen.append(list(OnDevice.moved))
        return x.as_subclass(OnDevice)

    outputs_of(function, DATASET, CachedInputs(INPUTS_M), One(), batch_size=4)
    assert seen == [[], [4], [4, 4]]

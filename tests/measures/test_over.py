"""Running a function over a data set: every row, in order, by any number of processes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

from visgrpo.data.batches import CachedInputs, InputFunction
from visgrpo.data.roles import image_table
from visgrpo.data.table import Table
from visgrpo.measures.over import batches, outputs_of, sums_over

M = 10
INPUTS_M = torch.arange(2.0 * M).reshape(M, 2)


def dataset() -> Table:
    labels = np.arange(M) % 2
    return image_table("rows", ("a", "b"), labels, images=[None] * M, columns={})  # type: ignore[list-item]


@dataclass
class Meeting:
    """Where the parts of several processes come together."""

    barrier: threading.Barrier
    parts: dict[int, Tensor] = field(default_factory=dict)
    largest: int = 0


@dataclass
class FakeProcess:
    rank: int
    world_size: int
    meeting: Meeting

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def gather(self, tensor: Tensor) -> Tensor:
        self.meeting.parts[self.rank] = tensor
        self.meeting.barrier.wait(timeout=10)
        whole = torch.cat([self.meeting.parts[rank] for rank in range(self.world_size)])
        self.meeting.largest = max(self.meeting.largest, len(whole))
        self.meeting.barrier.wait(timeout=10)
        return whole

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext()


def rows_one_by_one(index: int, rng: np.random.Generator) -> Tensor:
    return INPUTS_M[index]


@pytest.mark.parametrize("inputs", [CachedInputs(INPUTS_M), rows_one_by_one])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_every_row_in_order_for_all(
    inputs: InputFunction, world_size: int, batch_size: int
) -> None:
    meeting = Meeting(threading.Barrier(world_size))

    def one(rank: int) -> Tensor:
        shards = FakeProcess(rank, world_size, meeting)
        return outputs_of(lambda x: x * 3, dataset(), inputs, shards, batch_size=batch_size)

    with ThreadPoolExecutor(world_size) as pool:
        for result in pool.map(one, range(world_size)):
            assert torch.equal(result, INPUTS_M * 3)
    assert meeting.largest <= world_size * batch_size


@pytest.mark.parametrize("world_size", [1, 3, 6])
def test_sums_count_every_row_once(world_size: int) -> None:
    """Of ten rows, six processes have two each, and the last none."""
    meeting = Meeting(threading.Barrier(world_size))

    def one(rank: int) -> list[Tensor]:
        return sums_over(
            lambda batch: [batch.inputs.sum(dim=0), torch.tensor(len(batch))],
            [torch.zeros(2), torch.tensor(0)],
            dataset(),
            CachedInputs(INPUTS_M),
            FakeProcess(rank, world_size, meeting),  # type: ignore[arg-type]
            batch_size=2,
        )

    with ThreadPoolExecutor(world_size) as pool:
        for total, rows in pool.map(one, range(world_size)):
            assert torch.equal(total, INPUTS_M.sum(dim=0))
            assert rows == M


def test_batches_know_their_rows() -> None:
    """Random numbers go by a row's place in the data set, whoever works on it."""
    shards = FakeProcess(0, 1, Meeting(threading.Barrier(1)))
    rows = np.array([7, 2, 5])
    found = list(batches(dataset(), CachedInputs(INPUTS_M), shards, 2, rows))  # type: ignore[arg-type]
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

    shards = FakeProcess(0, 1, Meeting(threading.Barrier(1)))
    outputs_of(function, dataset(), CachedInputs(INPUTS_M), shards, batch_size=4)
    assert seen == [[], [4], [4, 4]]

"""Batches: what depends on (seed, step), and what must not matter."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from batch_checks import assert_same
from pictures import picture, write_table
from PIL import Image

from visgrpo.data import batches as batches_module
from visgrpo.data.batches import (
    Batch,
    BatchLoader,
    CachedInputs,
    MadeRows,
    batch_columns,
    cache_inputs,
    sequential,
)
from visgrpo.data.pictures import Picture, Pictures
from visgrpo.data.read import read_split
from visgrpo.data.roles import image_table
from visgrpo.data.table import LazySequence, Table
from visgrpo.errors import UserError

ROWS = 23


def dataset(rows: int = ROWS) -> Table:
    return image_table(
        name="numbers/train",
        classes=("a", "b", "c"),
        labels=np.arange(rows) % 3,
        images=[Image.new("RGB", (2, 2), (row, 0, 0)) for row in range(rows)],
        columns={
            "caption": [f"number {row}" for row in range(rows)],
            "votes": list(np.arange(rows) * 0.5),
            "mask": [Image.new("L", (2, 2))] * rows,
        },
    )


@dataclass(frozen=True)
class NoisyInputs:
    """The row and a random number: shows which randomness each row was given."""

    def __call__(self, index: int, rng: np.random.Generator) -> torch.Tensor:
        return torch.tensor([float(index), rng.random()], dtype=torch.float64)


@dataclass(frozen=True)
class Damaged:
    def __call__(self, index: int, rng: np.random.Generator) -> torch.Tensor:
        raise UserError(f"image {index} cannot be read")


@dataclass(frozen=True)
class Ragged:
    def __call__(self, index: int, rng: np.random.Generator) -> torch.Tensor:
        return torch.zeros(3, 4, 4 + index)


def loader(**options: int) -> BatchLoader:
    settings = {"batch_size": 6, "seed": 7, **options}
    return BatchLoader(dataset(), NoisyInputs(), **settings)


def test_a_batch_holds_its_rows() -> None:
    (batch,) = loader().batches(0, 1)
    rows = batch.indices_N.tolist()
    assert batch.indices_N.dtype == batch.labels_N.dtype == torch.long
    assert batch.labels_N.tolist() == [row % 3 for row in rows]
    assert batch.inputs[:, 0].tolist() == rows
    assert batch.columns == {
        "caption": [f"number {row}" for row in rows],
        "votes": [row * 0.5 for row in rows],
    }
    assert type(batch.columns["votes"][0]) is float
    assert len(batch) == 6


def test_an_epoch_visits_rows_once_and_drops_the_rest() -> None:
    assert loader().steps_per_epoch == 3
    orders = []
    for epoch in range(4):
        visited = torch.cat([b.indices_N for b in loader().batches(3 * epoch, 3 * epoch + 3)])
        assert len(set(visited.tolist())) == 18
        orders.append(tuple(visited.tolist()))
    assert len(set(orders)) == 4
    assert len({row for order in orders for row in order}) == ROWS  # nobody is dropped for good


def test_resuming_gives_the_same_steps() -> None:
    whole = list(loader().batches(0, 10))
    assert_same(whole, [*loader().batches(0, 4), *loader().batches(4, 10)])
    assert list(loader().batches(5, 5)) == []


def test_seed_and_epoch_change_order_and_randomness() -> None:
    def noise(seed: int, start: int) -> dict[int, float]:
        batches = loader(seed=seed).batches(start, start + 3)
        return {int(row): value for b in batches for row, value in b.inputs.tolist()}

    first, again, later, other = noise(7, 0), noise(7, 0), noise(7, 3), noise(8, 0)
    assert first == again
    assert all(later[row] != first[row] for row in set(first) & set(later))
    assert all(other[row] != first[row] for row in set(first) & set(other))
    assert len(set(first.values())) == 18


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_ranks_together_are_the_one_process(world_size: int) -> None:
    whole = list(loader().batches(0, 5))
    shares = [
        list(loader(rank=rank, world_size=world_size).batches(0, 5)) for rank in range(world_size)
    ]
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat([s[step].indices_N for s in shares]), batch.indices_N)
        assert torch.equal(torch.cat([s[step].inputs for s in shares]), batch.inputs)


def test_item_randomness_does_not_depend_on_the_batch_size() -> None:
    small = {int(r): v for b in loader(batch_size=1).batches(0, 23) for r, v in b.inputs.tolist()}
    large = {int(r): v for b in loader(batch_size=6).batches(0, 3) for r, v in b.inputs.tolist()}
    assert all(small[row] == value for row, value in large.items())


def test_workers_give_the_same_batches_and_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    assert_same(list(loader(workers=2).batches(2, 7)), list(loader().batches(2, 7)))
    assert torch.equal(state, torch.get_rng_state())


def test_workers_outlive_the_interrupt_that_the_trainer_handles() -> None:
    def interrupt_workers() -> None:  # as a terminal's Ctrl-C does, which reaches every process
        while not multiprocessing.active_children():
            time.sleep(0.01)
        for worker in multiprocessing.active_children():
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGINT)

    batches = loader(workers=1).batches(0, 12)
    at_once = threading.Thread(target=interrupt_workers, daemon=True)
    at_once.start()  # hits a worker that is still importing
    first = next(batches)
    at_once.join()
    interrupt_workers()
    assert_same([first, *batches], list(loader().batches(0, 12)))
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_inputs_that_are_kept_need_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(batches_module, "DataLoader")
    cached = CachedInputs(torch.arange(ROWS).float())
    (batch,) = BatchLoader(dataset(), cached, batch_size=4, seed=0, workers=2).batches(0, 1)
    assert batch.inputs.tolist() == batch.indices_N.tolist()


def test_an_error_in_a_worker_keeps_its_one_line() -> None:
    broken = BatchLoader(dataset(), Damaged(), batch_size=1, seed=0, workers=1)
    with pytest.raises(UserError, match=r"^image \d+ cannot be read$"):
        list(broken.batches(0, 2))


def test_select_and_to() -> None:
    (batch,) = loader().batches(0, 1)
    part = batch.select([4, 1])
    assert part.indices_N.tolist() == [batch.indices_N[4], batch.indices_N[1]]
    assert torch.equal(part.inputs, batch.inputs[[4, 1]])
    assert part.labels_N.tolist() == [batch.labels_N[4], batch.labels_N[1]]
    assert part.columns["caption"] == [batch.columns["caption"][4], batch.columns["caption"][1]]
    assert_same([batch.select(torch.tensor([4, 1]))], [part])
    moved = batch.to("meta")
    assert {moved.inputs.device.type, moved.indices_N.device.type} == {"meta"}
    assert moved.labels_N.device.type == "meta"
    assert moved.columns == batch.columns


MASKS = np.zeros((3, 4, 4), dtype=np.uint8)


@pytest.mark.parametrize(
    ("column", "carried"),
    [
        ([[5, 1], [0, 2], []], [[5, 1], [0, 2], []]),
        ([None, "a", 2.5], [None, "a", 2.5]),
        ([{"a": 1}, None, {}], [{"a": 1}, None, {}]),
        (np.array([1.5, 2.5, 3.5]), [1.5, 2.5, 3.5]),
        (np.array([[5, 1], [0, 2], [1, 1]]), [[5, 1], [0, 2], [1, 1]]),
        ([None, picture(1), None], None),
        ([None, *MASKS[1:]], None),
        (MASKS, None),
        ([b"GIF89a"] * 3, None),
    ],
)
def test_every_column_that_holds_no_pictures_is_carried(column: Any, carried: Any) -> None:
    whole = image_table("x", ("a", "b"), np.array([0, 1, 0]), [picture(0)] * 3, {"it": column})
    expected = {} if carried is None else {"it": carried}
    for rows in ([0, 1, 2], [2, 1]):
        part = whole.subset(rows)
        (batch,) = sequential(part, NoisyInputs(), 3)
        assert batch.columns == {key: [col[row] for row in rows] for key, col in expected.items()}
        assert batch_columns(part) == batch_columns(whole) == list(expected)
    assert all(type(value) is not np.ndarray for col in batch.columns.values() for value in col)


def test_columns_of_tables_are_judged_by_their_types(tmp_path: Path) -> None:
    image = datasets.Image()
    write_table(
        tmp_path / "x.parquet",
        4,
        label=["a", "b"] * 2,
        features={
            "mask": image,
            "views": datasets.List(image),
            "depth": datasets.Array2D((2, 2), "float32"),
            "kind": datasets.ClassLabel(names=["x", "y"]),
        },
        votes=[[5, 1], [], None, [0, 2]],
        note=[None, "late", None, None],
        nothing=[None] * 4,
        box=[{"x": row, "name": None} for row in range(4)],
        kind=[0, 1, 1, 0],
        code=[b"0"] * 4,
        mask=[picture(0)] * 4,
        views=[[picture(0)]] * 4,
        depth=[[[0.0, 1.0], [2.0, 3.0]]] * 4,
    )
    table = read_split(str(tmp_path / "x.parquet"), "all").subset([3, 2, 1, 0])
    assert batch_columns(table) == ["votes", "note", "nothing", "box", "kind"]
    (batch,) = sequential(table, NoisyInputs(), 4)
    assert batch.columns == {
        "votes": [[0, 2], None, [], [5, 1]],
        "note": [None, None, "late", None],
        "nothing": [None] * 4,
        "box": [{"x": row, "name": None} for row in (3, 2, 1, 0)],
        "kind": [0, 1, 1, 0],
    }


def test_naming_the_columns_decodes_nothing() -> None:
    def unreadable(row: int) -> Any:
        raise UserError(f"image {row} cannot be read")

    column = LazySequence(unreadable, range(2))
    lazy = image_table("x", ("a", "b"), np.array([0, 1]), column, {"mask": column})
    assert batch_columns(lazy) == []


def test_sequential_visits_every_row_in_order() -> None:
    batches = list(sequential(dataset(), NoisyInputs(), 10))
    assert [len(batch) for batch in batches] == [10, 10, 3]
    assert torch.cat([batch.indices_N for batch in batches]).tolist() == list(range(ROWS))
    assert_same(batches, list(sequential(dataset(), NoisyInputs(), 10)))


def test_cached_inputs_equal_the_preprocessed_images_within_the_budget() -> None:
    def pixels(index: int, rng: np.random.Generator) -> torch.Tensor:
        image = np.asarray(dataset().images[index])
        return torch.tensor(image, dtype=torch.float32).permute(2, 0, 1)

    bytes_needed = ROWS * 3 * 2 * 2 * 4
    assert cache_inputs(pixels, ROWS, bytes_needed - 1) is None
    cached = cache_inputs(pixels, ROWS, bytes_needed)
    assert cached is not None
    (batch,) = BatchLoader(dataset(), cached, batch_size=4, seed=0).batches(0, 1)
    assert batch.inputs.shape == (4, 3, 2, 2)
    assert batch.inputs[:, 0, 0, 0].tolist() == batch.indices_N.tolist()  # red is the row


def test_errors_say_the_numbers() -> None:
    with pytest.raises(UserError, match=r"24 is larger than numbers/train, which has 23 rows"):
        loader(batch_size=24)
    with pytest.raises(UserError, match=r"6 cannot be shared equally by 4 processes"):
        loader(world_size=4)
    with pytest.raises(UserError, match=r"must be 1 or more, not 0"):
        loader(batch_size=0)
    with pytest.raises(UserError, match=r"must be 1 or more, not 0"):
        list(sequential(dataset(), NoisyInputs(), 0))
    with pytest.raises(UserError, match=r"different shapes, such as \(3, 4, 4\) and \(3, 4, 6\)"):
        list(sequential(dataset(), Ragged(), 3))


@pytest.mark.parametrize("world_size", [2, 4])
def test_every_block_is_dealt_out_to_all_processes(world_size: int) -> None:
    """Minibatch j of all processes together is minibatch j of one."""
    dataset = image_table("x", ("a", "b"), np.arange(64) % 2, [Image.new("RGB", (1, 1))] * 64)
    inputs = CachedInputs(torch.arange(64.0))

    def first(rank: int, world: int) -> Batch:
        loader = BatchLoader(
            dataset, inputs, batch_size=16, seed=5, rank=rank, world_size=world, blocks=2
        )
        return next(iter(loader.batches(0, 1)))

    whole = first(0, 1)
    shares = [first(rank, world_size) for rank in range(world_size)]
    for block in range(2):
        of_all = torch.cat([share.indices_N.chunk(2)[block] for share in shares])
        assert of_all.tolist() == whole.indices_N.chunk(2)[block].tolist()
    for share in shares:
        assert torch.equal(whole.indices_N[share.positions_N], share.indices_N)


def test_a_batch_that_blocks_and_processes_cannot_share() -> None:
    dataset = image_table("x", ("a", "b"), np.arange(64) % 2, [Image.new("RGB", (1, 1))] * 64)
    with pytest.raises(UserError, match="2 processes × 3 blocks; choose a multiple of 6"):
        BatchLoader(
            dataset,
            CachedInputs(torch.arange(64.0)),
            batch_size=16,
            seed=0,
            world_size=2,
            blocks=3,
        )


@dataclass(frozen=True)
class Counting:
    """Rows of as many tokens as their number: they differ in shape and are put together here."""

    def __call__(self, index: int, rng: np.random.Generator) -> tuple[int, float]:
        return index, rng.random()

    def collate(self, made: list[tuple[int, float]]) -> MadeRows:
        longest = max(row for row, _ in made)
        tokens = torch.zeros(len(made), longest, dtype=torch.long)
        for place, (row, _) in enumerate(made):
            tokens[place, longest - row :] = row
        each = [[Picture(torch.full((row, 2), noise), (1, row, 1), row)] for row, noise in made]
        pictures = Pictures.of(each, [[str(row)] for row, _ in made])
        labels = torch.tensor([row for row, _ in made], dtype=torch.int32)
        return MadeRows(tokens, labels, pictures, tokens - 1)


def test_an_input_function_may_put_its_rows_together_itself() -> None:
    """Prompts, lengths, images and answers, with the randomness of each row."""
    some = BatchLoader(dataset(), Counting(), batch_size=6, seed=7)
    for batch, noisy in zip(some.batches(0, 3), loader().batches(0, 3), strict=True):
        rows = batch.indices_N.tolist()
        assert rows == noisy.indices_N.tolist()
        assert batch.labels_N.tolist() == rows
        assert batch.labels_N.dtype == torch.long
        assert batch.inputs.shape == (6, max(rows))
        assert batch.answers_NT is not None
        assert torch.equal(batch.answers_NT, batch.inputs - 1)
        assert batch.pictures is not None
        assert batch.pictures.keys == tuple(map(str, rows))
        first = batch.pictures.pixels[:, 0].split(batch.pictures.rows_I)
        noise = [values[0].item() if len(values) else None for values in first]
        expected = [value for _, value in noisy.inputs.tolist()]
        for row, seen, value in zip(rows, noise, expected, strict=True):
            assert seen is None if row == 0 else seen == pytest.approx(value)
    (whole,) = sequential(dataset(4), Counting(), 4)
    assert whole.inputs.tolist() == [[0, 0, 0], [0, 0, 1], [0, 2, 2], [3, 3, 3]]

"""Batches that depend on (seed, step) alone: not on workers, ranks or where a run was resumed."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import resource_tracker
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from visgrpo.data.pictures import Pictures
from visgrpo.data.table import Table, is_plain
from visgrpo.errors import UserError

_NONE = torch.empty(0, dtype=torch.long)  # the labels or lengths of rows that have none


@dataclass(frozen=True)
class Batch:
    """N rows of a data set.

    Attributes:
        indices_N: rows of the data set, int64.
        inputs: (N, …), what the input function made of them: usually pixels (N, 3, H, W), or the
            ids of tokens (N, P).
        labels_N: class ids, int64: (N,), or masks (N, H, W) that the input function made together
            with the inputs. Empty where rows have none.
        columns: those of `batch_columns`, each a list of N values.
        positions_N: places of the rows in the batch of all processes; None where this is all of
            it, or all of a consecutive share.
        pictures: the images beside prompts; None where there are none.
        answers_NT: ids of the tokens that a prompt is to be answered with, -1 after the end; None
            where none are given.
        lengths_N: tokens of each input (N,), or of each of several texts (N, 2), int64. Empty where
            inputs are no tokens.
    """

    indices_N: Tensor
    inputs: Tensor
    labels_N: Tensor = _NONE
    columns: Mapping[str, list[Any]] = field(default_factory=dict)
    positions_N: Tensor | None = None
    pictures: Pictures | None = None
    answers_NT: Tensor | None = None
    lengths_N: Tensor = _NONE
    logged: bool = True

    def __len__(self) -> int:
        return len(self.indices_N)

    @property
    def prompts_NP(self) -> Tensor:
        """The inputs by the name that they have where models read tokens."""
        return self.inputs

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with its tensors on `device`."""
        moved = self._tensors(lambda tensor: tensor.to(device))
        pictures = None if self.pictures is None else self.pictures.to(device)
        return replace(self, **moved, pictures=pictures)

    def select(self, rows: Sequence[int] | Tensor) -> Batch:
        """Return the rows at positions `rows` of this batch, in that order."""
        positions = torch.as_tensor(rows, dtype=torch.long, device=self.indices_N.device)
        chosen = positions.tolist()
        columns = {name: [column[row] for row in chosen] for name, column in self.columns.items()}
        return replace(
            self,
            **self._tensors(lambda tensor: tensor[positions]),
            columns=columns,
            positions_N=None if self.positions_N is None else self.positions_N[positions.cpu()],
            pictures=None if self.pictures is None else self.pictures.select(positions),
        )

    def _tensors(self, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """Return what is on the device of a batch, changed."""
        names = ("indices_N", "inputs", "labels_N", "answers_NT", "lengths_N")
        held = {name: getattr(self, name) for name in names}
        return {
            name: change(tensor)
            for name, tensor in held.items()
            if tensor is not None and len(tensor) == len(self)
        }


class MadeRows(NamedTuple):
    """What an input function made of N rows, as in `Batch`; None for what it does not make."""

    inputs: Tensor
    labels_N: Tensor | None = None
    pictures: Pictures | None = None
    answers_NT: Tensor | None = None
    lengths_N: Tensor | None = None


@runtime_checkable
class Collating(Protocol):
    """An input function that puts its own rows together: they differ in shape."""

    def __call__(self, index: int, rng: np.random.Generator) -> Any:
        """Return what is made of one row."""

    def collate(self, made: Sequence[Any]) -> MadeRows:
        """Return what was made of some rows as one batch."""


# The input of a row, or the pair of an input and the label that was made together with it.
Made = Tensor | tuple[Tensor, Tensor]
InputFunction = Callable[[int, np.random.Generator], Made]
_ORDER, _ITEM = 0, 1  # streams of randomness: which rows, and what is done to each


@dataclass(frozen=True)
class CachedInputs:
    """An input function over inputs that were all made beforehand.

    Attributes:
        inputs_M: (M, …) the input of every row; may be a read-only, memory-mapped file: what is
            handed out is a copy.
        labels_M: (M, …) the labels that belong to the inputs, of any integer type; None where they
            are the data set's own.
        lengths_M: tokens of each input, as in `Batch`; empty where inputs are no tokens.
    """

    inputs_M: Tensor
    labels_M: Tensor | None = None
    lengths_M: Tensor = _NONE

    def __call__(self, index: int, rng: np.random.Generator) -> Made:
        """Return the input of row `index`, or the pair with its label; nothing is random."""
        if self.labels_M is None:
            return self.inputs_M[index].clone()
        return self.inputs_M[index].clone(), self.labels_M[index].clone()

    def take(self, rows: np.ndarray) -> CachedInputs:
        """Return a copy of the inputs, and of their labels if there are any, at `rows`."""
        chosen = torch.from_numpy(rows)
        return CachedInputs(
            self.inputs_M[chosen],
            None if self.labels_M is None else self.labels_M[chosen],
            self.lengths_M[chosen] if len(self.lengths_M) else _NONE,
        )


def cache_inputs(inputs: InputFunction, rows: int, budget_bytes: int) -> CachedInputs | None:
    """Make every input once, or return None where that would exceed `budget_bytes`.

    Args:
        inputs: an input function that makes no use of its generator.
        rows: how many rows to make.
        budget_bytes: for inputs and labels together.

    Raises:
        UserError: if an input cannot be made, or they differ in shape.
    """
    first = _as_parts(inputs(0, np.random.default_rng(0)))
    if sum(part.numel() * part.element_size() for part in first) * rows > budget_bytes:
        return None
    return CachedInputs(*make_all(inputs, rows))


def make_all(inputs: InputFunction, rows: int) -> tuple[Tensor, ...]:
    """Return the inputs (M, …) of all rows, and the labels (M, …) if they were made with them.

    Args:
        inputs: an input function that makes no use of its generator.
        rows: how many rows to make, 1 or more.

    Raises:
        UserError: if an input cannot be made, or they differ in shape.
    """
    rng = np.random.default_rng(0)
    whole: tuple[Tensor, ...] = ()
    for row in range(rows):
        parts = _as_parts(inputs(row, rng))
        if not whole:
            whole = tuple(torch.empty((rows, *part.shape), dtype=part.dtype) for part in parts)
        check_shapes({tuple(whole[0].shape[1:]), tuple(parts[0].shape)}, "one data set")
        for part_M, part in zip(whole, parts, strict=True):
            part_M[row] = part
    return whole


class BatchLoader:
    """Shuffled batches of one data set for one of `world_size` processes.

    Step s belongs to epoch s // steps_per_epoch; the order of an epoch is a permutation drawn from
    (seed, epoch), and its last, incomplete batch is dropped. The randomness given to the input
    function for a row comes from (seed, epoch, row). So any stretch of steps can be asked for, by
    any number of processes or workers, with the same batches.

    Args:
        dataset: the rows.
        inputs: makes the input tensor of one row, or the pair of an input and a label, from the
            row's index and a generator; with workers it must be picklable.
        batch_size: rows of a step over all processes.
        seed: 0 or more.
        rank: which process this is; of every block it gets its consecutive share.
        world_size: number of processes.
        blocks: equal parts of a batch, each of which is dealt out to all processes: the
            minibatches of a step.
        workers: processes that make inputs ahead of time; 0 makes them here, as does a
            `CachedInputs`, which has nothing left to make.

    Raises:
        UserError: if the batch is larger than the data set, or not divisible by `world_size`.
    """

    def __init__(
        self,
        dataset: Table,
        inputs: InputFunction | Collating,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        blocks: int = 1,
        workers: int = 0,
    ) -> None:
        _check_batch_size(batch_size)
        if batch_size > len(dataset):
            raise UserError(
                f"The batch size {batch_size} is larger than {dataset.name}, which has "
                f"{len(dataset)} rows; choose a smaller batch or more data."
            )
        if batch_size % (world_size * blocks):
            by = f"{world_size} processes" + (f" × {blocks} blocks" if blocks > 1 else "")
            raise UserError(
                f"The batch size {batch_size} cannot be shared equally by {by}; "
                f"choose a multiple of {world_size * blocks}."
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.workers = 0 if isinstance(inputs, CachedInputs) else workers
        share = batch_size // world_size
        block_starts = np.arange(blocks) * (batch_size // blocks)
        within = rank * (share // blocks) + np.arange(share // blocks)
        self._share = (block_starts[:, None] + within).ravel()
        self._inputs = _BatchInputs(inputs, seed)
        self._columns = _carried(dataset)

    @property
    def steps_per_epoch(self) -> int:
        """Number of whole batches in the data set."""
        return len(self.dataset) // self.batch_size

    def batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        """Yield the batches of steps `start_step` up to, not including, `stop_step`."""
        plan = self._plan(start_step, stop_step)
        if self.workers == 0:
            for epoch, rows in plan:
                yield self._placed(rows, self._inputs.make(epoch, rows))
            return
        loader = DataLoader(
            self._inputs,
            batch_size=None,  # an item is a whole batch already
            sampler=self._plan(start_step, stop_step),
            num_workers=self.workers,
            # Forked workers deadlock when the parent has running threads; spawned ones do not.
            multiprocessing_context="spawn",
            # Without its own generator a DataLoader draws from the global one.
            generator=torch.Generator(),
            worker_init_fn=_ignore_interrupts,
        )
        with _interrupts_held():
            inputs = iter(loader)
        for (_, rows), made in zip(plan, inputs, strict=True):
            if isinstance(made, UserError):
                raise made
            yield self._placed(rows, made)

    def _placed(self, rows: np.ndarray, made: MadeRows) -> Batch:
        batch = _batch(self.dataset, self._columns, rows, made)
        return replace(batch, positions_N=torch.from_numpy(self._share))

    def _plan(self, start_step: int, stop_step: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the epoch and this process's rows of each step."""
        order, order_epoch = np.empty(0, dtype=np.int64), -1
        for step in range(start_step, stop_step):
            epoch, position = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                rng = np.random.default_rng([self.seed, _ORDER, epoch])
                order, order_epoch = rng.permutation(len(self.dataset)), epoch
            start = position * self.batch_size
            yield epoch, order[start : start + self.batch_size][self._share]


def batch_columns(dataset: Table) -> list[str]:
    """Return the names of the columns that batches carry: all but pictures, masks and bytes."""
    return [name for name, column in dataset.columns.items() if is_plain(column)]


def sequential(
    dataset: Table,
    inputs: InputFunction | Collating,
    batch_size: int,
    *,
    rows: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Yield every row once and in order, for evaluation; the last batch may be smaller.

    Args:
        rows: yield these instead, in this order.

    Raises:
        UserError: if `batch_size` is below 1, or the inputs of a batch differ in shape.
    """
    _check_batch_size(batch_size)
    columns = _carried(dataset)
    batch_inputs = _BatchInputs(inputs, seed=0)
    chosen = np.arange(len(dataset)) if rows is None else rows
    for start in range(0, len(chosen), batch_size):
        some = chosen[start : start + batch_size]
        yield _batch(dataset, columns, some, batch_inputs.make(0, some))


class _BatchInputs(Dataset["MadeRows | UserError"]):
    """Inputs by (epoch, rows): the part of a loader that travels to its workers."""

    def __init__(self, inputs: InputFunction | Collating, seed: int) -> None:
        self._inputs = inputs
        self._seed = seed

    def __getitem__(self, key: tuple[int, np.ndarray]) -> MadeRows | UserError:
        try:
            return self.make(*key)
        except UserError as error:
            return error  # raised in a worker, its message would arrive wrapped in a traceback

    def make(self, epoch: int, rows: np.ndarray) -> MadeRows:
        if isinstance(self._inputs, CachedInputs):
            taken = self._inputs.take(rows)
            lengths_N = taken.lengths_M if len(taken.lengths_M) else None
            return MadeRows(taken.inputs_M, taken.labels_M, lengths_N=lengths_N)
        each = [
            self._inputs(row, np.random.default_rng([self._seed, _ITEM, epoch, row]))
            for row in rows.tolist()
        ]
        if isinstance(self._inputs, Collating):
            return self._inputs.collate(each)
        made = [_as_parts(row) for row in each]
        check_shapes({tuple(parts[0].shape) for parts in made}, "one batch")
        whole = [torch.stack(part) for part in zip(*made, strict=True)]
        return MadeRows(whole[0], whole[1] if len(whole) == 2 else None)


def _as_parts(made: Made) -> tuple[Tensor, ...]:
    return made if isinstance(made, tuple) else (made,)


def check_shapes(found: set[tuple[int, ...]], what: str) -> None:
    """Raise UserError where inputs that belong together differ in shape."""
    shapes = sorted(found)
    if len(shapes) > 1:
        raise UserError(
            f"The inputs of {what} have different shapes, such as {shapes[0]} and {shapes[-1]}; "
            "resize or crop every image to one size (segmentation: --image-size)."
        )


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"The batch size must be 1 or more, not {batch_size}.")


def _ignore_interrupts(worker: int) -> None:
    """Leave a terminal's Ctrl-C, which reaches every process, to the one that saves the run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back while workers are started.

    They inherit the hold, so that none dies of it in the seconds before `_ignore_interrupts`; here
    it is delivered at the end. Windows has no such hold.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # started later, it would lift the hold
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _carried(dataset: Table) -> dict[str, Sequence[Any]]:
    return {name: dataset.columns[name] for name in batch_columns(dataset)}


def _batch(
    dataset: Table,
    columns: Mapping[str, Sequence[Any]],
    rows: np.ndarray,
    made: MadeRows,
) -> Batch:
    return Batch(
        torch.from_numpy(rows.astype(np.int64)),
        made.inputs,
        _labels(dataset, rows, made),
        {name: [_plain(column[row]) for row in rows.tolist()] for name, column in columns.items()},
        pictures=made.pictures,
        answers_NT=made.answers_NT,
        lengths_N=_NONE if made.lengths_N is None else made.lengths_N.long(),
    )


def _labels(dataset: Table, rows: np.ndarray, made: MadeRows) -> Tensor:
    if made.labels_N is not None:
        return made.labels_N.long()
    if made.lengths_N is not None:
        return _NONE
    if "sets" in dataset.values:
        return torch.tensor([dataset["sets"][row] for row in rows.tolist()])
    if "labels" not in dataset.values:
        raise TypeError(f"{dataset.name} has masks: its input function must return pairs.")
    return torch.from_numpy(dataset.labels[rows])


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value

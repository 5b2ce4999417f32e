"""Features of a frozen model: each image is encoded once, whatever the run, split and seed."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from visgrpo.data.batches import InputFunction, Made
from visgrpo.data.kept import Kept, picture_names
from visgrpo.data.table import Table
from visgrpo.errors import UserError
from visgrpo.measures.over import Team, outputs_of
from visgrpo.progress import tracked

BATCH_SIZE = 256  # rows that one process encodes at a time


def cached_features(
    function: Callable[[Tensor], Tensor],
    dataset: Table,
    inputs: InputFunction,
    processes: Team,
    *,
    key: Mapping[str, str],
    folder: Path | None = None,
) -> Tensor:
    """Return what a frozen function makes of every image, (M, …) float32, encoding each only once.

    Features are kept by what an image is (`visgrpo.data.kept`): other runs, splits and seeds find
    them, and neither call `function` nor `inputs` for it. The tensor lies in a file without a name
    and is read from disk as it is used; writing to it changes this process's copy only. Values are
    those of an uncached call, up to the rounding that differs with the batch an image is in.

    The processes of one run share the folder: the main one writes, and what one lacks all encode.

    Args:
        function: from inputs (N, …) to features (N, …), in evaluation mode.
        dataset: the rows.
        inputs: makes the input of one row; nothing about it may be random.
        processes: the processes, and the precision they compute in.
        key: everything else that the features depend on, by name: `weights_key`, the model's
            configuration, the preprocessing, the pooling and the precision.
        folder: where they are kept; see `Kept`.

    Raises:
        UserError: if the folder cannot be written or is full, the file in it is damaged, or the
            features of two images differ in shape.
    """
    kept, names = Kept(folder, key), picture_names(dataset.images)
    rows_of: dict[bytes, list[int]] = {}
    for row, name in enumerate(names):
        rows_of.setdefault(name, []).append(row)
    with _Rows(dataset.name, len(dataset), kept.folder) as found:
        _fill(found, rows_of, kept, function, dataset, inputs, processes)
        return found.tensor()


def _fill(
    found: _Rows,
    rows_of: Mapping[bytes, list[int]],
    kept: Kept,
    function: Callable[[Tensor], Tensor],
    dataset: Table,
    inputs: InputFunction,
    processes: Team,
) -> None:
    """Put the features of all images into their rows: those that are kept, then the others."""
    lacking = dict.fromkeys(rows_of, True)
    for name, features in kept.read(list(rows_of)):
        found.put(rows_of[name], features)
        lacking[name] = False
    flags = torch.tensor(list(lacking.values()), device=processes.device, dtype=torch.uint8)
    missing = [
        name
        for name, one_lacks in zip(rows_of, processes.gather(flags[None]).any(dim=0), strict=True)
        if one_lacks
    ]
    size = BATCH_SIZE * processes.world_size
    starts = range(0, len(missing), size)
    for start in tracked(starts, f"features of {dataset.name}, batches of {size}"):
        some = missing[start : start + size]
        rows = np.array([rows_of[name][0] for name in some])
        made = outputs_of(
            function, dataset.subset(rows), partial(_made_of, inputs, rows), processes
        )
        for name, features in zip(some, made, strict=True):
            found.put(rows_of[name], features)
        if processes.is_main:
            kept.write(dict(zip(some, made, strict=True)))
    processes.wait()


def _made_of(inputs: InputFunction, rows: np.ndarray, index: int, rng: np.random.Generator) -> Made:
    return inputs(int(rows[index]), rng)


class _Rows:
    """The features of M rows, in a file without a name: it is gone when nobody uses it."""

    def __init__(self, what: str, rows: int, folder: Path) -> None:
        self._what, self._rows, self._folder = what, rows, folder
        self._shape: tuple[int, ...] | None = None
        with self._disk():
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed below

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()  # a map of it stays

    def put(self, rows: list[int], features: Tensor) -> None:
        """Write the features of an image to all rows that have it."""
        if self._shape is None:
            self._shape = tuple(features.shape)
            self._check_space(4 * self._rows * math.prod(self._shape))
        if tuple(features.shape) != self._shape:
            raise UserError(
                f"{self._what}: features of shape {tuple(features.shape)} follow features of "
                f"shape {self._shape}; resize or crop every image to one size."
            )
        content = np.ascontiguousarray(features.float().numpy()).data
        for row in rows:  # on a full disk a memory map would kill the process
            with self._disk():
                self._file.seek(row * content.nbytes)
                self._file.write(content)

    def tensor(self) -> Tensor:
        """Map all rows into memory."""
        if self._shape is None:
            return torch.empty(0)
        with self._disk():
            self._file.flush()
        shape = (self._rows, *self._shape)
        # "c": writable, since torch warns of arrays that are not, but never into the file.
        return torch.from_numpy(np.memmap(self._file, np.float32, "c", shape=shape))

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise UserError(
                f"The features need {needed / 1e9:.1f} GB and {self._folder} has "
                f"{free / 1e9:.1f} GB left; make room, or name another folder "
                "(--cache or VISGRPO_CACHE)."
            )

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"Features cannot be kept in {self._folder} ({error.strerror}); make room there, "
                "or name another folder (--cache or VISGRPO_CACHE)."
            ) from error

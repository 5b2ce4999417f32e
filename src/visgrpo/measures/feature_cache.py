"""Features of a frozen model, encoded once and kept in memory-mapped files."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from visgrpo.data.batches import InputFunction, Made
from visgrpo.data.table import Table
from visgrpo.errors import UserError
from visgrpo.files import parse_json
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
    """Return what a frozen function makes of every image, (M, …) float32, encoding it only once.

    A first call encodes batch by batch into a file; later ones map that file into memory, whatever
    process they run in, and call neither `function` nor `inputs`. The tensor is then read from disk
    as it is used; writing to it changes this process's copy only. Values are those that an uncached
    call computes, bit for bit. A data set of unknown identity is encoded into memory every time.

    The processes of one run share the folder: the main one writes, the others wait.

    Args:
        function: from inputs (N, …) to features (N, …), in evaluation mode.
        dataset: the rows; `dataset.identity` is a part of the key.
        inputs: makes the input of one row; nothing about it may be random.
        processes: the processes, and the precision they compute in.
        key: everything else that the features depend on, by name: `weights_key`, the model's
            configuration, the preprocessing, the pooling and the precision.
        folder: where files are kept; `default_folder()` if None.

    Raises:
        UserError: if the folder cannot be written or is full, a file in it is damaged, or the
            features of two batches differ in shape.
    """
    blocks = _blocks(function, dataset, inputs, processes)
    if not dataset.identity:
        return _in_memory(blocks, len(dataset))
    entry = _Entry({**key, "data": dataset.identity}, len(dataset), folder or default_folder())
    # All take the same branch, even where one of them has not seen a new file yet.
    if processes.any(not entry.features.exists()):
        if processes.is_main:
            entry.write(blocks)
        else:
            for _ in blocks:  # its share of the rows goes to the main process
                pass
        processes.wait()
    return entry.read()


def weights_key(module: nn.Module) -> str:
    """Return a hash of all parameters and buffers: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def default_folder() -> Path:
    """Return $VISGRPO_CACHE, or ~/.cache/visgrpo/features."""
    return Path(os.environ.get("VISGRPO_CACHE") or "~/.cache/visgrpo/features").expanduser()


@dataclass(frozen=True)
class _Entry:
    """One array of features: a .npy file, and a .json file beside it that says what it is."""

    key: Mapping[str, str]
    rows: int
    folder: Path

    @property
    def features(self) -> Path:
        return self.folder / f"{self._digest}.npy"

    @property
    def description(self) -> Path:
        return self.folder / f"{self._digest}.json"

    @property
    def _digest(self) -> str:
        return hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()

    def write(self, blocks: Iterable[Tensor]) -> None:
        """Write the blocks under a name that nobody reads, then give the files their own names."""
        part = self.folder / f".{self._digest}.{uuid.uuid4().hex}.part"
        said = part.with_suffix(".json")
        with self._disk():
            self.folder.mkdir(parents=True, exist_ok=True)
            file = part.open("xb")
        try:
            with file:
                shape = self._write_array(file, blocks)
                size = file.tell()
            with self._disk():
                said.write_text(json.dumps(self._said(shape, "float32", size), indent=1), "utf-8")
                # In this order, so that features which have their name are never undescribed.
                os.replace(said, self.description)
                os.replace(part, self.features)
        finally:
            part.unlink(missing_ok=True)
            said.unlink(missing_ok=True)

    def _write_array(self, file: BinaryIO, blocks: Iterable[Tensor]) -> tuple[int, ...]:
        """Write a .npy file, in order: on a full disk a memory map would kill the process."""
        shape: tuple[int, ...] = ()
        for block in blocks:
            with self._disk():
                if not shape:
                    shape = (self.rows, *block.shape[1:])
                    self._check_space(4 * math.prod(shape))
                    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(np.ascontiguousarray(block.numpy(), dtype="<f4").data)
        with self._disk():
            file.flush()
            os.fsync(file.fileno())
        return shape

    def read(self) -> Tensor:
        """Map the features into memory."""
        try:
            said = parse_json(self.description.read_bytes())
            # "c": writable, since torch warns of arrays that are not, but never into the file.
            features = np.load(self.features, mmap_mode="c", allow_pickle=False)
            size = self.features.stat().st_size
        except (OSError, ValueError, EOFError, RecursionError) as error:
            raise self._damaged(str(error)) from error
        found = self._said(features.shape, str(features.dtype), size)
        if said != found or features.shape[0] != self.rows:
            raise self._damaged(f"it does not agree with {self.description.name}")
        return torch.from_numpy(features)

    def _said(self, shape: tuple[int, ...], dtype: str, size: int) -> dict[str, Any]:
        return {"key": dict(self.key), "shape": list(shape), "dtype": dtype, "bytes": size}

    def _damaged(self, reason: str) -> UserError:
        return UserError(
            f"The cached features {self.features} cannot be used ({reason}); delete the file, and "
            "they are made again."
        )

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise UserError(
                f"The features need {needed / 1e9:.1f} GB and {self.folder} has {free / 1e9:.1f} "
                "GB left; make room, or name another folder with --cache."
            )

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"Features cannot be kept in {self.folder} ({error.strerror}); make room there, "
                "or name another folder with --cache."
            ) from error


def _blocks(
    function: Callable[[Tensor], Tensor],
    dataset: Table,
    inputs: InputFunction,
    processes: Team,
) -> Iterator[Tensor]:
    """Yield the features (n, …) of one batch of all processes after another, to all of them."""
    size, shape = BATCH_SIZE * processes.world_size, None
    starts = range(0, len(dataset), size)
    for start in tracked(starts, f"features of {dataset.name}, batches of {size}"):
        rows = np.arange(start, min(start + size, len(dataset)))
        block = outputs_of(
            function, dataset.subset(rows), partial(_later, inputs, start), processes
        )
        shape = block.shape[1:] if shape is None else shape
        if block.shape[1:] != shape:
            raise UserError(
                f"{dataset.name}: features of shape {tuple(block.shape[1:])} follow features of "
                f"shape {tuple(shape)}; resize or crop every image to one size."
            )
        yield block


def _later(inputs: InputFunction, start: int, index: int, rng: np.random.Generator) -> Made:
    return inputs(start + index, rng)


def _in_memory(blocks: Iterable[Tensor], rows: int) -> Tensor:
    whole, start = torch.empty(0), 0
    for block in blocks:
        if start == 0:
            whole = torch.empty(rows, *block.shape[1:])
        whole[start : start + len(block)] = block
        start += len(block)
    return whole

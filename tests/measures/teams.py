"""Processes as the measures know them: one alone, or several in threads that meet."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


class One:
    """A single process; what it computes in may be another precision than float32."""

    rank, world_size, is_main = 0, 1, True
    device = torch.device("cpu")

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self._dtype = dtype

    def gather(self, tensor: Tensor) -> Tensor:
        return tensor

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", self._dtype) if self._dtype else nullcontext()

    def any(self, flag: bool) -> bool:
        return flag

    def wait(self) -> None:
        pass


class Member(One):
    """One of several processes; ``largest`` is the most rows that ever met."""

    def __init__(self, rank: int, barrier: threading.Barrier, parts: dict[int, Tensor]) -> None:
        super().__init__()
        self.rank, self.world_size = rank, barrier.parties  # type: ignore[misc]
        self.is_main, self.largest = rank == 0, 0  # type: ignore[misc]
        self._barrier, self._parts = barrier, parts

    def gather(self, tensor: Tensor) -> Tensor:
        self._parts[self.rank] = tensor
        self.wait()
        whole = torch.cat([self._parts[rank] for rank in range(self.world_size)])
        self.largest = max(self.largest, len(whole))
        self.wait()
        return whole

    def any(self, flag: bool) -> bool:
        return bool(self.gather(torch.tensor([float(flag)])).sum() > 0)

    def wait(self) -> None:
        self._barrier.wait(timeout=60)


def together(world_size: int, work: Callable[[Any], Any]) -> list[Any]:
    """Let several processes do the same work at once, and return what each came to."""
    barrier, parts = threading.Barrier(world_size), dict[int, Tensor]()
    team = [Member(rank, barrier, parts) for rank in range(world_size)]
    with ThreadPoolExecutor(world_size) as threads:
        return list(threads.map(work, team))

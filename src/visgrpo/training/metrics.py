"""What is logged of a run: means between two lines, silent rewards, and the memory in use."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from visgrpo.errors import UserError

Totals = dict[str, tuple[float, float]]
"""By the name of a metric: the sum of its values times their weights, and of the weights."""


class MetricMeans:
    """Running means of scalar metrics; its state is plain data and goes into the checkpoint.

    Sums are in float64. Those of tensors stay on their device until they are asked for: reading
    one waits until the device has computed it.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._counts: dict[str, Tensor | float] = {}
        self.of_nothing: tuple[str, ...] = ()
        """The metrics that were a mean over nothing when they were last taken."""

    def add(
        self,
        metrics: Mapping[str, Tensor | float],
        weights: Mapping[str, Tensor | float] = MappingProxyType({}),
    ) -> None:
        """Add one observation of each metric, which counts for its weight, or for 1."""
        for name, value in metrics.items():
            weight = _plain(weights.get(name, 1.0))
            self._sums[name] = self._sums.get(name, 0.0) + _plain(value) * weight
            self._counts[name] = self._counts.get(name, 0.0) + weight

    def take(
        self, gather: Callable[[Totals], list[Totals]] = lambda own: [own]
    ) -> dict[str, float]:
        """Return the means since the last call, and start anew.

        Args:
            gather: brings the totals of all processes together; one may have metrics that another
                has not.
        """
        self._read()
        names = list(self._sums)
        own = {name: (float(self._sums[name]), float(self._counts[name])) for name in names}
        self._sums, self._counts = {}, {}
        every = gather(own)
        means = {}
        of_all = dict.fromkeys(name for totals in every for name in totals)
        for name in of_all:
            sums, counts = zip(*(totals[name] for totals in every if name in totals), strict=True)
            if sum(counts):
                means[name] = sum(sums) / sum(counts)
        self.of_nothing = tuple(name for name in of_all if name not in means)
        return means

    def copy(self) -> MetricMeans:
        """Return the means as they are now, without reading a tensor."""
        copied = MetricMeans()
        copied._sums, copied._counts = dict(self._sums), dict(self._counts)
        return copied

    def state(self) -> dict[str, dict[str, Any]]:
        self._read()
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def restore(self, state: Mapping[str, Mapping[str, float]]) -> None:
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])

    def _read(self) -> None:
        """Turn sums that are tensors into numbers, fetched from each device at once."""
        tensors: dict[torch.device, list[tuple[dict[str, Tensor | float], str, Tensor]]] = {}
        for held in (self._sums, self._counts):
            for name, total in held.items():
                if isinstance(total, Tensor):
                    tensors.setdefault(total.device, []).append((held, name, total))
        for of_device in tensors.values():
            numbers = torch.stack([total for _, _, total in of_device]).tolist()
            for (held, name, _), number in zip(of_device, numbers, strict=True):
                held[name] = number


def _plain(value: Tensor | float) -> Tensor | float:
    return value.detach().double() if isinstance(value, Tensor) else float(value)


def reset_peak_memory(device: torch.device) -> None:
    """Let the peak start anew, for a run in a process that did something else before.

    A process on a CPU can do so on Linux, where the kernel lets it; elsewhere its peak stays that
    of its whole life.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    marks = Path("/proc/self/clear_refs")
    if os.access(marks, os.W_OK):
        marks.write_text("5")  # sets VmHWM to what is in use now


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory used so far: of the GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's peak on Linux is inherited from the parent process
        line = next(line for line in status.read_text().splitlines() if line[:6] == "VmHWM:")
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, kilobytes elsewhere


class Silence:
    """Counts the steps in which no group's rewards differed, up to now.

    Args:
        allowed: steps after which a run is stopped; 0 lets it go on.
    """

    def __init__(self, allowed: int) -> None:
        self.steps, self._allowed, self._warned = 0, allowed, False
        self._unpaid: set[str] = set()

    def unpaid(self, of_nothing: Iterable[str], step: int) -> list[str]:
        """Return what to say of rewards that applied to no output, of each once in a run.

        Args:
            of_nothing: metrics that were means over nothing.
            step: the last of the steps that they were taken over.
        """
        found = {name for name in of_nothing if name.startswith("rewards/")} - self._unpaid
        self._unpaid |= found
        return [
            f'warning: up to step {step} reward "{name.split("/")[1]}" applied to nothing: it was '
            "None for every output. Look at the columns that it asks for."
            for name in sorted(found)
        ]

    def mind(self, means: Mapping[str, float], steps: int, step: int) -> str | None:
        """Look at the means of some steps; return what to say of them, once in a run.

        KL and entropy would move the model alone, unnoticed.

        Args:
            steps: how many steps the means are of.
            step: the last of them.

        Raises:
            UserError: when rewards have taught nothing for as long as is allowed.
        """
        # A weighted mean of ones may round to a little less.
        if means.get("frac_reward_zero_std", 0.0) < 1 - 1e-6:
            self.steps = 0
            return None
        self.steps += steps
        if self._allowed and self.steps >= self._allowed:
            raise UserError(
                f"For {self.steps} steps the outputs of every group earned the same, so rewards "
                "teach nothing and the run is stopped. Take a reward that differs between outputs, "
                "a larger group, a higher temperature, or a start that succeeds at times."
            )
        if self._warned:
            return None
        self._warned = True
        return (
            f"warning: up to step {step} the outputs of every group earned the same: "
            "rewards teach nothing, only KL, entropy and labels move the model."
        )

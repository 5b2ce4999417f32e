"""What is logged of a run: means between two lines, silent rewards, and the memory in use."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from visgrpo.errors import UserError


class MetricMeans:
    """Running means of scalar metrics; its state is plain data and goes into the checkpoint.

    Sums are in float64. Those of tensors stay on their device until they are asked for: reading
    one waits until the device has computed it.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: Mapping[str, Tensor | float]) -> None:
        """Add one observation of each metric."""
        for name, value in metrics.items():
            number = value.detach().double() if isinstance(value, Tensor) else float(value)
            self._sums[name] = self._sums.get(name, 0.0) + number
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Return the means since the last call, and start anew."""
        means = {name: total / self._counts[name] for name, total in self._read().items()}
        self._sums, self._counts = {}, {}
        return means

    def copy(self) -> MetricMeans:
        """Return the means as they are now, without reading a tensor."""
        copied = MetricMeans()
        copied._sums, copied._counts = dict(self._sums), dict(self._counts)
        return copied

    def state(self) -> dict[str, dict[str, float]]:
        return {"sums": self._read(), "counts": dict(self._counts)}

    def restore(self, state: Mapping[str, Mapping[str, float]]) -> None:
        self._sums = dict(state["sums"])
        self._counts = {name: int(count) for name, count in state["counts"].items()}

    def _read(self) -> dict[str, float]:
        """Return the sums as numbers, fetched from each device at once."""
        tensors: dict[torch.device, dict[str, Tensor]] = {}
        for name, total in self._sums.items():
            if isinstance(total, Tensor):
                tensors.setdefault(total.device, {})[name] = total
        fetched: dict[str, float] = {}
        for of_device in tensors.values():
            fetched.update(
                zip(of_device, torch.stack(list(of_device.values())).tolist(), strict=True)
            )
        sums = {
            name: fetched[name] if isinstance(total, Tensor) else total
            for name, total in self._sums.items()
        }
        self._sums = dict(sums)
        return sums


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

"""What every benchmark shares: options, alternating timing, the machine, the table and the JSON."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from visgrpo.training.run_directory import versions as run_versions

Row = dict[str, Any]  # name, ratio, spread, memory_ratio, and whatever else the benchmark knows


def parser(description: str) -> argparse.ArgumentParser:
    """Return the options that every benchmark takes."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--quick", action="store_true", help="under two minutes, rougher")
    found.add_argument("--json", type=Path, metavar="PATH", help="write the rows to this file")
    found.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    return found


def machine() -> str:
    """Return the GPU's name, or the CPU's with its cores and the threads in use."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cores = len(_cpu_models())
    return f"{_cpu_models()[0]}, {cores} cores, {torch.get_num_threads()} threads used"


def versions(*peers: str) -> dict[str, str]:
    """Return the versions that a run records, and those of the packages compared with."""
    return {**run_versions(), **{name: version(name) for name in peers}}


@dataclass(frozen=True)
class Timings:
    """Seconds of each function in each round of an alternating measurement."""

    seconds: Mapping[str, Sequence[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, base: str) -> tuple[float, float]:
        """Return the median of the per-round ratios name/base, and half their interquartile range.

        Both times of a ratio come from one round, so that a slow spell of the machine cancels.
        """
        pairs = zip(self.seconds[name], self.seconds[base], strict=True)
        ratios = [ours / theirs for ours, theirs in pairs]
        if len(ratios) == 1:
            return ratios[0], 0.0
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return middle, (high - low) / 2


def alternate(functions: Mapping[str, Callable[[], object]], rounds: int) -> Timings:
    """Time the functions in turn, A, B, C, A, B, C, …, after one round of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            _wait_for_gpu()
            began = time.perf_counter()
            function()
            _wait_for_gpu()
            seconds[name].append(time.perf_counter() - began)
    return Timings(seconds)


def peak_memory_bytes() -> int:
    """Return the most memory this process has used: of the GPU, or resident on a CPU.

    Not getrusage's peak: a child process inherits that from its parent.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def print_table(rows: Sequence[Row]) -> None:
    """Print the rows as a Markdown table; None is shown as a dash."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    print(f"| {' | '.join(names)} |")
    print(f"|{'|'.join('---' if name == 'name' else '---:' for name in names)}|")
    for row in rows:
        print(f"| {' | '.join(_shown(row.get(name)) for name in names)} |")


def write_json(path: Path, rows: Sequence[Row]) -> None:
    """Write {"machine", "versions", "rows"}."""
    content = {"machine": machine(), "versions": versions(), "rows": list(rows)}
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _cpu_models() -> list[str]:
    """Return the model name of every core; Linux only, elsewhere what Python knows."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return found or [platform.processor() or platform.machine()]

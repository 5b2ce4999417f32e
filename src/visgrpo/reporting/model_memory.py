"""What the models of a run take in memory: policy, critic, reference, reward model, optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from visgrpo.reporting.labels import memory
from visgrpo.reporting.run_reader import Run

_PARTS = {
    "policy_bytes": "policy",
    "critic_bytes": "critic",
    "reference_bytes": "reference",
    "reward_model_bytes": "reward model",
    "optimizer_bytes": "optimiser",
}


@dataclass(frozen=True)
class MemoryPart:
    """One part, or their sum: its size written out, and its share of the sum."""

    name: str
    size: str
    share: float


def memory_parts(runs: Sequence[Run]) -> list[MemoryPart]:
    """Return the parts that ``summary.json`` lists under "memory", then their sum.

    Of several runs, the mean over those that have the list; empty where none has it. A part that
    a method does without is there with a dash: it is what sets the methods apart.
    """
    found = [run.summary["memory"] for run in runs if run.summary.get("memory")]
    if not found:
        return []
    sizes = {name: fmean(split.get(key, 0) for split in found) for key, name in _PARTS.items()}
    total = sum(sizes.values())
    parts = [_part(name, size, total) for name, size in sizes.items()]
    return [*parts, _part("together", total, total)]


def _part(name: str, size: float, total: float) -> MemoryPart:
    return MemoryPart(name, memory(size), size / total) if size else MemoryPart(name, "–", 0.0)

"""The table of docs/results/vlm.md, from the runs that run.sh made.

    python benchmarks/vlm/table.py runs/results/count

Accuracy on held-out images, greedy and sampled at temperature 1, and the mean absolute error of the
greedy answers that are numbers, in and out of distribution: mean ± standard deviation over seeds
(n - 1). "gain" is the difference in greedy accuracy to what a run started from, seed by seed; for
direct answers, to the first SFT. Seconds are of training steps.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

RUNS = {  # with the run that each is compared with
    "sft": ("SFT", "sft"),
    "exact": ("SFT + GRPO, exact reward", "sft"),
    "ordinal": ("SFT + GRPO, ordinal reward", "sft"),
    "random": ("SFT + GRPO, random reward", "sft"),
    "same-time": ("SFT, as long as GRPO", "sft"),
    "longer": ("SFT, as long again", "sft"),
    "direct": ("SFT, direct answers", "sft"),
    "longer-exact": ("SFT, as long again + GRPO, exact", "longer"),
    "longest": ("SFT, longer still", "longer"),
}
MEASURES = {
    "accuracy": "greedy",
    "sampled_accuracy": "sampled",
    "mean_absolute_error": "error",
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", type=Path)
    seeds = sorted(options.parse_args().folder.glob("seed-*"))
    print(f"{len(seeds)} seeds: mean ± standard deviation\n")
    heads = [f"{name}, {where}" for where in ("in", "out") for name in MEASURES.values()]
    print("| run | seconds |", " | ".join([*heads, "gain in", "gain out"]), "|")
    print("|---|" + "---:|" * (len(heads) + 3))
    for folder, (name, start) in RUNS.items():
        found = {seed.name: _summary(seed / folder) for seed in seeds if _is_there(seed / folder)}
        starts = {seed.name: _summary(seed / start) for seed in seeds if _is_there(seed / start)}
        if found:
            print(f"| {name} |", " | ".join(_cells(found, starts)), "|")


def _cells(found: dict[str, Any], starts: dict[str, Any]) -> list[str]:
    cells = [f"{fmean(run['seconds'] for run in found.values()):.0f}"]
    for where in ("in", "out"):
        for measure in MEASURES:
            cells.append(_spread([_measures(run, where).get(measure) for run in found.values()]))
    for where in ("in", "out"):
        gains = [
            _measures(run, where)["accuracy"] - _measures(starts[seed], where)["accuracy"]
            for seed, run in found.items()
        ]
        cells.append(_spread(gains, "+"))
    return cells


def _measures(run: dict[str, Any], where: str) -> dict[str, float]:
    return run["after"] if where == "in" else run["shifts"]["out"]["after"]


def _spread(values: list[float | None], sign: str = "") -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    spread = stdev(known) if len(known) > 1 else 0.0
    return f"{fmean(known):{sign}.3f} ± {spread:.3f}"


def _is_there(run: Path) -> bool:
    return (run / "summary.json").exists()


def _summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

"""Rewards against sampled tokens and against KL, from a sweep of `visgrpo language`.

    python benchmarks/language/curves.py runs/results/bard

The first table has, at each share of the run, the tokens drawn so far, the proxy (the reward that
is learned from), the gold reward (which nothing learns from) and KL to the start in nats per
completion, all on held-out prompts, mean ± standard deviation over seeds (n - 1). The second is
best-of-n. The third has what a run costs: time of its steps, peak memory of its process, and
weights and the optimiser's moments by what they are for.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

MEASURES = {"eval/reward": "proxy", "eval/gold_reward": "gold", "eval/kl": "KL"}
Entry = dict[str, Any]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("sweep", type=Path)
    options.add_argument("--points", type=int, default=5, help="rows for each method")
    given = options.parse_args()
    rows = json.loads((given.sweep / "sweep.json").read_text())["rows"]
    runs = {row["name"]: sorted((given.sweep / row["name"]).glob("seed-*")) for row in rows}
    finished = {
        name: [run for run in folders if (run / "summary.json").exists()]
        for name, folders in runs.items()
    }
    print_curves(finished, given.points)
    print_best_of_n(finished)
    print_costs(finished)


def print_curves(runs: dict[str, list[Path]], points: int) -> None:
    print(f"| method | step | tokens | {' | '.join(MEASURES.values())} |")
    print("|---|---|---|" + "---|" * len(MEASURES))
    for name, folders in runs.items():
        curves = [curve for folder in folders if (curve := evaluations(folder))]
        if not curves or len(curves[0]) < 2:
            continue
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        chosen = [steps[round(i * (len(steps) - 1) / (points - 1))] for i in range(points)]
        for step in dict.fromkeys(chosen):
            entries = [curve[step] for curve in curves]
            tokens = round(fmean(entry["sampled_tokens"] for entry in entries), -3)
            cells = [spread([entry[key] for entry in entries]) for key in MEASURES]
            print(f"| {name} | {step} | {tokens:,.0f} | {' | '.join(cells)} |")
    print()


def print_best_of_n(runs: dict[str, list[Path]]) -> None:
    summaries = [summary(folder) for folders in runs.values() for folder in folders]
    chosen = [each for each in summaries if each.get("best_of_n")]
    if not chosen:
        return
    print("| best of | tokens for one answer | proxy | gold | KL, at most |")
    print("|---|---|---|---|---|")
    each_answer = [
        each["sampled_tokens"] / each["samples"] / each["data"]["test"] for each in chosen
    ]
    for place, first in enumerate(chosen[0]["best_of_n"]):
        rows = [each["best_of_n"][place] for each in chosen]
        cells = [spread([row[key] for row in rows]) for key in ("reward", "gold_reward")]
        tokens = fmean(each_answer) * first["n"]
        print(f"| {first['n']} | {tokens:,.0f} | {' | '.join(cells)} | {first['kl']:.2f} |")
    print()


def print_costs(runs: dict[str, list[Path]]) -> None:
    print("| method | seconds | peak memory, MB | weights and moments, MB |")
    print("|---|---|---|---|")
    for name, folders in runs.items():
        found = [summary(folder) for folder in folders]
        if not found:
            continue
        peak = spread([each["peak_memory_bytes"] / 1e6 for each in found], digits=0)
        parts = ", ".join(
            f"{key.removesuffix('_bytes').replace('_', ' ')} {size / 1e6:.1f}"
            for key, size in found[0].get("memory", {}).items()
        )
        seconds = spread([each["seconds"] for each in found], digits=0)
        print(f"| {name} | {seconds} | {peak} | {parts} |")


def evaluations(folder: Path) -> dict[int, Entry]:
    """Return a run's evaluations by step, each with the tokens drawn by then."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found: dict[int, Entry] = {0: {"sampled_tokens": 0}}
    for entry in map(json.loads, lines):
        found.setdefault(entry["step"], {}).update(entry)
    return {
        step: entry
        for step, entry in found.items()
        if "eval/reward" in entry and "sampled_tokens" in entry
    }


def summary(folder: Path) -> Entry:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def spread(values: Sequence[float], digits: int = 3) -> str:
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{deviation}"


if __name__ == "__main__":
    main()

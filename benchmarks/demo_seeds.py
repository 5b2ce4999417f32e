"""`visgrpo demo` over seeds: what GRPO and supervised tuning gain on held-out digits.

    python benchmarks/demo_seeds.py [--seeds 5] [--quick] [--json PATH] [--output runs/demo-seeds]

``ratio`` is held-out accuracy / the start's, mean over seeds; ``spread`` its standard deviation;
``memory_ratio`` peak memory / the supervised run's (one process runs all, so about 1).
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch
from common import Row, parser, write_json

from visgrpo import DemoConfig, demo


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--seeds", type=int, default=5)
    arguments.add_argument("--output", type=Path, default=Path("runs/demo-seeds"))
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    outcomes = []
    for seed in range(1 if options.quick else options.seeds):
        began = time.perf_counter()
        runs = demo(DemoConfig(output=str(options.output / f"seed-{seed}"), seed=seed))
        outcomes.append((runs, time.perf_counter() - began))
    print("| seed | start | supervised | GRPO | gain of GRPO, points | seconds |")
    print("|---|---|---|---|---|---|")
    for seed, (runs, seconds) in enumerate(outcomes):
        start = runs["grpo"]["before"]["accuracy"]
        tuned = {name: runs[name]["after"]["accuracy"] for name in ("supervised", "grpo")}
        gain = 100 * (tuned["grpo"] - start)
        print(
            f"| {seed} | {start:.3f} | {tuned['supervised']:.3f} | {tuned['grpo']:.3f} "
            f"| {gain:+.1f} | {seconds:.0f} |"
        )
    rows: list[Row] = []
    for name in ("supervised", "grpo"):
        ratios = [
            runs[name]["after"]["accuracy"] / runs[name]["before"]["accuracy"]
            for runs, _ in outcomes
        ]
        memory = [
            runs[name]["peak_memory_bytes"] / runs["supervised"]["peak_memory_bytes"]
            for runs, _ in outcomes
        ]
        rows.append(
            {
                "name": name,
                "ratio": statistics.mean(ratios),
                "spread": statistics.stdev(ratios) if len(ratios) > 1 else 0.0,
                "memory_ratio": statistics.mean(memory),
            }
        )
    if options.json:
        write_json(options.json, rows)


if __name__ == "__main__":
    main()

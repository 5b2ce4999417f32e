"""`visgrpo demo` over seeds: what people's clicks teach by GRPO and by cross-entropy, on digits.

    python benchmarks/demo_seeds.py [--seeds 5] [--quick] [--json PATH] [--output runs/demo-seeds]

``ratio`` is held-out accuracy / the start's, mean over seeds; ``spread`` its standard deviation;
``memory_ratio`` peak memory / that with true labels' (one process runs all, so about 1).
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
    names = ("grpo", "clicked-labels", "true-labels")
    print("| seed | start | GRPO from clicks | cross-entropy on clicks | true labels | seconds |")
    print("|---|---|---|---|---|---|")
    for seed, (runs, seconds) in enumerate(outcomes):
        accuracies = [runs["grpo"]["before"], *(runs[name]["after"] for name in names)]
        written = " | ".join(f"{measured['accuracy']:.3f}" for measured in accuracies)
        print(f"| {seed} | {written} | {seconds:.0f} |")
    rows: list[Row] = []
    for name in names:
        ratios = [
            runs[name]["after"]["accuracy"] / runs[name]["before"]["accuracy"]
            for runs, _ in outcomes
        ]
        memory = [
            runs[name]["peak_memory_bytes"] / runs["true-labels"]["peak_memory_bytes"]
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

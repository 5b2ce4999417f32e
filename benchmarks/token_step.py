"""What a GRPO step of a small language model, or of one that sees, costs here and in TRL.

    python benchmarks/token_step.py [--cells all|text|images] [--quick] [--json PATH] [--threads 2]

Both take the same weights, prompts, images and reward, draw completions of one length (no end token
can be drawn), and learn from them once with KL and dropout off. They take turns in one process.
Before a cell is timed, both score the same completions: their losses and gradients must agree. Peak
memory is that of a fresh process that trains one of them alone. See token_sides.py for what is in a
rollout and in an update, and image_operations.py for the bounds.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import torch
from common import (
    Row,
    Timings,
    alternate,
    machine,
    parser,
    peak_memory_bytes,
    print_table,
    versions,
    write_json,
)
from image_cells import IMAGES, QUICK_IMAGES
from text_cells import QUICK_TEXT, TEXT
from token_sides import SIDES, Cell, Goal, SideName, Trl, Visgrpo, check_agreement

MEMORY_STEPS = 3  # 2 at least: the optimiser's state is there from the second on


class Memory(NamedTuple):
    """Most memory of a process, in bytes: in all, and above the most before its first step."""

    peak: int
    growth: int


def compare(cell: Cell, rounds: int) -> Row:
    """Return the row of a cell."""
    ours_takes, trl_takes = _memory_of(cell, "visgrpo"), _memory_of(cell, "trl")
    task = cell.task()
    bounds = cell.bounds(task)
    ours, trl = Visgrpo(task), Trl(task)
    check_agreement(ours, trl)
    parts = alternate(
        {
            "our rollout": ours.rollout,
            "our update": ours.update,
            "TRL rollout": trl.rollout,
            "TRL update": trl.update,
        },
        rounds,
    )
    steps = Timings({who: _steps_of(parts, who) for who in ("our", "TRL")})
    faster, spread = steps.ratio("TRL", "our")
    share = ours_takes.growth / trl_takes.growth
    return {
        "name": cell.name,
        **{f"{part} ms": 1000 * parts.median(part) for part in parts.seconds},
        "times as fast": faster,
        "spread": spread,
        **{f"bound {what}": bound for what, bound in bounds.items()},
        **({"share of the latter": faster / bounds["by operations"]} if bounds else {}),
        "our memory MB": ours_takes.growth / 1e6,
        "TRL memory MB": trl_takes.growth / 1e6,
        "memory share": share,
        "peak share": ours_takes.peak / trl_takes.peak,
        **_verdict(cell.goal(torch.get_num_threads()), faster, share),
    }


def main() -> None:
    """Measure, print and write."""
    options = parser((__doc__ or "").splitlines()[0])
    options.add_argument("--cells", choices=("all", "text", "images"), default="all")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    tables: list[list[Row]] = []
    for cells in _cells(chosen.cells, chosen.quick):
        tables.append([])
        for cell in cells:
            row = compare(cell, 2 if chosen.quick else 11)
            print(f"{cell.name}: {row['times as fast']:.3f}", file=sys.stderr, flush=True)
            tables[-1].append(row)
    print(machine())
    print(", ".join(f"{name} {number}" for name, number in versions("trl").items()))
    for rows in tables:
        print()
        print_table(rows)
    if chosen.json:
        write_json(chosen.json, [row for rows in tables for row in rows])


def _cells(which: str, quick: bool) -> list[Sequence[Cell]]:
    """Return the cells of each table."""
    text, images = (QUICK_TEXT, QUICK_IMAGES) if quick else (TEXT, IMAGES)
    tables: dict[str, list[Sequence[Cell]]] = {"text": [text], "images": [images]}
    return tables.get(which, [text, images])


def _steps_of(parts: Timings, who: str) -> list[float]:
    """Return the seconds of each round's rollout and update together."""
    pairs = zip(parts.seconds[f"{who} rollout"], parts.seconds[f"{who} update"], strict=True)
    return [rollout + update for rollout, update in pairs]


def _verdict(goal: Goal, faster: float, share: float) -> Row:
    words, met = f"≥ {goal.faster:.1f} ×", faster >= goal.faster
    if goal.share is not None:
        words += f", ≤ {goal.share:.2f} of the memory"
        met = met and share <= goal.share
    return {"goal": words, "verdict": "met" if met else "missed"}


def _memory_of(cell: Cell, side: SideName) -> Memory:
    """Measure a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measure_memory, cell, side, torch.get_num_threads()).result()


def _measure_memory(cell: Cell, side: SideName, threads: int) -> Memory:
    torch.set_num_threads(threads)
    stepper = SIDES[side](cell.task())
    before = peak_memory_bytes()
    for _ in range(MEMORY_STEPS):
        stepper.rollout()
        stepper.update()
    peak = peak_memory_bytes()
    return Memory(peak, peak - before)


if __name__ == "__main__":
    main()

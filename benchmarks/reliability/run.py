"""Kills, signals, damaged files, wrong words, …: how often something was lost, silent, a traceback.

    python benchmarks/reliability/run.py [PART …] [--scale 1] [--seed 0] [--folder DIR]
                                         [--json FILE] [--only NAME …]

Without parts, all of them. Everything is bounded and drawn from the seed; trials are children of
this process, which loads the libraries once. What went wrong is printed to standard error, a table
of all trials at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kills import PLAN, STORIES, kills, signals
from limits import bad_disk, scale_up, soak
from mistakes import READ, damage, wrong_lines
from pairs import one_of_two, two_are_one
from server import attacks
from trials import RUNS, Bench, Row, load_libraries

PARTS: dict[str, Callable[[Bench, float, int], list[Row]]] = {
    "kills": kills,
    "signals": signals,
    "words": wrong_lines,
    "damage": damage,
    "pair": one_of_two,
    "processes": two_are_one,
    "disk": bad_disk,
    "attacks": attacks,
    "soak": soak,
    "scale": scale_up,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="PART", default=[])
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of trials")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="work here, and leave it")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", default=(), help="these recipes, or damaged kinds")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="visgrpo-reliability-") as scratch:
        folder = (given.folder or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(folder)
        bench.only = given.only
        rows = measure(given.parts or list(PARTS), bench, given.scale, given.seed)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))
    sys.exit(any(row["wrong"] for row in rows))


def measure(parts: list[str], bench: Bench, scale: float, seed: int) -> list[Row]:
    """Run parts and print their table."""
    load_libraries()
    if set(parts) - {"words"}:
        bench.prepare([*STORIES.values(), *(run.words for run in RUNS.values()), *READ])
    (bench.folder / "plan.yaml").write_text(PLAN)
    rows: list[Row] = []
    for part in parts:
        begun = time.monotonic()
        found = PARTS[part](bench, scale, seed)
        rows += [{"part": part, **row} for row in found]
        print(f"{part}: {time.monotonic() - begun:.0f} s", file=sys.stderr)
    print("| part | what | trials | wrong | how they ended |\n|---|---|---:|---:|---|")
    for row in rows:
        print(f"| {' | '.join(str(row[key]) for key in HEAD)} |")
    return rows


HEAD = ("part", "what", "trials", "wrong", "how they ended")

if __name__ == "__main__":
    main()

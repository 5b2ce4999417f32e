"""The tables of docs/results/feedback.md, from the runs that run.sh made.

    python benchmarks/feedback/table.py runs/results/feedback

Measured on the 2,000 held-out images: accuracy by the true labels, and by them where people
disagree (the commonest answer has less than 0.9 of the votes); cross-entropy and KL from people's
distribution to the model's, in nats; ECE by the true labels. Mean ± standard deviation over seeds
(n - 1). "to supervised" is the difference in accuracy to supervised training, seed by seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

Measures = Mapping[str, float]
Runs = Mapping[str, Mapping[str, Measures]]  # by name of the run, then by seed

ROWS = {
    "start": "start",
    "supervised": "(a) true labels, cross-entropy",
    "votes-exact": "(b) vote share, exact",
    "votes-sampled": "(b) vote share, sampled",
    "log-votes-exact": "(b) log vote share + entropy, exact",
    "log-votes-sampled": "(b) log vote share + entropy, sampled",
    "log-votes-prior": "(b) the same, exact, prior of one vote for each label",
    "clicks-32-0.2": "(c) clicks, 32 events, noise 0.2",
    "positions-none": "(c) clicks in a list, uncorrected",
    "positions-auto": "(c) clicks in a list, corrected",
    "preferences-2-REWARD": "(d) preferences, 2 pairs, KL to the start",
    "preferences-2-PEOPLE": "(d) preferences, 2 pairs, entropy bonus",
    "preferences-8-REWARD": "(d) preferences, 8 pairs, KL to the start",
    "preferences-8-PEOPLE": "(d) preferences, 8 pairs, entropy bonus",
    "preferences-32-REWARD": "(d) preferences, 32 pairs, KL to the start",
    "preferences-32-PEOPLE": "(d) preferences, 32 pairs, entropy bonus",
    "biased-uncorrected": "(e) biased log, uncorrected",
    "biased-ratio": "(e) biased log, ratio",
    "biased-capped": "(e) biased log, ratio capped at 5 (cispo)",
    "biased-self-normalized": "(e) biased log, self-normalized",
    "biased-doubly-robust": "(e) biased log, doubly robust",
    "biased-averaged": "(e) biased log, clicks averaged for each label",
    "uniform-ratio": "(e) uniform log, ratio",
    "uniform-averaged": "(e) uniform log, clicks averaged for each label",
}
COLUMNS = {  # name, factor, digits
    "accuracy": ("accuracy %", 100, 1),
    "disagreed_accuracy": ("where people disagree %", 100, 1),
    "people_cross_entropy": ("cross-entropy to people", 1, 3),
    "people_kl": ("KL to people", 1, 3),
    "ece": ("ECE", 1, 3),
}
EVENTS, NOISES = ("2", "8", "32"), ("0", "0.2", "0.4")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("folder", type=Path)
    runs = read_runs(options.parse_args().folder)
    print(f"{len({seed for found in runs.values() for seed in found})} seeds\n")
    print("\n".join(main_table(runs)))
    for measure in ("accuracy", "people_kl"):
        print(f"\n{COLUMNS[measure][0]}, clicks\n")
        print("\n".join(clicks_table(runs, measure)))


def read_runs(folder: Path) -> Runs:
    """Read people.json of every run of every seed."""
    runs: dict[str, dict[str, Measures]] = {}
    for path in sorted(folder.glob("seed-*/*/people.json")):
        measures = json.loads(path.read_text(encoding="utf-8"))["model"]
        runs.setdefault(path.parent.name, {})[path.parent.parent.name] = measures
    return runs


def main_table(runs: Runs) -> list[str]:
    """One row for each run, in Markdown."""
    heads = [name for name, _, _ in COLUMNS.values()]
    lines = [_line(["", *heads, "to supervised"]), "|---|" + "---:|" * (len(heads) + 1)]
    for name, title in ROWS.items():
        if name in runs:
            cells = [cell(runs[name], measure) for measure in COLUMNS]
            lines.append(_line([title, *cells, _gain(runs[name], runs.get("supervised", {}))]))
    return lines


def clicks_table(runs: Runs, measure: str) -> list[str]:
    """One measure by events of an image (down) and noise (across), in Markdown."""
    lines = [_line(["events", *(f"noise {noise}" for noise in NOISES)]), "|---|" + "---:|" * 3]
    for events in EVENTS:
        found = [runs.get(f"clicks-{events}-{noise}", {}) for noise in NOISES]
        lines.append(_line([events, *(cell(seeds, measure) for seeds in found)]))
    return lines


def cell(seeds: Mapping[str, Measures], measure: str) -> str:
    """Mean ± standard deviation over seeds; a dash where there are none."""
    _, factor, digits = COLUMNS[measure]
    return _spread([factor * measures[measure] for measures in seeds.values()], f".{digits}f")


def _gain(seeds: Mapping[str, Measures], base: Mapping[str, Measures]) -> str:
    shared = seeds.keys() & base.keys()
    gains = [100 * (seeds[seed]["accuracy"] - base[seed]["accuracy"]) for seed in sorted(shared)]
    return _spread(gains, "+.1f")


def _spread(values: Sequence[float], form: str) -> str:
    if not values:
        return "–"
    spread = f" ± {stdev(values):{form.lstrip('+')}}" if len(values) > 1 else ""
    return f"{fmean(values):{form}}{spread}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()

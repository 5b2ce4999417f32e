"""One table from a sweep, with the learning rate of each cell chosen on validation data.

    python benchmarks/representation/table.py runs/results/frozen --columns epochs
    python benchmarks/representation/table.py runs/results/segmentation --measure miou

Rows are the sweep's variants, columns the values of some options. Where a cell has several learning
rates, the one with the best mean *validation* accuracy over the seeds is shown and named; test data
choose nothing. Numbers are per cent, mean ± standard deviation over seeds (n - 1).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from visgrpo.tasks.sweep import measure_of

Row = dict[str, Any]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("sweep", type=Path)
    options.add_argument("--columns", nargs="+", default=[], help="options that columns stand for")
    options.add_argument("--measure", nargs="+", default=["accuracy"])
    given = options.parse_args()
    rows = json.loads((given.sweep / "sweep.json").read_text())["rows"]
    for row in rows:
        finished = sorted((given.sweep / row["name"]).glob("seed-*/summary.json"))
        row["runs"] = [json.loads(path.read_text()) for path in finished]
    rows = [row for row in rows if row["runs"]]
    columns = list(dict.fromkeys(_value(row, given.columns) for row in rows))
    if given.columns:
        _print([", ".join(given.columns), *columns], _by_column(rows, columns, given))
    else:
        _print(["", *given.measure], _by_measure(rows, given.measure))


def _by_column(rows: Sequence[Row], columns: Sequence[str], given: Any) -> list[list[str]]:
    return [
        [
            variant,
            *(
                _cell(
                    [r for r in _of(rows, variant) if _value(r, given.columns) == column],
                    given.measure[0],
                )
                for column in columns
            ),
        ]
        for variant in dict.fromkeys(row["variant"] for row in rows)
    ]


def _by_measure(rows: Sequence[Row], measures: Sequence[str]) -> list[list[str]]:
    return [
        [variant, *(_cell(_of(rows, variant), measure) for measure in measures)]
        for variant in dict.fromkeys(row["variant"] for row in rows)
    ]


def _of(rows: Sequence[Row], variant: str) -> list[Row]:
    return [row for row in rows if row["variant"] == variant]


def _value(row: Row, options: Sequence[str]) -> str:
    """The values of some options; of a path, its last part."""
    return ", ".join(str(row["options"].get(option)).rsplit("/", 1)[-1] for option in options)


def _cell(candidates: Sequence[Row], measure: str) -> str:
    """The candidate with the best mean validation result, and its learning rate if there is one."""
    if not candidates:
        return "–"
    best = max(candidates, key=lambda row: fmean(run["validation"] for run in row["runs"]))
    found = [measure_of(run, measure) for run in best["runs"]]
    values = [100 * value for value in found if value is not None]
    if len(values) < len(best["runs"]):
        return "–"
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    rate = best["options"].get("learning-rate")
    named = f" ({rate:g})" if rate is not None and len(candidates) > 1 else ""
    return f"{fmean(values):.1f}{spread}{named}"


def _print(header: Sequence[str], body: Sequence[Sequence[str]]) -> None:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *body]
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))


if __name__ == "__main__":
    main()

"""Ten million events: seconds and memory of reading, checking, summarising and summing up.

    python benchmarks/feedback_events.py [--quick] [--json PATH] [--rows 10000000] [--folder DIR]

A log of impressions of 50,000 images and 100 labels with every column (position, propensity, dwell,
time, user), of which DuckDB makes the rows, as Parquet, CSV and SQLite. Each is worked on by a
process of its own, which imports no torch:

    summarize   what `visgrpo feedback summarize` does: reads, checks every row, sums up
    cells       what `visgrpo clip --feedback` does: reads, checks, finds images, makes the cells

``peak_mb`` is the most memory that the process had, in 10^6 bytes.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

IMAGES, LABELS = 50_000, 100
STEPS = ("summarize", "cells")
LOG = f"""
    SELECT 'photos/' || (hash(n) % {IMAGES}) || '.png' AS image,
        'class ' || (hash(n + 1) % {LABELS}) AS label,
        (hash(n + 2) % 10 < 3)::INTEGER AS clicked,
        1 + hash(n + 3) % 5 AS position,
        CASE WHEN hash(n + 2) % 10 < 3 THEN (hash(n + 4) % 60000) / 1000 END AS dwell,
        0.01 + (hash(n + 5) % 90) / 100 AS propensity,
        1700000000 + n AS time,
        'user ' || (hash(n + 6) % 100000) AS "user"
    FROM range($rows) AS r(n)
"""


def make(path: Path, rows: int) -> None:
    """Write the log in the format that the path's ending names."""
    import duckdb

    connection = duckdb.connect(config={"memory_limit": "1GB"})
    if path.suffix != ".db":
        connection.execute(f"COPY ({LOG.replace('$rows', str(rows))}) TO '{path}'")
        return
    found = connection.execute(LOG, {"rows": rows})
    columns = ", ".join(f'"{column[0]}"' for column in found.description)
    places = ", ".join("?" for _ in found.description)
    with closing(sqlite3.connect(path)) as store, store:
        store.execute(f"CREATE TABLE impressions ({columns})")
        while batch := found.fetchmany(100_000):
            store.executemany(f"INSERT INTO impressions VALUES ({places})", batch)


def measure(step: str, path: str) -> dict[str, float]:
    """Do one step in this process; return its seconds and the most memory it had."""
    from visgrpo.feedback.source.events import open_events
    from visgrpo.feedback.source.matching import match
    from visgrpo.feedback.summary import summary_of
    from visgrpo.feedback.worth.cells import impression_cells

    began = time.perf_counter()
    with open_events(path) as events:
        rows = events.rows
        if step == "summarize":
            summary_of(events)
        else:
            keys = [[f"photos/{n}.png"] for n in range(IMAGES)]
            impression_cells(match(events, keys, [f"class {n}" for n in range(LABELS)]))
    seconds = time.perf_counter() - began
    assert "torch" not in sys.modules
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in status if line.startswith("VmHWM:"))
    return {"rows": rows, "seconds": seconds, "peak_mb": int(peak.split()[1]) * 1024 / 1e6}


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(*sys.argv[2:])))
        return
    from common import parser, print_table, write_json  # brings torch, which is not measured

    options = parser(__doc__ or "")
    options.add_argument("--rows", type=int, help="events (default: ten million)")
    options.add_argument("--folder", type=Path, help="where the logs are written for a while")
    chosen = options.parse_args()
    rows = chosen.rows or (200_000 if chosen.quick else 10_000_000)
    table = []
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        for name in ("log.parquet", "log.csv", "log.db"):
            path = Path(folder) / name
            make(path, rows)
            for step in STEPS:
                call = [sys.executable, __file__, "--measure", step, str(path)]
                done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True)
                measured = json.loads(done.stdout)
                file_mb = path.stat().st_size / 1e6
                table.append({"name": f"{name} {step}", "file_mb": file_mb, **measured})
            path.unlink()
    print_table(table)
    if chosen.json:
        write_json(chosen.json, table)


if __name__ == "__main__":
    main()

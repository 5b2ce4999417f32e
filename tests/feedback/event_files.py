"""The same rows in every format that feedback is read from."""

from __future__ import annotations

import csv
import json
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from visgrpo.feedback.source.events import open_events

Columns = Mapping[str, Sequence[Any]]

IMPRESSIONS: Columns = {
    "image": ["a.png", "b.png", "<script>alert(1)</script>", "a.png", "a.png"],
    "label": ["cat", "dog", "cat", "dog", "'; DROP TABLE events; --"],
    "clicked": [True, False, True, False, True],
    "dwell": [0.1 + 0.2, None, 12.0, None, None],
    "position": [1, 2, 1, None, 3],
    "propensity": [0.5, 1 / 3, 0.25, 1.0, 1e-7],
    "time": [1.7e9 + n / 7 for n in range(5)],
    "user": ["ann", None, "bob", "ann", "zoë, o'hara"],
}


VOTES: Columns = {"image": ["a", "b"], "label": ["x", "y"], "votes": [1, 2]}


def rows_of(spec: str | Path, query: str | None = None) -> list[tuple[object, ...]]:
    """The rows of a table, as they are staged."""
    with open_events(str(spec), query=query) as events:
        return events.connection.execute("FROM events ORDER BY row").fetchall()


def damaged(whole: bytes, seed: int) -> bytes:
    """A file that was cut off, or has bytes that were changed, lost, put in, or made 0."""
    rng = np.random.default_rng((seed, len(whole)))
    start, length = int(rng.integers(len(whole))), int(rng.integers(1, 200))
    before, after = whole[:start], whole[start + length :]
    noise = rng.bytes(length)
    ways = (before, before + after, before + noise + after, before + bytes(length) + after,
            before + noise + whole[start:], before + b'"' + whole[start:])  # fmt: skip
    return ways[seed % len(ways)]


def write_csv(path: Path, columns: Columns) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def write_json_lines(path: Path, columns: Columns) -> Path:
    """A null is a key that is not there, as loggers write it."""
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    kept = [{key: value for key, value in row.items() if value is not None} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    return path


def write_parquet(path: Path, columns: Columns) -> Path:
    pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), path)
    return path


def write_sqlite(path: Path, columns: Columns, table: str = "log") -> Path:
    """Columns without a type, so that every value keeps its own."""
    names = ", ".join(f'"{name}"' for name in columns)
    places = ", ".join("?" for _ in columns)
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(f'CREATE TABLE "{table}" ({names})')
        connection.executemany(
            f'INSERT INTO "{table}" VALUES ({places})', zip(*columns.values(), strict=True)
        )
    connection.close()
    return path


WRITERS = {
    "log.csv": write_csv,
    "log.jsonl": write_json_lines,
    "log.parquet": write_parquet,
    "log.db": write_sqlite,
}

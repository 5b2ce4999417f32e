"""Data of two small tables: `python benchmarks/representation/prepare.py DATA OUT`.

DATA has cifar10/ and clothing/ (Clothing Co-Parsing with masks) as parquet files. OUT gets
cifar10-small/, every second training image and the first 3,000 test images, and garments/, the
clothing photos at 32 × 32 pixels with the list of which of the 20 commonest garments they show.
"""

from __future__ import annotations

import io
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

GARMENTS, SIDE = 20, 32


def main(data: Path, out: Path) -> None:
    small = out / "cifar10-small"
    small.mkdir(parents=True)
    for split, rows in (("train", range(0, 10_000, 2)), ("test", range(3_000))):
        table = pq.read_table(data / "cifar10" / f"{split}.parquet")
        pq.write_table(table.take(list(rows)), small / f"{split}.parquet")
    (out / "garments").mkdir()
    names = (data / "clothing" / "classes.txt").read_text().split()
    tables = {
        split: pq.read_table(data / "clothing" / f"{split}.parquet").to_pylist()
        for split in ("train", "test")
    }
    shown = {split: [_ids(row["mask"]) for row in rows] for split, rows in tables.items()}
    counts = Counter(k for ids in shown["train"] for k in ids)
    kept = {k for k, _ in counts.most_common(GARMENTS)}
    for split, rows in tables.items():
        columns = {
            "image": [_picture(row["image"]).convert("RGB").resize((SIDE, SIDE)) for row in rows],
            "labels": [[names[k] for k in ids if k in kept] for ids in shown[split]],
        }
        datasets.Dataset.from_dict(columns).to_parquet(out / "garments" / f"{split}.parquet")


def _picture(stored: Any) -> Image.Image:
    return Image.open(io.BytesIO(stored["bytes"] if isinstance(stored, dict) else stored))


def _ids(mask: Any) -> list[int]:
    """The garments in a mask; 0 is the background."""
    return sorted(set(np.unique(np.asarray(_picture(mask))).tolist()) - {0})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

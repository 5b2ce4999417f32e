"""Write the first K classes of Tiny ImageNet as data sets of their own.

    python benchmarks/representation/class_subsets.py ../shared/data/tiny_imagenet runs/data

makes runs/data/tiny-2, tiny-10, tiny-100 and tiny-200, each with train and val parquet files.
"""

from __future__ import annotations

import sys
from pathlib import Path

import datasets

SIZES = (2, 10, 100, 200)
SPLITS = {"train": "train.parquet", "validation": "val.parquet"}


def main(source: Path, target: Path) -> None:
    for split, file in SPLITS.items():
        table = datasets.load_dataset("parquet", data_files=str(source / file), split="train")
        names = table.features["label"].names
        for size in SIZES:
            rows = [row for row, label in enumerate(table["label"]) if label < size]
            kinds = datasets.ClassLabel(names=names[:size])
            part = table.select(rows).cast_column("label", kinds)
            folder = target / f"tiny-{size}"
            folder.mkdir(parents=True, exist_ok=True)
            part.to_parquet(str(folder / file))
            print(folder, split, len(part))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""Write the first K classes of a data set of parquet files as a data set of its own.

    python benchmarks/representation/class_subsets.py ../shared/data/cifar10 2 runs/data
    python benchmarks/representation/class_subsets.py ../shared/data/tiny_imagenet 100 200 runs/data

makes runs/data/cifar10-2, runs/data/tiny_imagenet-100 and runs/data/tiny_imagenet-200.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import datasets


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("source", type=Path)
    options.add_argument("classes", type=int, nargs="+")
    options.add_argument("target", type=Path)
    given = options.parse_args()
    for file in sorted(given.source.glob("*.parquet")):
        table = datasets.load_dataset("parquet", data_files=str(file), split="train")
        if "image" not in table.features:
            continue
        for size in given.classes:
            rows = [row for row, label in enumerate(table["label"]) if label < size]
            kinds = datasets.ClassLabel(names=table.features["label"].names[:size])
            part = table.select(rows).cast_column("label", kinds)
            folder = given.target / f"{given.source.name}-{size}"
            folder.mkdir(parents=True, exist_ok=True)
            part.to_parquet(str(folder / file.name))
            print(f"{folder / file.name}: {len(part)} rows")


if __name__ == "__main__":
    main()

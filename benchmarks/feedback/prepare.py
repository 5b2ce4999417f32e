"""Make the data of docs/results/feedback.md from CIFAR-10 and people's votes on its test images.

    python benchmarks/feedback/prepare.py ../shared/data/cifar10 runs/data/feedback

The source holds train.parquet and test.parquet (image, label) and human_votes.parquet (image_id,
label, votes; image_id is the row of test.parquet), which is CIFAR-10H: Peterson et al., "Human
uncertainty makes classification more robust", ICCV 2019. The target gets

    captions/   the training set: what the start is pre-trained on; its test split is the one below
    images/     the *test* set, which people voted on: 8,000 to train on, 2,000 held out
    votes.parquet, train-votes.parquet    image, label, votes: of all 10,000, and of the 8,000

Images are known by the column image_id, which is the column image of the votes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, load_dataset


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("source", type=Path)
    options.add_argument("target", type=Path)
    options.add_argument("--held-out", type=int, default=2000, help="images (default: 2000)")
    options.add_argument("--seed", type=int, default=0, help="of the split (default: 0)")
    given = options.parse_args()

    judged = _images(given.source / "test.parquet")
    judged = judged.add_column("image_id", [str(row) for row in range(len(judged))])
    train_rows, test_rows = split_rows(len(judged), given.held_out, given.seed)
    train, test = judged.select(train_rows), judged.select(test_rows)
    votes = _votes(given.source / "human_votes.parquet")
    train_votes = votes.filter(pc.is_in(votes["image"], pa.array(train["image_id"])))

    _write(train, given.target / "images" / "train.parquet")
    _write(test, given.target / "images" / "test.parquet")
    _write(_images(given.source / "train.parquet"), given.target / "captions" / "train.parquet")
    _write(test.remove_columns("image_id"), given.target / "captions" / "test.parquet")
    for table, name in ((votes, "votes"), (train_votes, "train-votes")):
        pq.write_table(table, given.target / f"{name}.parquet")
        print(f"{given.target / name}.parquet: {len(table)} rows")


def split_rows(images: int, held_out: int, seed: int) -> tuple[list[int], list[int]]:
    """Rows to train on and rows held out, each in their original order."""
    order = np.random.default_rng((seed, 0)).permutation(images)
    return sorted(order[held_out:].tolist()), sorted(order[:held_out].tolist())


def _images(path: Path) -> Dataset:
    return load_dataset("parquet", data_files=str(path), split="train")


def _votes(path: Path) -> pa.Table:
    source = pq.read_table(path)
    columns = {
        "image": source["image_id"].cast(pa.string()),
        "label": source["label"],
        "votes": source["votes"],
    }
    return pa.table(columns)


def _write(images: Dataset, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images.to_parquet(str(path))
    print(f"{path}: {len(images)} rows")


if __name__ == "__main__":
    main()

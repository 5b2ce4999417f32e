"""Smaller clothing photos, fewer classes: `python benchmarks/masks/prepare.py DATA OUT [HEIGHT]`.

DATA holds clothing photos as parquet files of images and masks with 59 classes (Clothing
Co-Parsing, Yang et al. 2014). The 15 commonest classes and the background stay; pixels of others
have no label (255). Pictures are made HEIGHT (96) × two thirds of it, which keeps their shape.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

CLASSES = 16


def main(data: Path, out: Path, height: int = 96) -> None:
    size = (height * 2 // 3, height)
    names = (data / "classes.txt").read_text().split()
    splits = {name: pd.read_parquet(data / f"{name}.parquet") for name in ("train", "test")}
    counts_K = sum(
        np.bincount(mask_of(row).ravel(), minlength=256) for row in splits["train"]["mask"]
    )
    kept = [0, *(k for k in np.argsort(-counts_K)[:CLASSES] if k != 0)][:CLASSES]
    new_id = np.full(256, 255, dtype=np.uint8)
    new_id[kept] = range(CLASSES)
    for split, table in splits.items():
        for row, (image, mask) in enumerate(zip(table["image"], table["mask"], strict=True)):
            picture = Image.open(io.BytesIO(image["bytes"])).convert("RGB")
            ids = Image.fromarray(new_id[mask_of(mask)])
            for kind, made in (
                ("images", picture.resize(size, Image.Resampling.BILINEAR)),
                ("masks", ids.resize(size, Image.Resampling.NEAREST)),
            ):
                folder = out / split / kind
                folder.mkdir(parents=True, exist_ok=True)
                made.save(folder / f"{row:04d}.png")
    (out / "classes.txt").write_text("\n".join(names[k] for k in kept) + "\n")


def mask_of(row: dict[str, bytes]) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(row["bytes"])))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))

"""Small noisy pictures of one square on a background, with their masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pictures_of_shapes import COLOURS
from PIL import Image

CLASSES = ("background", "apple", "leaf")
IGNORED = 255
SIDE, SQUARE = 16, 8
COUNTS = {"train": 24, "val": 8, "test": 9}


def pair(label: int, seed: int) -> tuple[Image.Image, np.ndarray]:
    """16 × 16 pixels: a square of 8, a class by its colour, and a column without a label."""
    rng = np.random.default_rng([label, seed])
    top, left = rng.integers(0, SIDE - SQUARE, size=2)
    ids_HW = np.zeros((SIDE, SIDE), dtype=np.uint8)
    ids_HW[top : top + SQUARE, left : left + SQUARE] = label
    colours = np.array([(60, 60, 60), *COLOURS[:2]])
    pixels_HW3 = np.clip(colours[ids_HW] + rng.normal(0, 30, size=(SIDE, SIDE, 3)), 0, 255)
    ids_HW[:, -1] = IGNORED
    return Image.fromarray(pixels_HW3.astype(np.uint8)), ids_HW


def write_masks(folder: Path, counts: dict[str, int] | None = None) -> Path:
    """Write folder/SPLIT/{images,masks}/NUMBER.png and classes.txt; return the folder."""
    seed = 0
    for split, count in (counts or COUNTS).items():
        for what in ("images", "masks"):
            (folder / split / what).mkdir(parents=True)
        for number in range(count):
            seed += 1
            image, ids_HW = pair(1 + number % 2, seed)
            image.save(folder / split / "images" / f"{number:03d}.png")
            Image.fromarray(ids_HW).save(folder / split / "masks" / f"{number:03d}.png")
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return folder

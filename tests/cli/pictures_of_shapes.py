"""Small noisy pictures of three classes that differ in colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("apple", "leaf", "sky")
COLOURS = ((200, 60, 60), (60, 200, 60), (60, 60, 200))
SIDE = 16
PER_CLASS = {"train": 16, "val": 6, "test": 6}


def picture(label: int, seed: int) -> Image.Image:
    """16 × 16 pixels around the colour of a class."""
    noise = np.random.default_rng([label, seed]).normal(0, 60, size=(SIDE, SIDE, 3))
    pixels_HW3 = np.clip(noise + COLOURS[label], 0, 255)
    return Image.fromarray(pixels_HW3.astype(np.uint8))


def write_pictures(folder: Path, per_class: dict[str, int] | None = None) -> Path:
    """Write folder/SPLIT/CLASS/NUMBER.png and return the folder."""
    seed = 0
    for split, count in (per_class or PER_CLASS).items():
        for label, name in enumerate(CLASSES):
            place = folder / split / name
            place.mkdir(parents=True)
            for number in range(count):
                seed += 1
                picture(label, seed).save(place / f"{number:03d}.png")
    return folder

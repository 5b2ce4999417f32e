"""Every small data set that tests read from disk, made by rules from a seed."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 16
CLASSES = ("apple", "leaf", "sky")
COLOURS = ((200, 60, 60), (60, 200, 60), (60, 60, 200))
PER_CLASS = {"train": 16, "val": 6, "test": 6}

MASK_CLASSES = ("background", "apple", "leaf")
IGNORED = 255
MASKS = {"train": 24, "val": 8, "test": 9}

COUNT_SIDE, COUNT_CELL = 56, 28
SQUARES = {"red": (220, 30, 30), "blue": (30, 30, 220)}


def picture(label: int, seed: int) -> Image.Image:
    """16 × 16 noisy pixels around the colour of a class."""
    noise = np.random.default_rng([label, seed]).normal(0, 60, size=(SIDE, SIDE, 3))
    pixels_HW3 = np.clip(noise + COLOURS[label], 0, 255)
    return Image.fromarray(pixels_HW3.astype(np.uint8))


def write_pictures(folder: Path, per_class: Mapping[str, int] = PER_CLASS) -> Path:
    """Write folder/SPLIT/CLASS/NUMBER.png and return the folder."""
    seed = 0
    for split, count in per_class.items():
        for label, name in enumerate(CLASSES):
            place = folder / split / name
            place.mkdir(parents=True)
            for number in range(count):
                seed += 1
                picture(label, seed).save(place / f"{number:03d}.png")
    return folder


def masked_picture(label: int, seed: int) -> tuple[Image.Image, np.ndarray]:
    """16 × 16 pixels: a square of 8, a class by its colour, and a column without a label."""
    rng = np.random.default_rng([label, seed])
    top, left = rng.integers(0, SIDE // 2, size=2)
    ids_HW = np.zeros((SIDE, SIDE), dtype=np.uint8)
    ids_HW[top : top + SIDE // 2, left : left + SIDE // 2] = label
    colours = np.array([(60, 60, 60), *COLOURS[:2]])
    pixels_HW3 = np.clip(colours[ids_HW] + rng.normal(0, 30, size=(SIDE, SIDE, 3)), 0, 255)
    ids_HW[:, -1] = IGNORED
    return Image.fromarray(pixels_HW3.astype(np.uint8)), ids_HW


def write_masks(folder: Path, counts: Mapping[str, int] = MASKS) -> Path:
    """Write folder/SPLIT/{images,masks}/NUMBER.png and classes.txt; return the folder."""
    seed = 0
    for split, count in counts.items():
        for what in ("images", "masks"):
            (folder / split / what).mkdir(parents=True)
        for number in range(count):
            seed += 1
            image, ids_HW = masked_picture(1 + number % 2, seed)
            image.save(folder / split / "images" / f"{number:03d}.png")
            Image.fromarray(ids_HW).save(folder / split / "masks" / f"{number:03d}.png")
    (folder / "classes.txt").write_text("\n".join(MASK_CLASSES) + "\n")
    return folder


def write_counts(folder: Path, rows: int = 60, *, colour: str = "red", seed: int = 0) -> Path:
    """Write rows of R1-V's schema with a trace; return the .jsonl file.

    A picture has two by two cells with a square or none in each; the trace is what every cell
    holds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for row in range(rows):
        cells = np.random.default_rng([seed, row]).integers(2, size=4)
        _squares(cells, colour).save(folder / f"{row}.png")
        line = {
            "image_path": f"{row}.png",
            "question": "How many squares are there in the image?",
            "ground_truth": int(cells.sum()),
            "thinking": " ".join(map(str, cells)),
        }
        lines.append(json.dumps(line))
    file = folder / "counts.jsonl"
    file.write_text("\n".join(lines))
    return file


def _squares(cells: np.ndarray, colour: str) -> Image.Image:
    image = Image.new("RGB", (COUNT_SIDE, COUNT_SIDE), "white")
    for place, filled in enumerate(cells.tolist()):
        if filled:
            top, left = (COUNT_CELL * part + 6 for part in divmod(place, 2))
            image.paste(SQUARES[colour], (left, top, left + 16, top + 16))
    return image


def write_text(file: Path) -> Path:
    """Write about 100 paragraphs of Python's documentation."""
    from pydoc_data.topics import topics

    parts = topics["string-methods"].split("\n\n")
    file.write_text("\n\n".join(part for part in parts if len(part.strip()) > 40))
    return file


def write_table(file: Path, header: str, rows: Sequence[Sequence[Any]]) -> Path:
    """Write a CSV file; the header's words are its columns."""
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header.split())
        writer.writerows(rows)
    return file

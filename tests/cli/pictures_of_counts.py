"""Write a table of pictures with squares to count, and the steps of counting them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIDE, CELL = 56, 28
COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}


def write_counts(folder: Path, rows: int = 60, *, colour: str = "red", seed: int = 0) -> Path:
    """Write rows of R1-V's schema with a trace; return the .jsonl file.

    A picture has two by two cells with a square or none in each; the trace is what every cell
    holds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for row in range(rows):
        cells = np.random.default_rng([seed, row]).integers(2, size=4)
        _draw(cells, colour).save(folder / f"{row}.png")
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


def _draw(cells: np.ndarray, colour: str) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), "white")
    for place, filled in enumerate(cells.tolist()):
        if filled:
            top, left = (CELL * part + 6 for part in divmod(place, 2))
            image.paste(COLOURS[colour], (left, top, left + 16, top + 16))
    return image

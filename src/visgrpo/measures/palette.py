"""One colour for each class of a segmentation, the same in every run and on every page."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image

FIRST_CLASS = (45, 45, 45)
"""Class 0 is the background in most data sets: dark, so that the others stand out."""
NO_CLASS = (255, 255, 255)
"""Pixels without a label."""
ROOT = 1.2207440846057596
"""The real root above 1 of x⁴ = x + 1, which spreads points evenly in three dimensions."""


def class_colours(count: int) -> np.ndarray:
    """Return distinct colours for `count` classes, (count, 3) uint8.

    Hue, lightness and saturation of class k are the fractional parts of k/x, k/x² and k/x³
    (Roberts 2018, "The unreasonable effectiveness of quasirandom sequences"): hue alone does not
    tell a hundred classes apart. The colour of a class does not depend on how many follow it.
    """
    colours = [FIRST_CLASS, *(_colour(k) for k in range(1, count))]
    return np.array(colours[:count], dtype=np.uint8).reshape(count, 3)


def hex_palette(classes: Sequence[str]) -> dict[str, str]:
    """Return {class: "#rrggbb"}, the content of a run's palette.json."""
    colours = class_colours(len(classes)).tolist()
    return {
        name: f"#{red:02x}{green:02x}{blue:02x}"
        for name, (red, green, blue) in zip(classes, colours, strict=True)
    }


def colour_mask(ids_HW: np.ndarray, classes: Sequence[str]) -> Image.Image:
    """Paint a mask of class ids (H, W); ids that are no class (an ignore index) are white."""
    K = len(classes)
    colours = np.vstack([class_colours(K), np.array([NO_CLASS], dtype=np.uint8)])
    known_HW = (ids_HW >= 0) & (ids_HW < K)
    return Image.fromarray(colours[np.where(known_HW, ids_HW, K)])


def _colour(k: int) -> tuple[int, int, int]:
    hue, light, strong = ((k / ROOT**power) % 1 for power in (1, 2, 3))
    # Neither so light nor so dark that it is taken for "no class" or for class 0.
    red, green, blue = colorsys.hls_to_rgb(hue, 0.35 + 0.43 * light, 0.45 + 0.5 * strong)
    return round(255 * red), round(255 * green), round(255 * blue)

"""From stored bytes to an RGB image, or to a message that names the image."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from visgrpo.data.dataset import ImageDataset
from visgrpo.errors import UserError

# What pillow's decoders raise on damaged files, by format.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return `image` upright and in RGB.

    EXIF rotation is applied, transparency is laid on white (as transformers' processors do), and
    16-bit grey is scaled to 8 bits, where pillow alone would clip it.
    """
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, layer)
    return image.convert("RGB")


def decode(
    stored: Any,
    where: str,
    mend: str = "replace it, or leave such images out with skip_bad_images",
) -> Image.Image:
    """Return the RGB image held by `stored`.

    Args:
        stored: a path, encoded bytes, an open image, or the `{"bytes", "path"}` pair of a table.
        where: what to call the image in a message.
        mend: what the message advises when the image is unreadable.

    Raises:
        UserError: if the image cannot be read.
    """
    if isinstance(stored, dict):
        # A table may hold the bytes, or only say where they are.
        stored = stored["bytes"] if stored.get("bytes") is not None else stored.get("path")
    try:
        if isinstance(stored, Image.Image):
            return to_rgb(stored.copy())
        if isinstance(stored, bytes):
            with Image.open(io.BytesIO(stored)) as image:
                return to_rgb(image)
        if isinstance(stored, str | Path):
            with Image.open(stored) as image:
                return to_rgb(image)
    except _UNREADABLE as error:
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise UserError(f"{where} cannot be read ({reason}); {mend}.") from error
    raise UserError(
        f"{where} holds {type(stored).__name__}, not an image; name another image column."
    )


def without_bad_images(dataset: ImageDataset, threads: int = 8) -> ImageDataset:
    """Return `dataset` without its unreadable images, listed in `skipped`.

    Every image is decoded once.

    Raises:
        UserError: if no image can be read.
    """
    with ThreadPoolExecutor(threads) as pool:
        problems = list(pool.map(_problem, [dataset.images] * len(dataset), range(len(dataset))))
    good = [row for row, problem in enumerate(problems) if problem is None]
    bad = tuple(problem for problem in problems if problem is not None)
    if not good:
        raise UserError(f"{dataset.name}: none of its {len(dataset)} images can be read: {bad[0]}")
    return replace(dataset.subset(good), skipped=bad) if bad else dataset


def _problem(images: Sequence[Image.Image], row: int) -> str | None:
    try:
        images[row]
    except UserError as error:
        return str(error)
    return None

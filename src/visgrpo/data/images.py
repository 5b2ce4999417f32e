"""From stored bytes to an image or a mask, or to a message that names it."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from visgrpo.errors import UserError

RASTER = (
    "BMP",
    "GIF",
    "ICO",
    "JPEG",
    "JPEG2000",
    "PNG",
    "PPM",
    "TGA",
    "TIFF",
    "WEBP",
)
"""What is opened, whatever a file is called: pillow hands PostScript to another program."""

MOST_PIXELS = 2**27
"""A picture of more is refused before it is decoded: 134 million take 400 MB in RGB."""

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


def encoded(stored: Any) -> Any:
    """Return the bytes or path in the `{"bytes", "path"}` pair of a table; else `stored` itself."""
    if isinstance(stored, dict):
        # A table may hold the bytes, or only say where they are.
        return stored["bytes"] if stored.get("bytes") is not None else stored.get("path")
    return stored


def open_picture(stored: bytes | str | Path) -> Image.Image:
    """Open a picture of encoded bytes, or of the file at a path; its pixels are not read yet."""
    with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
        source = io.BytesIO(stored) if isinstance(stored, bytes) else stored
        image = Image.open(source, formats=RASTER)
    if image.width * image.height > MOST_PIXELS:
        image.close()
        raise ValueError(
            f"{image.width} × {image.height} pixels, of which {MOST_PIXELS:,} are the most"
        )
    return image


@contextmanager
def naming_the_unreadable(where: str, mend: str) -> Iterator[None]:
    """Turn what pillow raises inside on a damaged picture into a message that names it.

    Raises:
        UserError: if the picture cannot be read.
    """
    try:
        yield
    except _UNREADABLE as error:
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise UserError(f"{where} cannot be read ({reason}); {mend}.") from error


def decode(
    stored: Any,
    where: str,
    mend: str = "replace it, or leave such images out with --skip-bad-images",
) -> Image.Image:
    """Return the RGB image held by `stored`.

    Args:
        stored: a path, encoded bytes, an open image, or the `{"bytes", "path"}` pair of a table.
        where: what to call the image in a message.
        mend: what the message advises when the image is unreadable.

    Raises:
        UserError: if the image cannot be read.
    """
    stored = encoded(stored)
    with naming_the_unreadable(where, mend):
        if isinstance(stored, Image.Image):
            return to_rgb(stored.copy())
        if isinstance(stored, bytes | str | Path):
            with open_picture(stored) as image:
                return to_rgb(image)
    raise UserError(
        f"{where} holds {type(stored).__name__}, not an image; name another image column."
    )


def decode_mask(stored: Any, where: str) -> Image.Image:
    """Return the picture held by `stored` as it is: unlike an image it must not become RGB.

    Args:
        stored: a path, encoded bytes, or the `{"bytes", "path"}` pair of a table.
        where: what to call the mask in a message.

    Raises:
        UserError: if the mask cannot be read.
    """
    stored = encoded(stored)
    if not isinstance(stored, bytes | str | Path):
        raise UserError(
            f"{where} holds {type(stored).__name__}, not a picture; name another mask_column or "
            "drop the row."
        )
    mend = "replace it, or leave such rows out with --skip-bad-images"
    with naming_the_unreadable(where, mend), open_picture(stored) as mask:
        mask.load()
        return mask

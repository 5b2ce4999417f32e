"""From stored bytes to a mask in its own mode, or to a message that names the mask."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image

from visgrpo.data.decoding import _UNREADABLE
from visgrpo.errors import UserError


def decode_mask(stored: Any, where: str) -> Image.Image:
    """Return the picture held by `stored` as it is: unlike an image it must not become RGB.

    Args:
        stored: a path, encoded bytes, or the `{"bytes", "path"}` pair of a table.
        where: what to call the mask in a message.

    Raises:
        UserError: if the mask cannot be read.
    """
    if isinstance(stored, dict):
        stored = stored["bytes"] if stored.get("bytes") is not None else stored.get("path")
    if not isinstance(stored, bytes | str | Path):
        raise UserError(
            f"{where} holds {type(stored).__name__}, not a picture; name another mask_column or "
            "drop the row."
        )
    try:
        with Image.open(io.BytesIO(stored) if isinstance(stored, bytes) else stored) as mask:
            mask.load()
            return mask
    except _UNREADABLE as error:
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise UserError(
            f"{where} cannot be read ({reason}); replace it, or leave such rows out with "
            "skip_bad_images."
        ) from error

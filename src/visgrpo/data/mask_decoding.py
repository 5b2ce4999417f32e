"""From stored bytes to a mask in its own mode, or to a message that names the mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from visgrpo.data.decoding import encoded, naming_the_unreadable, open_picture
from visgrpo.errors import UserError


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

"""Images as the page shows them: small enough to send, upright, kept for a while."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

from PIL import Image

LONGEST_SIDE = 1024
_KEPT = 64
# Up to this size PNG is as small as JPEG, and shows every pixel as it is.
_PNG_SIDE = 128


@dataclass(frozen=True)
class Picture:
    """An encoded image and its media type."""

    content: bytes
    kind: str


class Pictures:
    """The pictures of a data set's images; the last few are kept. Safe between threads.

    Args:
        images: upright RGB images, decoded on access, which raises UserError on a damaged one.
    """

    def __init__(self, images: Sequence[Image.Image]) -> None:
        self._images = images
        self._kept: OrderedDict[int, Picture] = OrderedDict()
        self._lock = Lock()

    def __getitem__(self, row: int) -> Picture:
        with self._lock:
            if row in self._kept:
                self._kept.move_to_end(row)
                return self._kept[row]
        picture = encode(self._images[row])
        with self._lock:
            self._kept[row] = picture
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return picture


def encode(image: Image.Image) -> Picture:
    """Return an RGB image as a file for the page, of at most 1024 pixels on a side."""
    shrunk = image.copy()
    shrunk.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    kind = "png" if max(shrunk.size) <= _PNG_SIDE else "jpeg"
    buffer = io.BytesIO()
    shrunk.save(buffer, kind, quality=90)
    return Picture(buffer.getvalue(), f"image/{kind}")

"""What a file is, and not what it is called, decides whether it is opened."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from visgrpo.data.images import MOST_PIXELS, decode, decode_mask
from visgrpo.errors import UserError

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def png_of(width: int, height: int) -> bytes:
    """The header of a grey PNG, and nothing of its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("read", [decode, decode_mask])
def test_postscript_is_no_image_whatever_its_name(tmp_path: Path, read: Any) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(POSTSCRIPT)
    with pytest.raises(UserError, match=r"row 3 cannot be read \(not an image\)"):
        read(file, "row 3")


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    side = 12_000  # beyond 178 million pixels pillow refuses by itself
    assert side * side > MOST_PIXELS
    with pytest.raises(UserError, match="12000 × 12000 pixels, of which 134,217,728 are the most"):
        decode(png_of(side, side), "row 0")


def test_usual_formats_open(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "gif", "bmp", "webp", "tiff", "ppm"):
        Image.new("RGB", (4, 3), "red").save(tmp_path / f"a.{suffix}")
        assert decode(tmp_path / f"a.{suffix}", suffix).size == (4, 3)

"""Turn figures and pictures into parts of one offline page, and write the page in one piece."""

from __future__ import annotations

import base64
import io
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from visgrpo.metrics import number, signed
from visgrpo.reporting.figures import DARK, LIGHT, Theme, png_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST_SIDE = 384
# Below this size enlarged pixels stay square, and PNG is smaller than JPEG.
PIXEL_ART_SIDE = 96
# What pillow raises on a damaged picture, or on one of too many pixels.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


@dataclass(frozen=True)
class Plot:
    """One plot in both themes, as data URIs; the browser picks by prefers-color-scheme.

    `values` are rows of a place and its values, for those who want numbers.
    """

    alt: str
    light: str
    dark: str
    values: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class Picture:
    """One sample image as a data URI; ``uri`` is None when the file cannot be shown."""

    path: str
    uri: str | None
    pixelated: bool = False


def both_themes(alt: str, draw: Callable[[Theme], Figure], light: bytes | None = None) -> Plot:
    """Render ``draw`` for light and for dark pages; ``light`` is the PNG if it is drawn already."""
    light = light or png_bytes(draw(LIGHT))
    dark = png_bytes(draw(DARK))
    return Plot(alt=alt, light=_data_uri(light, "png"), dark=_data_uri(dark, "png"))


def picture(run_path: Path, relative: str) -> Picture:
    """Load a sample's image, shrunk for the page.

    A file that is missing, damaged or outside the run directory gives a Picture without ``uri``,
    and the page says so: a report on a run is worth having even if an image was deleted.
    """
    image = open_picture(run_path, relative)
    return Picture(relative, None) if image is None else embed(relative, image)


def open_picture(run_path: Path, relative: str) -> Image.Image | None:
    """Open an image of a run directory, None where `picture` would have nothing to show."""
    file = (run_path / relative).resolve()
    # A run directory may come from someone else: never inline files that lie outside it, nor hand
    # a program what is no picture of ours, which are all PNG.
    if not file.is_relative_to(run_path.resolve()):
        return None
    try:
        with warnings.catch_warnings(), Image.open(file, formats=["PNG"]) as opened:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return opened.convert("RGB")
    except _DAMAGE:
        return None


def embed(relative: str, image: Image.Image, exact: bool = False) -> Picture:
    """Shrink an opened image for the page.

    Args:
        exact: Keep colours as they are, as those of a mask must be: no blending, no JPEG.
    """
    sharp = exact or max(image.size) <= PIXEL_ART_SIDE
    blend = Image.Resampling.NEAREST if exact else Image.Resampling.BICUBIC
    shrunk = image.copy()
    shrunk.thumbnail((LONGEST_SIDE, LONGEST_SIDE), blend)
    buffer = io.BytesIO()
    kind = "png" if sharp else "jpeg"
    shrunk.save(buffer, kind, quality=88)
    return Picture(relative, _data_uri(buffer.getvalue(), kind), pixelated=sharp)


def render(template: str, **values: Any) -> str:
    """Fill a packaged template. Every value is escaped; an undefined name is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("visgrpo.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "signed": signed}
    return environment.get_template(template).render(light=LIGHT, dark=DARK, **values)


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"

"""From what is stored to an image or a mask, or to a message that names it; images of rows."""

from __future__ import annotations

import base64
import io
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import ExifTags, Image, ImageOps

from visgrpo.data.stored import Stored
from visgrpo.data.strings import Strings
from visgrpo.data.table import Content, LazySequence, joined, of_files
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

SHORTEST_BASE64 = 40  # characters: a file's name may be of the same letters
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
# PNG, JPEG, GIF, WebP, TIFF (either order) and BMP.
_BASE64_STARTS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "SUkq", "TU0AKg", "Qk")

_LEAVE_OUT = "replace it, or leave such images out with --skip-bad-images"
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


TURNED = "turned by EXIF"
"""Key of a decoded mask's `info`, where its own file said how it is to be turned."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Return `image` upright and in RGB.

    EXIF rotation is applied, transparency is laid on white (as transformers' processors do), and
    16-bit grey is scaled to 8 bits, where pillow alone would clip it.

    Raises:
        ValueError: for grey of 32 bits, of which nobody knows what is white.
    """
    form = image.format
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16") or (image.mode == "I" and form in ("PPM", "PNG")):
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its grey has 32 bits, of which none says what is white: save 8 or 16")
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


def is_base64(text: str) -> bool:
    """Return whether text is a data URI, or begins as a picture does in base64 and goes on so."""
    return text.startswith("data:") or (
        len(text) >= SHORTEST_BASE64
        and text.startswith(_BASE64_STARTS)
        and _BASE64.fullmatch(text) is not None
    )


def _from_base64(text: str) -> bytes:
    return base64.b64decode("".join(text.rpartition(",")[2].split()), validate=True)


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
    mend: str = _LEAVE_OUT,
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
        if isinstance(stored, str) and is_base64(stored):
            stored = _from_base64(stored)
        if isinstance(stored, bytes | str | Path):
            with open_picture(stored) as image:
                return to_rgb(image)
    if stored is None:
        raise UserError(f"{where} is missing; fill it or drop the row.")
    raise UserError(
        f"{where} holds {type(stored).__name__}, not an image; name another image column."
    )


def decode_mask(stored: Any, where: str) -> Image.Image | np.ndarray:
    """Return the mask held by `stored` as it is: unlike an image it must not become RGB.

    Args:
        stored: a path, encoded bytes, the `{"bytes", "path"}` pair of a table, or rows of ids.
        where: what to call the mask in a message.

    Raises:
        UserError: if the mask cannot be read, or its file's format changes ids.
    """
    stored = encoded(stored)
    mend = "replace it, or leave such rows out with --skip-bad-images"
    with naming_the_unreadable(where, mend):
        if isinstance(stored, list):
            return np.array(stored)
        if isinstance(stored, str) and is_base64(stored):
            stored = _from_base64(stored)
        if not isinstance(stored, bytes | str | Path):
            raise UserError(
                f"{where} holds {type(stored).__name__}, not a picture; name another mask_column "
                "or drop the row."
            )
        with open_picture(stored) as mask:
            if mask.format == "JPEG":
                raise UserError(f"{where} is a JPEG, which changes class ids; save masks as PNG.")
            mask.load()
            if _orientation(mask) != 1:
                ImageOps.exif_transpose(mask, in_place=True)
                mask.info[TURNED] = True
            return mask


def lying_of(content: Content, where: str) -> tuple[int, tuple[int, int]]:
    """Return how EXIF says that a picture is to be turned, and its (width, height) before that."""
    stored = content if isinstance(content, Path) else bytes(content)
    name = f"image {content}" if isinstance(content, Path) else where
    with naming_the_unreadable(name, _LEAVE_OUT), open_picture(stored) as image:
        return _orientation(image), image.size


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # pillow would decode all of it to look behind the pixels
    return int(image.getexif().get(ExifTags.Base.Orientation, 1))


def picture_column(
    stored: Stored,
    split: str,
    column: str,
    word: str,
    read: Callable[[Any, str], Any],
    *,
    several: bool = False,
) -> LazySequence[Any]:
    """Read a column of pictures: encoded, base64, or paths of files; or lists of these.

    A path is absolute or relative to the table's folder; a file that is not there is looked for by
    its name in `images` there, and a note says so. The identity of the split then names the files.

    Args:
        stored: the tables.
        split: of which one.
        column: that holds pictures.
        word: what messages call one.
        read: makes a picture of what is stored, told what messages call it.
        several: whether an item is all pictures of a row, and not the one.

    Raises:
        UserError: if a row has no picture, the column holds something else, or a file is missing.
    """
    table, where = stored.tables[split], f"{stored.name}/{split}"
    held = _held(where, table, column, word, several, stored.missing_ok)
    paths = [path for path in held.texts_S.unique() if path and not is_base64(path)]
    files, moved = _find_files(where, paths, stored.places.get(split, ()))
    missing = [path for path, file in files.items() if not file.is_file()]
    if missing and not stored.missing_ok:
        row = held.rows_S[held.texts_S.index(missing[0])]
        raise UserError(
            f'{where}: row {row} has the {word} "{missing[0]}", but there is no '
            f"{files[missing[0]]}; mend the path, or leave such rows out with --skip-bad-images."
        )
    outside = sorted(set(files.values()).difference(files[path] for path in missing))
    if outside:
        stored.identities[split] = joined((stored.identities[split], of_files(outside)))
    if moved:
        stored.note(
            f'{where}: {len(moved)} {word}s are not where "{column}" says, such as {moved[0]}; '
            f"they were taken by their names from {files[moved[0]].parent}.",
            split,
        )
    undecoded = table.select_columns([column]).with_format("arrow")
    return LazySequence(
        partial(_decoded, undecoded, column, files, f"{where}: {word}", read, several),
        range(len(table)),
        contents=partial(_contents_of, held, files),
    )


def file_names(table: datasets.Dataset, column: str) -> Strings | None:
    """Return what the file of each picture in a column is called.

    An absolute path, which says where the files once lay, is cut to its last name. None where some
    have no name, or two the same: they would not tell rows apart.
    """
    values = table.data.column(column)
    if pa.types.is_struct(values.type) and "path" in {field.name for field in values.type}:
        values = pc.struct_field(values, "path")
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        return None
    given = Strings(values)
    if any(not name or is_base64(name) for name in given):
        return None
    names = Strings.of(
        PurePath(name).name if PurePath(name).is_absolute() else name for name in given
    )
    return names if len(names.unique()) == len(names) else None


class _Held(NamedTuple):
    """The S pictures of a column, row by row."""

    rows_S: np.ndarray
    bytes_S: pa.ChunkedArray  # null where the picture is a file, or text
    texts_S: Strings  # path or base64; "" where it is neither


def _held(
    where: str, table: datasets.Dataset, column: str, word: str, several: bool, missing_ok: bool
) -> _Held:
    values = table.data.column(column)
    rows_S = np.arange(len(values))
    if several and (pa.types.is_list(values.type) or pa.types.is_large_list(values.type)):
        counts_M = pc.fill_null(pc.list_value_length(values), 0).to_numpy()
        rows_S, values = np.repeat(rows_S, counts_M), pc.list_flatten(values)
    bytes_S, texts = _parts(where, values, column, word)
    outside = pc.fill_null(texts.cast(pa.large_string()), "")
    texts_S = Strings(pc.if_else(bytes_S.is_null(), outside, ""))
    lengths_S = pc.binary_length(outside).to_numpy()
    there_S = pc.is_valid(bytes_S).to_numpy() | (lengths_S > 0)
    lacking = np.setdiff1d(np.arange(len(table)), rows_S)
    lacking = np.union1d(lacking, rows_S[~there_S])
    if len(lacking) and not missing_ok:
        raise UserError(
            f'{where}: row {lacking[0]} has no {word} in column "{column}"; fill it or drop the '
            "row, or leave such rows out with --skip-bad-images."
        )
    address = next((text for text in texts_S if text.startswith(("http://", "https://"))), None)
    if address is not None:
        raise UserError(
            f"{where}: row {rows_S[texts_S.index(address)]} has an address as its {word}; download "
            "the pictures and write their paths."
        )
    return _Held(rows_S, bytes_S, texts_S)


def _parts(
    where: str, values: pa.ChunkedArray, column: str, word: str
) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Return the encoded bytes and the texts of pictures, null where there are none."""
    kind = values.type
    nothing = pa.chunked_array([pa.nulls(len(values))])
    if pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}:
        return pc.struct_field(values, "bytes"), pc.struct_field(values, "path")
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return nothing, values
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return values, nothing
    raise UserError(
        f'{where}: column "{column}" holds {kind}, not {word}s or their paths; name another '
        f"with --{word}-column."
    )


def _find_files(
    where: str, paths: Sequence[str], places: Sequence[Path]
) -> tuple[dict[str, Path], list[str]]:
    """Return the file of each path, and the paths whose file was found by its name alone."""
    files: dict[str, Path] = {}
    moved: dict[Path, str] = {}
    for path in paths:
        named = path.removeprefix("file://")
        spelled = [named, named.replace("\\", "/")] if "\\" in named else [named]
        folders = places or (Path(),)
        candidates = [folder / name for name in spelled for folder in folders]
        files[path] = next((file for file in candidates if file.is_file()), candidates[0])
        if files[path].is_file():
            continue
        last = Path(spelled[-1]).name
        found = next((at for place in places if (at := place / "images" / last).is_file()), None)
        if found is None:
            continue
        if found in moved:
            raise UserError(
                f'{where}: there is neither "{moved[found]}" nor "{path}", and {found} could be '
                "either; mend the paths."
            )
        files[path], moved[found] = found, path
    return files, list(moved.values())


def _decoded(
    table: datasets.Dataset,
    column: str,
    files: Mapping[str, Path],
    what: str,
    read: Callable[[Any, str], Any],
    several: bool,
    row: int,
) -> Any:
    value = table[row][column][0].as_py()
    if not (several and isinstance(value, list)):
        picture = _picture(value, files, f"{what} of row {row}", read)
        return (picture,) if several else picture
    return tuple(
        _picture(picture, files, f"{what} {number} of row {row}", read)
        for number, picture in enumerate(value, start=1)
    )


def _picture(
    picture: Any, files: Mapping[str, Path], name: str, read: Callable[[Any, str], Any]
) -> Any:
    stored = encoded(picture)
    if isinstance(stored, str) and stored in files:
        return read(files[stored], f"{name} ({files[stored]})")
    path = picture.get("path") if isinstance(picture, dict) else None
    return read(stored or None, f"{name} ({path})" if path else name)


def _contents_of(held: _Held, files: Mapping[str, Path], row: int) -> list[Content]:
    first, last = np.searchsorted(held.rows_S, [row, row + 1])
    found: list[Content] = []
    for place in range(int(first), int(last)):
        text = held.texts_S[place]
        if text:
            found.append(files.get(text, text.encode()))
        elif held.bytes_S[place].is_valid:
            found.append(held.bytes_S[place].as_buffer())
    return found

"""From what is stored to an image or a mask, or to a message that names it; images of rows."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageOps

from visgrpo.data.stored import Stored
from visgrpo.data.table import LazySequence, joined, of_files
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


class RowImages(LazySequence[tuple[Image.Image, ...]]):
    """The images of M rows, decoded on access.

    Attributes:
        keys: computes a text for each row that is equal for rows that share an image, itself or
            through other rows: a pass over all of them.
    """

    keys: Callable[[], tuple[str, ...]]


def row_images(stored: Stored, split: str, column: str) -> RowImages:
    """Read a column of images: encoded, or paths of files; or lists of these.

    A path is absolute or relative to the table's folder; a file that is not there is looked for by
    its name in `images` there, and a note says so. The identity of the split then names the files.

    Raises:
        UserError: if a row has no image, the column holds something else, or a file is missing.
    """
    table, where, folder = stored.tables[split], f"{stored.name}/{split}", stored.folder
    pictures = _stored(where, table, column)
    paths = tuple(path for path in dict.fromkeys(pictures.paths_S) if path)
    files, moved = _find_files(where, paths, folder)
    missing = [path for path, file in files.items() if not file.is_file()]
    if missing and not stored.missing_ok:
        row = pictures.rows_S[pictures.paths_S.index(missing[0])]
        raise UserError(
            f'{where}: row {row} has the image "{missing[0]}", but there is no '
            f"{files[missing[0]]}; mend the path, or leave such rows out with --skip-bad-images."
        )
    outside = sorted(set(files.values()).difference(files[path] for path in missing))
    if outside:
        stored.identities[split] = joined((stored.identities[split], of_files(outside)))
    if moved:
        stored.notes[split] = (
            f'{where}: {len(moved)} images are not where "{column}" says, such as {moved[0]}; '
            f"they were taken by their names from {files[moved[0]].parent}.",
        )
    undecoded = table.select_columns([column]).with_format("arrow")
    images = RowImages(partial(_decoded, undecoded, column, files, where), range(len(table)))
    images.keys = partial(_keys, pictures, files, folder or Path())
    return images


class _Stored(NamedTuple):
    """The S images of a column, row by row."""

    rows_S: np.ndarray
    bytes_S: pa.ChunkedArray  # null where the image is a file
    paths_S: tuple[str, ...]  # "" where it is not


def _stored(where: str, table: datasets.Dataset, column: str) -> _Stored:
    values = table.data.column(column)
    rows_S = np.arange(len(values))
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        counts_M = pc.fill_null(pc.list_value_length(values), 0).to_numpy()
        rows_S, values = np.repeat(rows_S, counts_M), pc.list_flatten(values)
    bytes_S, paths = _parts(where, values, column)
    paths_S = tuple(
        path or "" if outside else ""
        for path, outside in zip(paths.to_pylist(), bytes_S.is_null().to_pylist(), strict=True)
    )
    has_image_S = pc.is_valid(bytes_S).to_numpy() | np.array([path != "" for path in paths_S], bool)
    lacking = np.setdiff1d(np.arange(len(table)), rows_S)
    lacking = np.union1d(lacking, rows_S[~has_image_S])
    if len(lacking):
        raise UserError(
            f'{where}: row {lacking[0]} has a question but no image in column "{column}"; fill it '
            "or drop the row."
        )
    return _Stored(rows_S, bytes_S, paths_S)


def _parts(
    where: str, values: pa.ChunkedArray, column: str
) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Return the encoded bytes and the paths of images, null where there are none."""
    kind = values.type
    nothing = pa.chunked_array([pa.nulls(len(values))])
    if pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}:
        return pc.struct_field(values, "bytes"), pc.struct_field(values, "path")
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return nothing, values
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return values, nothing
    raise UserError(
        f'{where}: column "{column}" holds {kind}, not images or their paths; name another '
        "with --image-column."
    )


def _find_files(
    where: str, paths: Sequence[str], folder: Path | None
) -> tuple[dict[str, Path], list[str]]:
    """Return the file of each path, and the paths whose file was found by its name alone."""
    files = {path: (folder or Path()) / path for path in paths}
    if folder is None:
        return files, []
    moved: dict[Path, str] = {}
    for path, file in files.items():
        named = folder / "images" / file.name
        if file.is_file() or not named.is_file():
            continue
        if named in moved:
            raise UserError(
                f'{where}: there is neither "{moved[named]}" nor "{path}", and {named} could be '
                "either; mend the paths."
            )
        moved[named] = path
    return files | {path: file for file, path in moved.items()}, list(moved.values())


def _decoded(
    table: datasets.Dataset, column: str, files: Mapping[str, Path], where: str, row: int
) -> tuple[Image.Image, ...]:
    value = table[row][column][0].as_py()
    if not isinstance(value, list):
        return (_image(value, files, f"{where}: image of row {row}"),)
    return tuple(
        _image(picture, files, f"{where}: image {number} of row {row}")
        for number, picture in enumerate(value, start=1)
    )


def _image(picture: Any, files: Mapping[str, Path], name: str) -> Image.Image:
    stored = encoded(picture)
    if isinstance(stored, str):
        return decode(files[stored], f"{name} ({files[stored]})")
    return decode(stored, name)


def _keys(stored: _Stored, files: Mapping[str, Path], folder: Path) -> tuple[str, ...]:
    """Return one text for all rows that share an image; files are told apart by their paths."""
    keys_M: dict[int, list[str]] = {}
    for row, encoded_image, path in zip(stored.rows_S, stored.bytes_S, stored.paths_S, strict=True):
        # Relative, so that the same rows are set apart wherever the folder lies.
        key = (
            os.path.relpath(files[path], folder)
            if path
            else hashlib.sha256(encoded_image.as_buffer()).hexdigest()
        )
        keys_M.setdefault(int(row), []).append(key)
    return _connected([keys_M[row] for row in range(len(keys_M))])


def _connected(keys_M: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return the same key for rows that have one in common, or share others with a common row."""
    leader: dict[str, str] = {}

    def find(key: str) -> str:
        while leader.setdefault(key, key) != key:
            leader[key] = leader[leader[key]]
            key = leader[key]
        return key

    for first, *others in keys_M:
        for other in others:
            leader[find(other)] = find(first)
    return tuple(find(keys[0]) for keys in keys_M)

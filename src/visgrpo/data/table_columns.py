"""The columns of a table: which one is meant, its pictures or its values, and what names them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from visgrpo.data.dataset import LazySequence
from visgrpo.data.identity import derived
from visgrpo.data.images import decode
from visgrpo.errors import UserError, nearest

IMAGE_COLUMNS = ("image", "img", "picture")


def find_column(
    name: str, table: datasets.Dataset, kind: str, given: str | None, usual: Sequence[str]
) -> str:
    """Return the column `given`, or else the one whose name is among the usual ones.

    Args:
        name: what messages call the data set.
        table: has the columns to choose from.
        kind: what the column holds ("image", "label", "mask"); the option is `<kind>_column`.
        given: the column that the user named.
        usual: names in lower case.

    Raises:
        UserError: if there is no such column, or several have usual names.
    """
    columns = table.column_names
    if given is not None:
        if given not in columns:
            raise UserError(f'{name} has no column "{given}". {nearest(given, columns)}')
        return given
    found = [column for column in columns if column.lower() in usual]
    if len(found) == 1:
        return found[0]
    problem = f"{' and '.join(found)} could each be" if found else "none is called like"
    raise UserError(
        f"{name}: of its columns ({', '.join(columns)}) {problem} the {kind}; "
        f"name it with --{kind}-column."
    )


def picture_column(
    table: datasets.Dataset, column: str, read: Callable[[Any, int], Image.Image]
) -> LazySequence[Image.Image]:
    """Return a column of pictures, each made on access by `read(stored, row)`.

    `stored` is what the table holds, undecoded: a damaged picture is then an error of `read`, which
    can name its row.
    """
    stored = table.select_columns([column])
    if isinstance(table.features[column], datasets.Image):
        stored = stored.cast_column(column, datasets.Image(decode=False))
    return LazySequence(partial(_picture, stored, column, read), range(len(stored)))


def image_column(table: datasets.Dataset, column: str, where: str) -> LazySequence[Image.Image]:
    """Return a column of RGB images, decoded on access; `where` is what messages call the table."""
    return picture_column(table, column, partial(_image, where))


def value_column(table: datasets.Dataset, column: str) -> Sequence[Any]:
    """Return a column as it is: plain values in a list, anything larger read on access."""
    alone = table.select_columns([column])
    feature = table.features[column]
    plain = is_plain_feature(feature)
    if plain and isinstance(feature, datasets.Value | datasets.ClassLabel):
        return list(alone[column][:])
    return LazySequence(partial(_value, alone, column), range(len(alone)), plain=plain)


def is_plain_feature(feature: Any) -> bool:
    """Return whether a column's type is made of values, lists and dicts, without pictures."""
    if isinstance(feature, dict):
        return all(map(is_plain_feature, feature.values()))
    if isinstance(feature, datasets.List | datasets.LargeList):
        return is_plain_feature(feature.feature)
    if isinstance(feature, datasets.Value):
        return "binary" not in feature.dtype
    return isinstance(feature, datasets.ClassLabel)


def column_identity(identity: str, table: datasets.Dataset, column: str) -> str:
    """Name the pictures of a table's column; "" if some lie outside it, in files of their own."""
    stored = table.data.column(column)
    if pa.types.is_struct(stored.type):
        stored = pc.struct_field(stored, "bytes")
    inside = pa.types.is_binary(stored.type) or pa.types.is_large_binary(stored.type)
    return derived(identity, f"column {column}") if inside and not stored.null_count else ""


def _picture(
    table: datasets.Dataset, column: str, read: Callable[[Any, int], Image.Image], row: int
) -> Image.Image:
    return read(table[row][column], row)


def _image(where: str, stored: Any, row: int) -> Image.Image:
    path = stored.get("path") if isinstance(stored, dict) else None
    return decode(stored, f"{where} image {row}" + (f" ({path})" if path else ""))


def _value(table: datasets.Dataset, column: str, row: int) -> Any:
    return table[row][column]

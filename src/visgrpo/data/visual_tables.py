"""Questions about images from tables: which columns hold what, and whether every row is whole."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets

from visgrpo.data.identity import derived
from visgrpo.data.prompts import PROMPT_COLUMNS
from visgrpo.data.table_columns import IMAGE_COLUMNS, find_column, is_plain_feature, value_column
from visgrpo.data.tables import Tables
from visgrpo.data.visual import VisualDataset
from visgrpo.data.visual_images import row_images
from visgrpo.errors import UserError

PICTURE_COLUMNS = (*IMAGE_COLUMNS, "images", "image_path")
ANSWER_COLUMNS = ("answer", "solution", "ground_truth")
TRACE_COLUMNS = ("trace", "thinking", "reasoning", "rationale")


class Columns(NamedTuple):
    """The names of the columns of a table; None where the usual names are looked for, or of none.

    Attributes:
        image: encoded images or paths, or lists of them.
        question: text.
        answer: text or numbers; published sets write "<answer> 3 </answer>".
        trace: the reasoning to imitate, as text, perhaps inside <think> </think>.
    """

    image: str | None = None
    question: str | None = None
    answer: str | None = None
    trace: str | None = None


class StoredSplit(NamedTuple):
    """A split as it is stored, and what computes the keys of its rows (see `RowImages`)."""

    dataset: VisualDataset
    keys: Callable[[], tuple[str, ...]]


def visual_rows(
    tables: Tables, given: Columns, *, folder: Path | None, missing_ok: bool
) -> dict[str, StoredSplit]:
    """Return tables that have a column of images and one of questions, by split.

    Args:
        tables: as they are stored.
        given: the columns that the user named.
        folder: where the table is, to which paths of images are relative; None if in no folder.
        missing_ok: leave a missing file to be an error when its image is used.

    Raises:
        UserError: if a column is missing or named twice, or a row has no image or no question.
    """
    columns = _resolved(tables.name, next(iter(tables.splits.values())), given)
    return {
        split: _split(
            f"{tables.name}/{split}",
            table,
            columns,
            identity=tables.identities[split],
            folder=folder,
            missing_ok=missing_ok,
        )
        for split, table in tables.splits.items()
    }


class _Found(NamedTuple):
    image: str
    question: str
    answer: str | None
    trace: str | None


def _resolved(name: str, table: datasets.Dataset, given: Columns) -> _Found:
    def optional(kind: str, column: str | None, usual: Sequence[str]) -> str | None:
        if column is None and not any(found.lower() in usual for found in table.column_names):
            return None
        return find_column(name, table, kind, column, usual)

    found = _Found(
        find_column(name, table, "image", given.image, PICTURE_COLUMNS),
        find_column(name, table, "question", given.question, PROMPT_COLUMNS),
        optional("answer", given.answer, ANSWER_COLUMNS),
        optional("trace", given.trace, TRACE_COLUMNS),
    )
    kinds: dict[str, str] = {}
    for kind, column in found._asdict().items():
        if column in kinds:
            raise UserError(
                f'{name}: column "{column}" is taken for both the {kinds[column]} and the {kind}; '
                f"name another with --{kind}-column."
            )
        if column is not None:
            kinds[column] = kind
    return found


def _split(
    where: str,
    table: datasets.Dataset,
    columns: _Found,
    *,
    identity: str,
    folder: Path | None,
    missing_ok: bool,
) -> StoredSplit:
    read = row_images(
        where, table, columns.image, folder=folder, identity=identity, missing_ok=missing_ok
    )
    features = table.features
    dataset = VisualDataset(
        name=where,
        images=read.images,
        questions=_texts(where, table, columns.question, _question),
        answers=("",) * len(table)
        if columns.answer is None
        else _texts(where, table, columns.answer, _answer),
        traces=None if columns.trace is None else _texts(where, table, columns.trace, _trace),
        columns={
            column: value_column(table, column)
            for column in table.column_names
            if column not in (columns.image, columns.question)
            and is_plain_feature(features[column])
        },
        identity=derived(read.identity, f"columns {' '.join(map(str, columns))}"),
        notes=read.notes,
    )
    return StoredSplit(dataset, read.keys)


def _texts(
    where: str, table: datasets.Dataset, column: str, text_of: Callable[[Any, str], str]
) -> tuple[str, ...]:
    values = table.select_columns([column])[column][:]
    feature = table.features[column]
    if isinstance(feature, datasets.ClassLabel):
        values = [None if value is None else feature.int2str(value) for value in values]
    return tuple(
        text_of(value, f'{where}: row {row}, column "{column}"') for row, value in enumerate(values)
    )


def _question(value: Any, where: str) -> str:
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where} holds {type(value).__name__}, not a question as text.")
    if value is None or not value.strip():
        raise UserError(f"{where}: the image has no question; fill it or drop the row.")
    return value


def _answer(value: Any, where: str) -> str:
    """Return an answer as text, "" for null; a whole number is written without a fraction."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and math.isfinite(value):
        return str(value)
    return _inside("answer", value, where)


def _trace(value: Any, where: str) -> str:
    return _inside("think", value, where)


def _inside(tag: str, value: Any, where: str) -> str:
    """Return the text inside <tag> </tag>, or all of it where there is no such tag."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where} holds {value!r}; give text or a number.")
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", value, re.DOTALL)
    tags = len(re.findall(rf"</?{tag}>", value))
    if tags and (len(found), tags) != (1, 2):
        raise UserError(f"{where} holds {tags} of the tags <{tag}> and </{tag}>; write one pair.")
    return (found[0] if found else value).strip()

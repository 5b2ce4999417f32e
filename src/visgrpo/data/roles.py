"""What the columns of tables hold, and tables of every usual kind, made of values in memory."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import datasets
import numpy as np
import pyarrow.compute as pc
from PIL import Image

from visgrpo.data.images import TURNED, decode, decode_mask, lying_of, picture_column
from visgrpo.data.table import IGNORE_INDEX, Drawn, LazySequence, Role, Table, check_classes
from visgrpo.data.text import Message, Prompt, as_prompt
from visgrpo.errors import UserError, nearest
from visgrpo.progress import tracked
from visgrpo.texts import composed

if TYPE_CHECKING:
    from visgrpo.data.stored import Stored

Columns = Mapping[str, Any]
_ID_MODES = ("1", "L", "P", "I", "I;16")  # pillow's modes of one channel of whole numbers
IMAGE_COLUMNS = ("image", "img", "picture")


@dataclass(frozen=True)
class Images(Role):
    """RGB images, decoded on access; `several` where a row may have more than one."""

    several: bool = False

    def read(self, stored: Stored, column: str) -> dict[str, Any]:
        return {
            split: picture_column(stored, split, column, "image", decode, several=self.several)
            for split in stored.tables
        }

    def use(self, table: Table, row: int) -> None:
        self.value(table, row)


class Labels(Role):
    """Class ids (M,), int64; stored as ids with names, whole numbers or the names themselves."""

    def check(self, table: Table) -> None:
        check_classes(table.name, table.classes)
        labels, classes = table.labels, len(table.classes)
        outside = np.flatnonzero((labels < 0) | (labels >= classes))
        if len(outside):
            row = int(outside[0])
            raise UserError(
                f"{table.name}: row {row} has label {labels[row]}, outside its {classes} classes "
                f"(0 to {classes - 1}); mend the row or the class names."
            )

    def read(self, stored: Stored, column: str) -> dict[str, Any]:
        """Return the class ids; `stored` learns the classes, and which rows have a label."""
        found = {split: self._found(stored, split, column) for split in stored.tables}
        for split, (_, label_M) in list(found.items()):
            rows = np.flatnonzero(label_M >= 0)
            if not len(rows) and split == "test":  # the Hub's sign that the labels are kept back
                del found[split], stored.tables[split]
                stored.note(f"{stored.name}/test has no labels (all are -1) and was left out.")
            elif len(rows) < len(label_M):
                stored.rows[split] = rows
                stored.note(
                    f"{stored.name}/{split}: {len(label_M) - len(rows)} of its {len(label_M)} rows "
                    "have the label -1, which says that they have none, and were left out."
                )
        reference = next(split for split in ("train", "all", *found) if split in found)
        known, _ = found[reference]
        if not isinstance(stored.tables[reference].features[column], datasets.ClassLabel):
            known = sorted(known)
        ids = {value: number for number, value in enumerate(known)}
        for split, (values, label_M) in found.items():
            new = [number for number, value in enumerate(values) if value not in ids]
            for row in np.flatnonzero(np.isin(label_M, new))[:1].tolist():
                value = values[label_M[row]]
                raise UserError(
                    f'{stored.name}/{split}: row {row} has label "{value}", which no row of '
                    f"{reference} has. {nearest(str(value), map(str, known))}"
                )
        stored.classes = tuple(map(str, known))
        return {
            split: np.array([*(ids.get(value, -1) for value in values), -1], np.int64)[label_M]
            for split, (values, label_M) in found.items()
        }

    def _found(self, stored: Stored, split: str, column: str) -> tuple[list[Any], np.ndarray]:
        """Return the labels that a split has, names or numbers, and which of them (M,) rows have.

        A row that has none has the label -1.
        """
        table, where = stored.tables[split], f"{stored.name}/{split}"
        feature = table.features[column]
        labels = table.select_columns([column]).with_format("arrow")[:][column]
        if labels.null_count:
            row = pc.index(labels.is_null(), True).as_py()
            raise UserError(
                f'{where}: row {row} has no label in column "{column}"; fill it or drop the row.'
            )
        if isinstance(feature, datasets.ClassLabel):
            label_M = labels.to_numpy()
            outside = np.flatnonzero((label_M < -1) | (label_M >= feature.num_classes))
            if len(outside):
                raise UserError(
                    f"{where}: row {outside[0]} has label {label_M[outside[0]]}, outside its "
                    f"{feature.num_classes} classes (0 to {feature.num_classes - 1}); mend the row "
                    "or the class names."
                )
            return list(feature.names), label_M
        dtype = getattr(feature, "dtype", type(feature).__name__)
        texts = dtype in ("string", "large_string")
        if not (texts or dtype == "bool" or "int" in dtype):
            raise UserError(
                f'{where}: label column "{column}" holds {dtype}, not class names or whole '
                "numbers; name another column with --label-column. Lists of labels are what "
                "visgrpo representation --label-sets takes."
            )
        coded = labels.combine_chunks().dictionary_encode()
        stored_K = coded.dictionary.to_pylist()
        values_K = [composed(value) if texts else value for value in stored_K]
        none = not texts and -1 in values_K
        values = sorted({value for value in values_K if not (none and value == -1)})
        place = {value: number for number, value in enumerate(values)}
        return values, np.array([place.get(v, -1) for v in values_K])[coded.indices.to_numpy()]

    def identity(self, stored: Stored, split: str, column: str, identity: str) -> str:
        """Leave the name as it is: features of images do not depend on their labels."""
        return identity


class LabelSets(Role):
    """A tuple of K numbers for each image, 1 for the labels that it has; stored as lists of names.

    An empty list, or null, is an image that has none.
    """

    def check(self, table: Table) -> None:
        check_classes(table.name, table.classes)

    def read(self, stored: Stored, column: str) -> dict[str, Any]:
        """Return the sets; `stored` learns the labels, which are those of the train rows."""
        names = {
            split: [
                _label_names(value, f'{stored.name}/{split}: row {row}, column "{column}"')
                for row, value in enumerate(stored.plain(split, column))
            ]
            for split in stored.tables
        }
        reference = next(split for split in ("train", "all", *names) if split in names)
        known = sorted({name for row in names[reference] for name in row})
        for split, rows in names.items():
            for row, found in enumerate(rows):
                for name in set(found) - set(known):
                    raise UserError(
                        f'{stored.name}/{split}: row {row} has label "{name}", which no row of '
                        f"{reference} has. {nearest(name, known)}"
                    )
        stored.classes = tuple(known)
        return {
            split: [tuple(int(name in row) for name in known) for row in map(set, rows)]
            for split, rows in names.items()
        }

    def identity(self, stored: Stored, split: str, column: str, identity: str) -> str:
        """Leave the name as it is: features of images do not depend on their labels."""
        return identity


def _label_names(value: Any, where: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or any(isinstance(one, list | dict) for one in value):
        raise UserError(
            f"{where} is no list of labels; write one, [] for none, or leave --label-sets out."
        )
    if None in value:
        raise UserError(f"{where} has a label without a name; leave it out.")
    return [composed(str(one)) for one in value]


class Masks(Role):
    """Class ids (H, W) of `mask_dtype`, decoded and checked on access.

    They are stored as arrays of whole numbers or pillow images of one channel.
    """

    def check(self, table: Table) -> None:
        check_classes(table.name, table.classes)
        ignored, classes = table.ignore_index, table.classes
        if 0 <= ignored < len(classes):
            raise UserError(
                f"{table.name}: --ignore-index {ignored} is also the id of class "
                f'"{classes[ignored]}"; choose one outside 0 to {len(classes) - 1}.'
            )
        if not -(2**31) <= ignored < 2**31:
            raise UserError(f"{table.name}: --ignore-index {ignored} needs over 32 bits.")

    def value(self, table: Table, row: int) -> np.ndarray:
        """Return the class ids of a row.

        Raises:
            UserError: if the mask is unreadable, is no grid of ids, has an id outside the classes,
                or labels no pixel.
        """
        mask = table.values[self.name][row]
        ids = _as_ids(mask, table.where(row))
        if TURNED not in getattr(mask, "info", {}):
            _check_lies_alike(table, row, ids)
        ignored, classes = ids == table.ignore_index, len(table.classes)
        outside = ids[~ignored & ((ids < 0) | (ids >= classes))]
        if len(outside):
            raise UserError(
                f"{table.where(row)}: its mask has class id {outside[0]}, outside the "
                f"{classes} classes (0 to {classes - 1}) and not the ignored "
                f"id {table.ignore_index}; mend the mask, the class names or --ignore-index."
            )
        if ignored.all():
            raise UserError(
                f"{table.where(row)}: its mask labels no pixel (all are the ignored id "
                f"{table.ignore_index}); label some, or leave it out with --skip-bad-images."
            )
        return ids.astype(mask_dtype(table), copy=False)

    def use(self, table: Table, row: int) -> None:
        image_and_mask(table, row)

    def read(self, stored: Stored, column: str) -> dict[str, Any]:
        feature = stored.first.features[column]
        if is_grid(feature):
            return {
                split: LazySequence(partial(_grid, table, column, f"{stored.name}/{split}"), rows)
                for split, table in stored.tables.items()
                if (rows := range(len(table)))
            }
        return {
            split: picture_column(stored, split, column, "mask", decode_mask)
            for split in stored.tables
        }


def _question(value: Any, where: str) -> str:
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where} holds {type(value).__name__}, not a question as text.")
    if value is None or not value.strip():
        raise UserError(f"{where}: the image has no question; fill it or drop the row.")
    return value


def answer_text(value: Any, where: str) -> str:
    """Return an answer as text, "" for null; a whole number is written without a fraction."""
    if isinstance(value, list):
        if len(set(map(str, value))) > 1:
            raise UserError(f"{where} holds {len(value)} answers that differ; give one.")
        value = value[0] if value else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and math.isfinite(value):
        return str(value)
    return _inside("answer", value, where)


def _trace(value: Any, where: str) -> str:
    """Return the reasoning to imitate, without an answer in tags at its end."""
    trace = _inside("think", value, where)
    words = re.sub(r"\s*<answer>[^<]*</answer>\s*\Z", "", trace)
    if re.search(r"</?answer>", words):
        raise UserError(
            f"{where} has answer tags within its reasoning; take them out, or drop the row."
        )
    return words


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


def _completion(value: Any, where: str) -> tuple[tuple[Message, ...], str]:
    """Return the messages before a completion, if any, and its text."""
    if isinstance(value, str):
        return (), value
    messages = as_prompt(value, where)
    if isinstance(messages, str) or messages[-1]["role"] != "assistant":
        raise UserError(f"{where}: its last message is not the assistant's; drop the row.")
    return tuple(messages[:-1]), messages[-1]["content"]


def _document(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        what = "no text" if isinstance(value, str) or value is None else type(value).__name__
        row, column = where.rsplit(", ", 1)
        raise UserError(f"{row} has {what} in {column}; fill it or drop the row.")
    return value


class Preferred(Role):
    """Of two completions of each prompt the one that was preferred, which the other is not."""

    def check(self, table: Table) -> None:
        chosen = zip(table.chosen, ended(table, "chosen"), strict=True)
        rejected = zip(table.rejected, ended(table, "rejected"), strict=True)
        for row, (one, other) in enumerate(zip(chosen, rejected, strict=True)):
            if one == other:
                raise UserError(
                    f"{table.name}: row {row} has the same text as chosen and as rejected, which "
                    "says nothing; drop the row."
                )


ASSISTANT = "\n\nAssistant:"
PROMPT_COLUMNS = ("prompt", "question", "instruction", "query", "problem")
MASK_COLUMNS = ("mask", "annotation", "label", "labels", "segmentation", "segmentation_mask")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")
TRACE_COLUMNS = ("trace", "thinking", "reasoning", "rationale")

IMAGES = Images("images", "image", (*IMAGE_COLUMNS, "image_path", "file_name", "filename", "path"))
LABELS = Labels("labels", "label", LABEL_COLUMNS)
LABEL_SETS = LabelSets("sets", "label", LABEL_COLUMNS)
MASKS = Masks("masks", "mask", MASK_COLUMNS)
ROW_IMAGES = Images(
    "images", "image", (*IMAGE_COLUMNS, "images", "image_path", "file_name"), several=True
)
QUESTIONS = Role("questions", "question", PROMPT_COLUMNS, _question)
ANSWERS = Role(
    "answers",
    "answer",
    ("answer", "answers", "solution", "ground_truth"),
    answer_text,
    optional=True,
    kept=True,
    column="answer",
)
TRACES = Role("traces", "trace", TRACE_COLUMNS, _trace, optional=True, kept=True)
PROMPTS = Role("prompts", "prompt", PROMPT_COLUMNS, as_prompt)
CHOSEN = Preferred("chosen", "chosen", ("chosen",), _completion)
REJECTED = Role("rejected", "rejected", ("rejected",), _completion)
TEXTS = Role("texts", "text", ("text",), _document)
BLOCKS = Role("blocks", "block")


def image_table(
    name: str,
    classes: tuple[str, ...],
    labels: Sequence[int] | np.ndarray,
    images: Sequence[Image.Image],
    columns: Columns | None = None,
    **more: Any,
) -> Table:
    """Return M labelled images.

    Args:
        name: what messages call them.
        classes: class names; the position is the class id.
        labels: (M,) class ids.
        images: M RGB images, perhaps decoded on access.
        columns: every other column by name, each of length M.
        more: `identity`, `skipped` or `notes` of the table.

    Raises:
        UserError: if a class is named twice, there are fewer than two classes, a label is outside
            the classes, or a column has another length than the labels.
    """
    ids = np.asarray(labels)
    if len(ids) and ids.dtype.kind not in "iu":
        raise UserError(f"{name}: labels are {ids.dtype}; give whole numbers.")
    values: Columns = {"labels": ids.astype(np.int64, copy=False), "images": images}
    return Table(name, values, (LABELS, IMAGES), columns or {}, classes, **more)


def mask_table(
    name: str,
    classes: tuple[str, ...],
    images: Sequence[Image.Image],
    masks: Sequence[Image.Image | np.ndarray],
    ignore_index: int = IGNORE_INDEX,
    columns: Columns | None = None,
    **more: Any,
) -> Table:
    """Return M images, each with a mask of class ids; `table.masks` checks each one.

    Args:
        name: as for `image_table`, like `classes`, `images`, `columns` and `more`.
        classes: class names.
        images: M RGB images.
        masks: M masks as they are stored (see `Masks`).
        ignore_index: the id of pixels that belong to no class and count nowhere.
        columns: every other column.
        more: further attributes of the table.

    Raises:
        UserError: as `image_table`, or if `ignore_index` is a class id or needs more than 32 bits.
    """
    values = {"images": images, "masks": masks}
    return Table(name, values, (IMAGES, MASKS), columns or {}, classes, ignore_index, **more)


def question_table(
    name: str,
    images: Sequence[tuple[Image.Image, ...]],
    questions: Sequence[str],
    answers: Sequence[str],
    traces: Sequence[str] | None = None,
    columns: Columns | None = None,
    **more: Any,
) -> Table:
    """Return M questions, each about one or several images.

    Args:
        name: as for `image_table`, like `columns` and `more`.
        images: the RGB images of every row, perhaps decoded on access.
        questions: the question of every row, without images and without how to answer.
        answers: the truth as text, such as "3"; "" where there is none. They are the column
            "answer" too, which reward functions receive.
        traces: reasoning to imitate, "" where a row has none; None where the data have none.
        columns: every other column.
        more: further attributes of the table.

    Raises:
        UserError: if anything has another length than the questions.
    """
    values: dict[str, Any] = {
        "questions": questions,
        "images": images,
        "answers": answers,
    }
    if traces is not None:
        values["traces"] = traces
    return Table(name, values, (QUESTIONS, ROW_IMAGES, ANSWERS, TRACES), columns or {}, **more)


def prompt_table(
    name: str, prompts: Sequence[Prompt], columns: Columns | None = None, **more: Any
) -> Table:
    """Return M prompts, each a string or the messages of a chat.

    Reward functions receive the other `columns` by name, each of length M.
    """
    return Table(name, {"prompts": prompts}, (PROMPTS,), columns or {}, **more)


def pair_table(
    name: str,
    prompts: Sequence[Prompt],
    chosen: Sequence[str],
    rejected: Sequence[str],
    columns: Columns | None = None,
    **more: Any,
) -> Table:
    """Return M prompts with two completions each, of which the chosen one was preferred.

    The columns "chosen_ended" and "rejected_ended" say whether a completion came to its end;
    without them every one did.

    Raises:
        UserError: if the columns differ in length, or both completions of a row are the same.
    """
    values = {"prompts": prompts, "chosen": chosen, "rejected": rejected}
    return Table(name, values, (PROMPTS, CHOSEN, REJECTED), columns or {}, **more)


def text_table(name: str, texts: Sequence[str], **more: Any) -> Table:
    """Return M documents, in their order."""
    return Table(name, {"texts": tuple(texts)}, (TEXTS,), **more)


def block_table(name: str, blocks: int, **more: Any) -> Table:
    """Return M blocks of text, whose tokens are in the `CachedInputs` beside it.

    They have no columns: a block may hold the end of one document and another's start.
    """
    return Table(name, {"blocks": range(blocks)}, (BLOCKS,), **more)


def mask_dtype(table: Table) -> np.dtype[Any]:
    """Return the smallest of uint8, int16 and int32 that holds class ids and `ignore_index`."""
    ids = (0, len(table.classes) - 1, table.ignore_index)
    kinds: tuple[type[np.integer[Any]], ...] = (np.uint8, np.int16, np.int32)
    fitting = (
        np.dtype(kind)
        for kind in kinds
        if np.iinfo(kind).min <= min(ids) and max(ids) <= np.iinfo(kind).max
    )
    return next(fitting)


def image_and_mask(table: Table, row: int) -> tuple[Image.Image, np.ndarray]:
    """Return the image of row `row` and its class ids (H, W).

    Raises:
        UserError: as `Masks.value`, or if the two differ in size.
    """
    image, ids = table.images[row], table.masks[row]
    if ids.shape != (image.height, image.width):
        raise UserError(
            f"{table.where(row)}: its mask is {ids.shape[1]} × {ids.shape[0]} pixels but its "
            f"image is {image.width} × {image.height}; store the mask at the image's size."
        )
    return image, ids


def class_counts_MK(table: Table, threads: int = 8, *, ignored: bool = False) -> np.ndarray:
    """Return the pixels of every class in every row, (M, K) int64; every mask is read once.

    With `ignored` those that belong to none are a last column.

    Raises:
        UserError: as `Masks.value`.
    """
    classes, masks = len(table.classes), table.masks

    def counts_K(row: int) -> np.ndarray:
        ids = masks[row]
        counts = np.bincount(ids[ids != table.ignore_index], minlength=classes)
        return np.append(counts, ids.size - counts.sum()) if ignored else counts

    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(counts_K, range(len(table)))
        counts = list(tracked(found, f"counting classes of {table.name}", len(table)))
    return np.array(counts, dtype=np.int64).reshape(len(table), classes + ignored)


def ended(table: Table, which: Literal["chosen", "rejected"]) -> Sequence[bool]:
    """Return whether each chosen or rejected completion came to its end.

    Raises:
        UserError: if a row's column "chosen_ended" or "rejected_ended" is not true or false.
    """
    column = f"{which}_ended"
    values = table.columns.get(column, [True] * len(table))
    for row, value in enumerate(values):
        if not isinstance(value, bool):
            raise UserError(f"{table.name}: row {row} has {value!r} as {column}; give a bool.")
    return values


def require_answers(table: Table) -> None:
    """Refuse questions of which one has no answer.

    Raises:
        UserError: if there is such a row.
    """
    if "" in table.answers:
        raise UserError(
            f"{table.where(table.answers.index(''))} has no answer; fill it or drop the row, "
            "or name the column of the answers with --answer-column."
        )


def require_traces(table: Table) -> None:
    """Refuse questions of which one has no reasoning to imitate.

    Raises:
        UserError: if there is such a row.
    """
    mend = "name the column that holds it with --trace-column, or choose --style direct."
    if table.traces is None:
        raise UserError(f"{table.name} has no reasoning to imitate; {mend}")
    if "" in table.traces:
        row = table.where(table.traces.index(""))
        raise UserError(
            f"{row} has no reasoning to imitate; fill it or drop the row, let such rows count by "
            f"their answers with --answer-weight, or {mend}"
        )


def require_counts(table: Table) -> None:
    """Refuse questions of which an answer is no count: digits alone, such as "3".

    Raises:
        UserError: if there is such a row.
    """
    require_answers(table)
    for row, answer in enumerate(table.answers):
        if not (answer.isascii() and answer.isdigit()):
            raise UserError(
                f'{table.where(row)} has the answer "{answer}", which is no count; give whole '
                "numbers, such as 3, or choose another task than counting."
            )


def one_pair(
    where: str, prompt: Prompt | None, chosen: tuple[Any, str], rejected: tuple[Any, str]
) -> tuple[Prompt, str, str]:
    """Return a row of pairs whose completions may repeat the prompt, as published sets do.

    Raises:
        UserError: if they answer other messages than each other or than the prompt.
    """
    (before, chosen_text), (before_rejected, rejected_text) = chosen, rejected
    if before != before_rejected:
        raise UserError(f"{where}: chosen and rejected answer different messages; drop the row.")
    if not before and prompt is None:
        return _common_start(where, chosen_text, rejected_text)
    if not before:
        assert prompt is not None
        return prompt, chosen_text, rejected_text
    # Then the chat is the prompt.
    if prompt is not None and prompt not in (before, before[-1]["content"]):
        raise UserError(
            f"{where}: its completions answer other messages than its prompt; drop the row."
        )
    return before, chosen_text, rejected_text


def _common_start(where: str, chosen: str, rejected: str) -> tuple[Prompt, str, str]:
    """Part two dialogues of text, as Anthropic's, behind the last "Assistant:" that they share."""
    start = chosen.rpartition(ASSISTANT)[0] + ASSISTANT
    if not (chosen.startswith(start) and rejected.startswith(start)):
        raise UserError(
            f"{where}: there is no column of prompts, and its completions are no chats that begin "
            "alike; add the prompts."
        )
    return start, chosen[len(start) :], rejected[len(start) :]


def is_grid(feature: Any) -> bool:
    """Whether a column's type is rows of whole numbers: a mask that is no picture."""
    inner = getattr(getattr(feature, "feature", None), "feature", None)
    return isinstance(feature, datasets.Array2D) or "int" in getattr(inner, "dtype", "")


def _grid(table: datasets.Dataset, column: str, where: str, row: int) -> Any:
    return decode_mask(table[row][column], f"{where}: mask of row {row}")


def _check_lies_alike(table: Table, row: int, ids: np.ndarray) -> None:
    """Refuse a mask that lies as its image does without EXIF, or may do so."""
    parts = table.images.content(row) if isinstance(table.images, LazySequence) else ()
    parts = [part for part in parts if not isinstance(part, Drawn)]
    turned, size = lying_of(parts[0], f"{table.where(row)}: its image") if parts else (1, (0, 0))
    # An oblong mask that stands as its image does after a quarter turn was made for it.
    if turned != 1 and not (turned > 4 and ids.shape == size != size[::-1]):
        raise UserError(
            f"{table.where(row)}: its image is turned by EXIF (orientation {turned}) and its mask "
            "is not, so that they may not fit; save the image as it is shown, without EXIF, and "
            "the mask alike."
        )


def _as_ids(mask: Image.Image | np.ndarray, where: str) -> np.ndarray:
    if isinstance(mask, Image.Image) and mask.mode not in _ID_MODES:
        raise UserError(
            f"{where}: its mask is a picture of mode {mask.mode}, whose colours are no class ids; "
            "store one channel of ids (an 8-bit grey or palette PNG)."
        )
    ids = np.asarray(mask)
    if ids.dtype == bool:
        ids = ids.astype(np.uint8)
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or ids.size == 0:
        raise UserError(
            f"{where}: its mask is {ids.dtype} of shape {ids.shape}; give whole class ids of shape "
            "(height, width)."
        )
    return ids

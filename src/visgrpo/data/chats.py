"""Rows of questions about images as other programs write them: read as question, answer, images.

TRL has `prompt` and `completion` of messages, whose content may be a list of parts; ms-swift and
EasyR1 `messages` (or `problem`) beside `images` and `solution`; LLaVA `conversations` of turns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import datasets
import pyarrow.compute as pc

from visgrpo.data.stored import Stored
from visgrpo.errors import UserError

PLACEHOLDER = "<image>"
_CHATS = ("messages", "conversations", "conversation", "prompt")
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)
_TRUTHS = ("answer", "answers", "solution", "ground_truth", "response", "label")


class Turns(NamedTuple):
    """What a chat of one turn says.

    Attributes:
        answer: the assistant's, without its reasoning; None where there is none.
        trace: the reasoning in it; "" where there is none.
        pictures: those that stand in the messages themselves.
    """

    question: str
    answer: str | None
    trace: str
    pictures: tuple[Any, ...]
    system: bool


def with_questions(stored: Stored, given: Mapping[str, str]) -> Stored:
    """Return tables whose chats are columns "question", "answer", "trace" and "images".

    Where questions are text already, only the places of images in them are taken out.

    Args:
        stored: the tables.
        given: columns that the user named, by the word of their role.

    Raises:
        UserError: for a chat of several turns, and places of images that do not fit.
    """
    columns = stored.first.column_names
    wanted = [given["question"]] if "question" in given else _CHATS
    chat = next((name for name in wanted if name in columns and _is_chat(stored, name)), None)
    if chat is not None:
        for split in list(stored.tables):
            stored.tables[split] = _unfolded(stored, split, chat, given)
    return stored


def _is_chat(stored: Stored, column: str) -> bool:
    feature = stored.first.features[column]
    inner = getattr(feature, "feature", None)
    return isinstance(inner, dict) and bool({"role", "from"} & set(inner))


def _unfolded(stored: Stored, split: str, chat: str, given: Mapping[str, str]) -> datasets.Dataset:
    table, where = stored.tables[split], f"{stored.name}/{split}"
    chats = table.select_columns([chat])[chat][:]
    ends: Sequence[Any] = [None] * len(chats)
    if chat == "prompt" and "completion" in table.column_names:
        ends = table.select_columns(["completion"])["completion"][:]
    turns = [
        turns_of([*value, *_as_messages(end)], f'{where}: row {row}, column "{chat}"')
        for row, (value, end) in enumerate(zip(chats, ends, strict=True))
    ]
    new: dict[str, list[Any]] = {"question": [each.question for each in turns]}
    truth = given.get("answer") or next((n for n in _TRUTHS if n in table.column_names), None)
    if truth is None and any(each.answer is not None for each in turns):
        new["answer"] = [each.answer for each in turns]
    if any(each.trace for each in turns) and "trace" not in given:
        new["trace"] = [each.trace for each in turns]
    if any(each.pictures for each in turns):
        new["images"] = [list(each.pictures) for each in turns]
    taken = [name for name in (chat, *new) if name in table.column_names]
    table = table.remove_columns(taken)
    for name, values in new.items():
        table = table.add_column(name, values)
    answer = f'"{truth}"' if truth else "the assistant's message"
    system = "; what the system says is left out" if any(each.system for each in turns) else ""
    if not stored.notes.get(""):
        stored.note(
            f'{stored.name}: "{chat}" holds chats; the user\'s message is the question, and '
            f"{answer} the answer{system}."
        )
    return table


def _as_messages(end: Any) -> Sequence[Any]:
    if end is None:
        return ()
    return [{"role": "assistant", "content": end}] if isinstance(end, str) else end


def turns_of(messages: Sequence[Mapping[str, Any]], where: str) -> Turns:
    """Return what a chat of one turn says: a user's message, and perhaps an assistant's after it.

    Raises:
        UserError: if it has other messages, or parts that are neither text nor images.
    """
    spoken: dict[str, tuple[str, tuple[Any, ...]]] = {}
    for message in messages:
        said = message.get("role") or message.get("from")
        role = _ROLES.get(str(said), str(said))
        if role not in ("system", "user", "assistant") or role in spoken:
            which = "several turns" if role in spoken else f'a message of "{role}"'
            raise UserError(
                f"{where} has {which}; give one user's message and one answer, such as the last."
            )
        content = message.get("content")
        spoken[role] = _read(message.get("value") if content is None else content, where)
    if "user" not in spoken:
        raise UserError(f"{where} has no user's message; fill it or drop the row.")
    question, pictures = spoken["user"]
    if "assistant" not in spoken:
        return Turns(question, None, "", pictures, "system" in spoken)
    text = spoken["assistant"][0]
    thought = _THOUGHT.fullmatch(text)
    trace, answer = (thought[1].strip(), thought[2].strip()) if thought else ("", text)
    return Turns(question, answer, trace, pictures, "system" in spoken)


def _read(content: Any, where: str) -> tuple[str, tuple[Any, ...]]:
    """Return the text of a message and the pictures within it."""
    if isinstance(content, str):
        return content, ()
    if not isinstance(content, list):
        raise UserError(f"{where} has a message without text; fill it or drop the row.")
    texts, pictures = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            texts.append(part.get("text") or "")
        elif kind in ("image", "image_url"):
            held = part.get("image") or part.get("image_url") or part.get("url")
            held = held.get("url") if isinstance(held, Mapping) and "url" in held else held
            if held:
                pictures.append(held)
        else:
            raise UserError(f'{where} has a part of type "{kind}"; text and images are read.')
    return "\n".join(text for text in texts if text), tuple(pictures)


def without_placeholders(
    where: str, questions: Sequence[str], counts: Sequence[int]
) -> tuple[tuple[str, ...], int]:
    """Return questions without the places of their images, and how many had any.

    Images stand before the words here, so that places are taken from either end alone.

    Raises:
        UserError: if a question has another number of places than images, or one between words.
    """
    made, changed = [], 0
    for row, (question, images) in enumerate(zip(questions, counts, strict=True)):
        places = question.count(PLACEHOLDER)
        if places == 0:
            made.append(question)
            continue
        changed += 1
        words = question.strip()
        while words.startswith(PLACEHOLDER) or words.endswith(PLACEHOLDER):
            words = words.removeprefix(PLACEHOLDER).removesuffix(PLACEHOLDER).strip()
        if places != images or PLACEHOLDER in words:
            why = f"but {images} image(s)" if places != images else "one of them between words"
            raise UserError(
                f'{where}: row {row} has "{PLACEHOLDER}" {places} time(s) in its question, {why}; '
                "write one for each image, before the words, or none."
            )
        made.append(words)
    return tuple(made), changed


def image_counts(table: datasets.Dataset, column: str) -> Sequence[int]:
    """Return how many images each row of a column has."""
    values = table.data.column(column)
    if not hasattr(values.type, "value_type"):
        return [1] * len(values)
    return pc.fill_null(pc.list_value_length(values), 0).to_pylist()

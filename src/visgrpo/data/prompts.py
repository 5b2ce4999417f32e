"""Prompts, with images or without, and pairs of completions, as the tokens that models read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from visgrpo.data.batches import CachedInputs, MadeRows
from visgrpo.data.kept import content_name
from visgrpo.data.pictures import Picture, Pictures
from visgrpo.data.roles import ended, prompt_table, require_answers, require_traces
from visgrpo.data.table import LazySequence, Splits, Table, of_bytes
from visgrpo.data.text import Prompt, lengths, opened_ids, padded, special_id, token_ids
from visgrpo.errors import UserError
from visgrpo.files import write_whole


def prompts_from_text(splits: Splits, tokenizer: Any, tokens: int) -> Splits:
    """Take the first tokens of every document that is at least twice as long as a prompt.

    A prompt is used once, in the test split if it is found there, else in validation, else in
    train: nothing that is measured on has been learnt from. One that the tokenizer does not give
    back as it was (an unknown character, a character cut in two) is left out.

    Args:
        splits: the documents.
        tokenizer: of transformers.
        tokens: the length of a prompt, 1 or more; what a tokenizer puts before a text is no part
            of it.

    Raises:
        UserError: if `tokens` is below 1, or a split has no document that is long enough.
    """
    if tokens < 1:
        raise UserError(f"A prompt must have 1 token or more, not {tokens}.")
    seen, made = set[str](), {}
    name = splits.train.name.removesuffix("/train")
    for split in ("test", "validation", "train"):
        documents: Sequence[str] = getattr(splits, split).texts
        where = f"{name}/{split}"
        prompts = [
            prompt
            for prompt in dict.fromkeys(_beginnings(documents, tokenizer, tokens, where))
            if prompt not in seen
        ]
        if not prompts:
            raise UserError(
                f"{where}: all its prompts of {tokens} tokens are in a split that is measured on; "
                "take more tokens or give more text."
            )
        seen.update(prompts)
        identity = of_bytes("prompts", (f"{len(text)} {text}".encode() for text in prompts))
        made[split] = prompt_table(where, tuple(prompts), identity=identity)
    counts = ", ".join(f"{len(made[split])} {split}" for split in ("train", "validation", "test"))
    note = f"{name}: {counts} prompts of {tokens} tokens from the starts of its documents."
    return Splits(made["train"], made["validation"], made["test"], notes=(note,))


def encode_prompts(dataset: Table, tokenizer: Any, *, max_tokens: int) -> CachedInputs:
    """Return the tokens of every prompt, rendered as text first.

    Strings begin as the tokenizer begins a plain text, messages as their chat template does.

    Args:
        dataset: M prompts.
        tokenizer: of transformers, with a padding token, and a chat template for messages.
        max_tokens: the longest prompt that is allowed.

    Returns:
        inputs_M (M, P) int64 ids, padded on the left to the longest prompt; lengths_M (M,) int64,
        the length of each.

    Raises:
        UserError: if there are no prompts, or one has no tokens or more than `max_tokens`.
    """
    if not len(dataset):
        raise UserError(f"{dataset.name} holds no prompts; give at least one.")
    pad = special_id(tokenizer, "pad")
    rows = opened_ids(dataset.prompts, tokenizer)
    for row, ids in enumerate(rows):
        if not 0 < len(ids) <= max_tokens:
            raise UserError(
                f"{dataset.name}: the prompt of row {row} has {len(ids)} tokens but 1 to "
                f"{max_tokens} are allowed beside the longest completion; shorten it, or lower "
                "--max-new-tokens."
            )
    return CachedInputs(padded(rows, pad, "left"), lengths_M=lengths(rows))


def _beginnings(documents: Sequence[str], tokenizer: Any, tokens: int, where: str) -> Sequence[str]:
    """Return the first `tokens` tokens, as text, of every document of twice as many."""
    rows = token_ids(documents, tokenizer)
    enough = [row for row, ids in enumerate(rows) if len(ids) >= 2 * tokens]
    if not enough:
        raise UserError(
            f"{where} has no document of {2 * tokens} tokens or more for prompts of {tokens} (the "
            f"longest has {max(map(len, rows))}); take fewer tokens or give longer documents."
        )
    beginnings = [rows[row][:tokens].tolist() for row in enough]
    texts = tokenizer.batch_decode(beginnings, clean_up_tokenization_spaces=False)
    prompts = [
        text for row, text in zip(enough, texts, strict=True) if documents[row].startswith(text)
    ]
    if not prompts:
        raise UserError(
            f'{where}: the tokenizer gives no prompt back as it was, such as "{texts[0]}"; '
            "use one made for this text."
        )
    return prompts


def write_pairs(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows with "prompt", "chosen", "rejected" and what else they hold as jsonl."""
    write_whole(path, "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows))


def encode_pairs(dataset: Table, tokenizer: Any, *, max_tokens: int) -> CachedInputs:
    """Return the tokens of each prompt with either completion, and the end token if it ended.

    Prompt and completion are encoded apart and joined, as they are when a model generates. A
    prompt that is a string begins as the tokenizer begins a plain text.

    Args:
        dataset: M pairs.
        tokenizer: of transformers, with an end and a padding token.
        max_tokens: the longest sequence that is allowed, prompt and end included.

    Returns:
        inputs_M (M, 2, T) int64 ids, chosen then rejected, padded on the right; lengths_M (M, 2)
        int64, the length of each.

    Raises:
        UserError: if there are no pairs, or a sequence is empty or longer than `max_tokens`.
    """
    if not len(dataset):
        raise UserError(f"{dataset.name} holds no pairs; give at least one.")
    pad = special_id(tokenizer, "pad")
    rows = _rows(dataset, tokenizer)
    for number, ids in enumerate(rows):
        if not 0 < len(ids) <= max_tokens:
            which = ("chosen", "rejected")[number % 2]
            raise UserError(
                f"{dataset.name}: row {number // 2} has {len(ids)} tokens with its {which} "
                f"completion but 1 to {max_tokens} are allowed; shorten it, drop the row or allow "
                "more."
            )
    tokens_MST = padded(rows, pad, "right").reshape(len(dataset), 2, -1)
    return CachedInputs(tokens_MST, lengths_M=lengths(rows).reshape(len(dataset), 2))


def pair_lengths(dataset: Table, tokenizer: Any) -> Tensor:
    """Return how many tokens `encode_pairs` makes of each text, (M, 2) int64."""
    return lengths(_rows(dataset, tokenizer)).reshape(len(dataset), 2)


def _rows(dataset: Table, tokenizer: Any) -> list[np.ndarray]:
    """Return the ids of the chosen and the rejected text of each pair, 2 M rows."""
    end = np.array([special_id(tokenizer, "eos")], dtype=np.int32)
    sides = (
        (token_ids(dataset.chosen, tokenizer), ended(dataset, "chosen")),
        (token_ids(dataset.rejected, tokenizer), ended(dataset, "rejected")),
    )
    return [
        np.concatenate([prompt, completions[row], end if ended[row] else end[:0]])
        for row, prompt in enumerate(opened_ids(dataset.prompts, tokenizer))
        for completions, ended in sides
    ]


Style = Literal["reasoning", "direct"]
HOW_TO_ANSWER: Mapping[Style, str] = {
    "reasoning": "Think in <think> </think>, then answer with a number in <answer> </answer>.",
    "direct": "Answer with a number in <answer> </answer>.",
}
QUESTION = "{question}"  # its place in a template
Messages = Sequence[Mapping[str, Any]]  # of a chat; their content names the places of images
AFTER_THE_END = -1  # no token
CACHE_BYTES = 2**30
_TOKENIZING = Lock()  # a fast tokenizer refuses to be called by two threads at once


class Processor(Protocol):
    """What makes pixels and tokens; see `visgrpo.models.vision_language`."""

    @property
    def tokenizer(self) -> Any: ...
    @property
    def placeholder_ids(self) -> tuple[int, ...]: ...
    def picture(self, image: Image.Image, alone: bool = True) -> Picture: ...
    def prompt_ids(self, messages: Messages, pictures: Sequence[Picture]) -> np.ndarray: ...


class VisualRow(NamedTuple):
    """What is made of one row: ids of the prompt and of its answer, and the images."""

    prompt: np.ndarray
    answer: np.ndarray | None
    pictures: tuple[Picture, ...]
    keys: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        return self.prompt.nbytes + sum(picture.pixels.nbytes for picture in self.pictures)


class _Kept:
    """Rows that were made. Another process starts without them: they are not sent there."""

    def __init__(self) -> None:
        self.rows: dict[int, VisualRow] = {}
        self.bytes = 0

    def keep(self, index: int, row: VisualRow, budget_bytes: int) -> None:
        """Keep a row where there is room."""
        if self.bytes + row.nbytes <= budget_bytes:
            self.rows[index] = row
            self.bytes += row.nbytes

    def __reduce__(self) -> tuple[type[_Kept], tuple[()]]:
        return _Kept, ()


def visual_prompts(dataset: Table, style: Style, template: str = "") -> tuple[Prompt, ...]:
    """Return the words of every row's prompt as a chat, as reward functions are given them."""
    return tuple(
        ({"role": "user", "content": asked(question, style, template)},)
        for question in dataset.questions
    )


def asked(question: str, style: Style, template: str = "") -> str:
    """Return a question with how it is to be answered: by the template, else with a number."""
    return (template or f"{QUESTION} {HOW_TO_ANSWER[style]}").replace(QUESTION, question)


def seeing_prompt(question: str, images: int, style: Style, template: str = "") -> Messages:
    """Return a user's message: some images, then the question and how to answer it."""
    words = {"type": "text", "text": asked(question, style, template)}
    return [{"role": "user", "content": [*({"type": "image"} for _ in range(images)), words]}]


def all_made(table: Table, inputs: Sequence[VisualInputs], *, skip: bool) -> Table:
    """Return the rows of which all inputs can be made: each is made once, as when it is used.

    Rows that are drawn and not stored are all of one make, and none is looked at.

    Args:
        table: the rows.
        inputs: what is to be made of them.
        skip: leave other rows out, listed in `skipped`.

    Raises:
        UserError: for the first row that cannot be made, or where none can.
    """
    if not (isinstance(table.images, LazySequence) and len(table) and table.images.content(0)):
        return table

    def make(_: Table, row: int) -> None:
        for each in inputs:
            each(row)

    if skip:
        return table.without_bad_rows(make)
    for problem in table.problems(make).values():
        raise UserError(f"{problem} Or leave such rows out with --skip-bad-images.")
    return table


def answer_targets(
    dataset: Table, style: Style, write: Callable[[str], str] = str, *, alone: bool = False
) -> tuple[str, ...]:
    """Return what a model is to write to every row.

    Args:
        write: makes the words of an answer of a true one.
        alone: whether rows without reasoning are answered without.

    Raises:
        UserError: where the data has no answer, or no reasoning that could be imitated.
    """
    require_answers(dataset)
    written = [f"<answer>{write(answer)}</answer>" for answer in dataset.answers]
    if style == "direct":
        return tuple(written)
    if not alone:
        require_traces(dataset)
    traces = dataset.traces or [""] * len(written)
    return tuple(
        f"<think>{trace}</think>{answer}" if trace or not alone else answer
        for trace, answer in zip(traces, written, strict=True)
    )


@dataclass(frozen=True)
class VisualInputs:
    """Decode the images of a row and make tokens of its prompt and answer. Picklable.

    Rows differ in shape, so it collates them itself. What was made is kept within a budget.

    Attributes:
        style: how the questions are to be answered; template has other words for it.
        targets: what is to be written to every row; None where nothing is imitated.
        max_tokens: of prompt and answer together, or of the prompt alone.
        alone: the template of rows without reasoning, whose answers alone are imitated; "" where
            all are asked alike.
    """

    dataset: Table
    style: Style
    processor: Processor
    max_tokens: int
    targets: Sequence[str] | None = None
    budget_bytes: int = CACHE_BYTES
    template: str = ""
    alone: str = ""
    _kept: _Kept = field(default_factory=_Kept, init=False, repr=False, compare=False)

    def __call__(self, index: int, rng: np.random.Generator | None = None) -> VisualRow:
        """Return what is made of row ``index``; nothing is random.

        Raises:
            UserError: for an image that cannot be read, and a prompt that is too long.
        """
        if index in self._kept.rows:
            return self._kept.rows[index]
        row = self._make(index)
        self._kept.keep(index, row, self.budget_bytes)
        return row

    def collate(self, made: Sequence[VisualRow]) -> MadeRows:
        """Return rows as a batch: prompts padded on the left, answers on the right."""
        tokenizer = self.processor.tokenizer
        prompts = [row.prompt for row in made]
        answers = [row.answer for row in made if row.answer is not None]
        return MadeRows(
            padded(prompts, special_id(tokenizer, "pad"), "left"),
            pictures=Pictures.of([row.pictures for row in made], [row.keys for row in made]),
            answers_NT=padded(answers, AFTER_THE_END, "right") if answers else None,
            lengths_N=lengths(prompts),
        )

    def _make(self, index: int) -> VisualRow:
        images = self.dataset.images[index]  # of an unreadable one the message names the place
        try:
            alone = len(images) == 1
            pictures = tuple(self.processor.picture(image, alone) for image in images)
            question = self.dataset.questions[index]
            traces = self.dataset.traces
            bare = self.alone and not (traces and traces[index])
            template = self.alone if bare else self.template
            messages = seeing_prompt(question, len(pictures), self.style, template)
            with _TOKENIZING:
                ids = self.processor.prompt_ids(messages, pictures)
        except UserError as error:
            raise UserError(f"{self.dataset.where(index)}: {error}") from error
        answer = None if self.targets is None else self._answer(index, self.targets[index])
        self._check_length(index, len(ids), 0 if answer is None else len(answer))
        keys = tuple(f"{content_name(each.pixels)} {each.grid}" for each in pictures)
        return VisualRow(ids, answer, pictures, keys)

    def _answer(self, index: int, target: str) -> np.ndarray:
        with _TOKENIZING:
            written = token_ids([target], self.processor.tokenizer)[0]
        if np.isin(written, self.processor.placeholder_ids).any():
            raise UserError(
                f"{self.dataset.where(index)}: its answer spells a token that stands for images; "
                "take it out."
            )
        return np.append(written, np.int32(special_id(self.processor.tokenizer, "eos")))

    def _check_length(self, index: int, prompt: int, answer: int) -> None:
        if prompt + answer <= self.max_tokens:
            return
        what = f"{self.dataset.where(index)} has a prompt of {prompt} tokens"
        if answer:
            raise UserError(
                f"{what} and an answer of {answer}, together more than the {self.max_tokens} that "
                "the model sees; lower --max-pixels or drop the row."
            )
        raise UserError(
            f"{what}, but at most {self.max_tokens} fit beside the longest completion; lower "
            "--max-pixels or --max-new-tokens."
        )

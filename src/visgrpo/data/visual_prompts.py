"""Questions about images as chat prompts, with the answers that SFT imitates beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from PIL import Image

from visgrpo.data.batches import MadeRows
from visgrpo.data.pictures import Picture, Pictures
from visgrpo.data.roles import require_answers, require_traces
from visgrpo.data.table import Table
from visgrpo.data.text import Prompt, lengths, padded, special_id, token_ids
from visgrpo.errors import UserError

Style = Literal["reasoning", "direct"]
HOW_TO_ANSWER: Mapping[Style, str] = {
    "reasoning": "Think in <think> </think>, then answer with a number in <answer> </answer>.",
    "direct": "Answer with a number in <answer> </answer>.",
}
Messages = Sequence[Mapping[str, Any]]  # of a chat; their content names the places of images
AFTER_THE_END = -1  # no token
CACHE_BYTES = 2**30
_NUMBERS = count()


class Processor(Protocol):
    """What makes pixels and tokens; see `visgrpo.models.vision_processor`."""

    @property
    def tokenizer(self) -> Any: ...
    @property
    def placeholder_ids(self) -> tuple[int, ...]: ...
    def picture(self, image: Image.Image) -> Picture: ...
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


def visual_prompts(dataset: Table, style: Style) -> tuple[Prompt, ...]:
    """Return the words of every row's prompt as a chat, as reward functions are given them."""
    return tuple(
        ({"role": "user", "content": asked(question, style)},) for question in dataset.questions
    )


def asked(question: str, style: Style) -> str:
    """Return a question with how it is to be answered."""
    return f"{question} {HOW_TO_ANSWER[style]}"


def seeing_prompt(question: str, images: int, style: Style) -> Messages:
    """Return a user's message: some images, then the question and how to answer it."""
    words = {"type": "text", "text": asked(question, style)}
    return [{"role": "user", "content": [*({"type": "image"} for _ in range(images)), words]}]


def answer_targets(dataset: Table, style: Style) -> tuple[str, ...]:
    """Return what a model is to write to every row.

    Raises:
        UserError: where the data has no answer, or no reasoning that could be imitated.
    """
    require_answers(dataset)
    written = [f"<answer>{answer}</answer>" for answer in dataset.answers]
    if style == "direct":
        return tuple(written)
    require_traces(dataset)
    assert dataset.traces is not None
    return tuple(
        f"<think>{trace}</think>{answer}"
        for trace, answer in zip(dataset.traces, written, strict=True)
    )


@dataclass(frozen=True)
class VisualInputs:
    """Decode the images of a row and make tokens of its prompt and answer. Picklable.

    Rows differ in shape, so it collates them itself. What was made is kept within a budget.

    Attributes:
        style: how the questions are to be answered.
        targets: what is to be written to every row; None where nothing is imitated.
        max_tokens: of prompt and answer together, or of the prompt alone.
    """

    dataset: Table
    style: Style
    processor: Processor
    max_tokens: int
    targets: Sequence[str] | None = None
    budget_bytes: int = CACHE_BYTES
    # Features of a frozen tower are kept by keys, which must not name another data set's images.
    _number: int = field(default_factory=lambda: next(_NUMBERS), init=False, repr=False)
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
            pictures = tuple(map(self.processor.picture, images))
            messages = seeing_prompt(self.dataset.questions[index], len(pictures), self.style)
            ids = self.processor.prompt_ids(messages, pictures)
        except UserError as error:
            raise UserError(f"{self.dataset.where(index)}: {error}") from error
        answer = None if self.targets is None else self._answer(index, self.targets[index])
        self._check_length(index, len(ids), 0 if answer is None else len(answer))
        keys = tuple(f"{self._number}/{index}/{place}" for place in range(len(pictures)))
        return VisualRow(ids, answer, pictures, keys)

    def _answer(self, index: int, target: str) -> np.ndarray:
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

"""Prompts to complete: strings or chat messages, with the other columns of their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from visgrpo.data.batches import CachedInputs
from visgrpo.data.chat import Message, Prompt, as_prompt, render
from visgrpo.data.dataset import check_lengths, take_rows
from visgrpo.data.identity import derived, of_bytes, of_rows
from visgrpo.data.prompt_splits import divide_prompted
from visgrpo.data.table_columns import find_column, value_column
from visgrpo.data.text import TextSplits
from visgrpo.data.text_tables import text_tables
from visgrpo.data.token_rows import lengths, opened_ids, padded, special_id, token_ids
from visgrpo.errors import UserError

__all__ = [
    "Message",
    "Prompt",
    "PromptDataset",
    "PromptSplits",
    "encode_prompts",
    "load_prompts",
    "prompts_from_text",
    "render",
]

PROMPT_COLUMNS = ("prompt", "question", "instruction", "query", "problem")


@dataclass(frozen=True)
class PromptDataset:
    """M prompts, with every other column of their table.

    Attributes:
        name: what messages call it, such as "questions/train".
        prompts: each a string, or the messages of a chat.
        columns: every other column by name, each of length M; reward functions receive them.
        identity: names the content (see `visgrpo.data.identity`); "" when unknown.

    Raises:
        UserError: if a column has another length than the prompts.
    """

    name: str
    prompts: tuple[Prompt, ...]
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    identity: str = ""

    def __post_init__(self) -> None:
        check_lengths(self.name, self.columns, len(self.prompts), "prompt")

    def __len__(self) -> int:
        return len(self.prompts)

    def subset(self, indices: Sequence[int] | np.ndarray) -> PromptDataset:
        """Return the rows at `indices`, in that order."""
        rows = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            prompts=tuple(self.prompts[row] for row in rows),
            columns={name: take_rows(column, rows) for name, column in self.columns.items()},
            identity=of_rows(self.identity, rows),
        )

    def named(self, name: str) -> PromptDataset:
        """Return the same rows under another name."""
        return replace(self, name=name)


@dataclass(frozen=True)
class PromptSplits:
    """Prompts in three splits.

    Attributes:
        train: prompts to learn from.
        validation: prompts to choose by.
        test: prompts to report on.
        notes: what was decided for the user, such as a test split made from the train rows.
    """

    train: PromptDataset
    validation: PromptDataset
    test: PromptDataset
    notes: tuple[str, ...] = ()


def load_prompts(
    spec: str, *, prompt_column: str | None = None, validation_fraction: float, seed: int
) -> PromptSplits:
    """Load prompts in three splits; missing ones are made as in `divide_prompted`.

    Args:
        spec: a .jsonl or .parquet file or a folder of them, or a data set of the Hub.
        prompt_column: the column of the prompts, strings or lists of messages with "role" and
            "content", when it has none of the usual names ("prompt", "question", …).
        validation_fraction: share of the train prompts that makes a missing validation split.
        seed: chooses that validation split.

    Raises:
        UserError: if there is no such table or column, or a row has no usable prompt.
    """
    tables = text_tables(spec)
    first = next(iter(tables.splits.values()))
    column = find_column(tables.name, first, "prompt", prompt_column, PROMPT_COLUMNS)
    stored = {}
    for split, table in tables.splits.items():
        where = f"{tables.name}/{split}"
        values = table.select_columns([column])[column][:]
        stored[split] = PromptDataset(
            name=where,
            prompts=tuple(
                as_prompt(value, f'{where}: row {row}, column "{column}"')
                for row, value in enumerate(values)
            ),
            columns={
                other: value_column(table, other) for other in table.column_names if other != column
            },
            identity=derived(tables.identities[split], f"column {column}"),
        )
    splits, notes = divide_prompted(tables.name, stored, fraction=validation_fraction, seed=seed)
    return PromptSplits(splits["train"], splits["validation"], splits["test"], notes)


def prompts_from_text(splits: TextSplits, tokenizer: Any, tokens: int) -> PromptSplits:
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
    for split in ("test", "validation", "train"):
        documents: tuple[str, ...] = getattr(splits, split)
        where = f"{splits.name}/{split}"
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
        made[split] = PromptDataset(where, tuple(prompts), identity=identity)
    counts = ", ".join(f"{len(made[split])} {split}" for split in ("train", "validation", "test"))
    note = f"{splits.name}: {counts} prompts of {tokens} tokens from the starts of its documents."
    return PromptSplits(made["train"], made["validation"], made["test"], (note,))


def encode_prompts(dataset: PromptDataset, tokenizer: Any, *, max_tokens: int) -> CachedInputs:
    """Return the tokens of every prompt, rendered as text first.

    Strings begin as the tokenizer begins a plain text, messages as their chat template does.

    Args:
        dataset: M prompts.
        tokenizer: of transformers, with a padding token, and a chat template for messages.
        max_tokens: the longest prompt that is allowed.

    Returns:
        inputs_M (M, P) int64 ids, padded on the left to the longest prompt; labels_M (M,) int64,
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
    return CachedInputs(padded(rows, pad, "left"), lengths(rows))


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

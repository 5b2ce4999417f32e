"""Pairs of completions of which one was preferred."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
from torch import Tensor

from visgrpo.data.batches import CachedInputs
from visgrpo.data.chat import Message, Prompt, as_prompt
from visgrpo.data.dataset import check_lengths, take_rows
from visgrpo.data.identity import derived, of_rows
from visgrpo.data.prompt_splits import divide_prompted
from visgrpo.data.table_columns import find_column, value_column
from visgrpo.data.text_tables import text_tables
from visgrpo.data.token_rows import lengths, opened_ids, padded, special_id, token_ids
from visgrpo.errors import UserError

PAIR_COLUMNS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class PairDataset:
    """M prompts with two completions each.

    Attributes:
        name: what messages call it, such as "pairs/train".
        prompts: each a string, or the messages of a chat.
        chosen: the text of the completion that was preferred.
        rejected: the text of the other.
        columns: every other column by name, each of length M. "chosen_ended" and "rejected_ended"
            say whether a completion came to its end; without them every one did.
        identity: names the content (see `visgrpo.data.identity`); "" when unknown.

    Raises:
        UserError: if the columns differ in length, or both completions of a row are the same.
    """

    name: str
    prompts: tuple[Prompt, ...]
    chosen: tuple[str, ...]
    rejected: tuple[str, ...]
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    identity: str = ""

    def __post_init__(self) -> None:
        columns = {"chosen": self.chosen, "rejected": self.rejected, **self.columns}
        check_lengths(self.name, columns, len(self.prompts), "prompt")
        chosen = zip(self.chosen, self.ended("chosen"), strict=True)
        rejected = zip(self.rejected, self.ended("rejected"), strict=True)
        for row, (one, other) in enumerate(zip(chosen, rejected, strict=True)):
            if one == other:
                raise UserError(
                    f"{self.name}: row {row} has the same text as chosen and as rejected, which "
                    "says nothing; drop the row."
                )

    def __len__(self) -> int:
        return len(self.prompts)

    def subset(self, indices: Sequence[int] | np.ndarray) -> PairDataset:
        """Return the rows at `indices`, in that order."""
        rows = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            prompts=tuple(self.prompts[row] for row in rows),
            chosen=tuple(self.chosen[row] for row in rows),
            rejected=tuple(self.rejected[row] for row in rows),
            columns={name: take_rows(column, rows) for name, column in self.columns.items()},
            identity=of_rows(self.identity, rows),
        )

    def named(self, name: str) -> PairDataset:
        """Return the same rows under another name."""
        return replace(self, name=name)

    def ended(self, which: Literal["chosen", "rejected"]) -> Sequence[bool]:
        """Return whether each chosen or rejected completion came to its end.

        Raises:
            UserError: if a row's column "chosen_ended" or "rejected_ended" is not true or false.
        """
        column = f"{which}_ended"
        values = self.columns.get(column, [True] * len(self))
        for row, value in enumerate(values):
            if not isinstance(value, bool):
                raise UserError(f"{self.name}: row {row} has {value!r} as {column}; give a bool.")
        return values


@dataclass(frozen=True)
class PairSplits:
    """Pairs in three splits.

    Attributes:
        train: pairs to learn from.
        validation: pairs to choose by.
        test: pairs to report on.
        notes: what was decided for the user, such as a test split made from the train rows.
    """

    train: PairDataset
    validation: PairDataset
    test: PairDataset
    notes: tuple[str, ...] = ()


def load_pairs(spec: str, *, validation_fraction: float, seed: int) -> PairSplits:
    """Load pairs in three splits; missing ones are made as in `divide_prompted`.

    Args:
        spec: a .jsonl or .parquet file or a folder of them, or a data set of the Hub, with the
            columns "prompt" (a string or messages), "chosen" and "rejected" (strings, or messages
            that end with the assistant's; any before it are the prompt's).
        validation_fraction: share of the train prompts that makes a missing validation split.
        seed: chooses that validation split.

    Raises:
        UserError: if there is no such table or column, or a row is no pair.
    """
    tables = text_tables(spec)
    stored = {
        split: _pairs(f"{tables.name}/{split}", table, tables.identities[split])
        for split, table in tables.splits.items()
    }
    splits, notes = divide_prompted(tables.name, stored, fraction=validation_fraction, seed=seed)
    return PairSplits(splits["train"], splits["validation"], splits["test"], notes)


def write_pairs(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows with "prompt", "chosen", "rejected" and what else they hold as jsonl."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(dict(row), ensure_ascii=False) + "\n")


def encode_pairs(dataset: PairDataset, tokenizer: Any, *, max_tokens: int) -> CachedInputs:
    """Return the tokens of each prompt with either completion, and the end token if it ended.

    Prompt and completion are encoded apart and joined, as they are when a model generates. A
    prompt that is a string begins as the tokenizer begins a plain text.

    Args:
        dataset: M pairs.
        tokenizer: of transformers, with an end and a padding token.
        max_tokens: the longest sequence that is allowed, prompt and end included.

    Returns:
        inputs_M (M, 2, T) int64 ids, chosen then rejected, padded on the right; labels_M (M, 2)
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
    return CachedInputs(tokens_MST, lengths(rows).reshape(len(dataset), 2))


def pair_lengths(dataset: PairDataset, tokenizer: Any) -> Tensor:
    """Return how many tokens `encode_pairs` makes of each text, (M, 2) int64."""
    return lengths(_rows(dataset, tokenizer)).reshape(len(dataset), 2)


def _rows(dataset: PairDataset, tokenizer: Any) -> list[np.ndarray]:
    """Return the ids of the chosen and the rejected text of each pair, 2 M rows."""
    end = np.array([special_id(tokenizer, "eos")], dtype=np.int32)
    sides = (
        (token_ids(dataset.chosen, tokenizer), dataset.ended("chosen")),
        (token_ids(dataset.rejected, tokenizer), dataset.ended("rejected")),
    )
    return [
        np.concatenate([prompt, completions[row], end if ended[row] else end[:0]])
        for row, prompt in enumerate(opened_ids(dataset.prompts, tokenizer))
        for completions, ended in sides
    ]


def _pairs(where: str, table: datasets.Dataset, identity: str) -> PairDataset:
    for column in PAIR_COLUMNS:
        find_column(where, table, "text", column, ())
    stored = table.select_columns(list(PAIR_COLUMNS))[:]
    values = zip(*(stored[column] for column in PAIR_COLUMNS), strict=True)
    rows = [_pair(f"{where}: row {row}", *value) for row, value in enumerate(values)]
    prompts, chosen, rejected = zip(*rows, strict=True)
    return PairDataset(
        name=where,
        prompts=prompts,
        chosen=chosen,
        rejected=rejected,
        columns={
            other: value_column(table, other)
            for other in table.column_names
            if other not in PAIR_COLUMNS
        },
        identity=derived(identity, "pairs"),
    )


def _pair(where: str, prompt: Any, chosen: Any, rejected: Any) -> tuple[Prompt, str, str]:
    given = as_prompt(prompt, f'{where}, column "prompt"')
    before_chosen, chosen_text = _completion(chosen, f'{where}, column "chosen"')
    before_rejected, rejected_text = _completion(rejected, f'{where}, column "rejected"')
    if before_chosen != before_rejected:
        raise UserError(f"{where}: chosen and rejected answer different messages; drop the row.")
    if not before_chosen:
        return given, chosen_text, rejected_text
    # Published sets repeat the prompt in both completions: then the chat is the prompt.
    last = before_chosen[-1]["content"]
    if given != before_chosen and given != last:
        raise UserError(
            f"{where}: its completions answer other messages than its prompt; drop the row."
        )
    return before_chosen, chosen_text, rejected_text


def _completion(value: Any, where: str) -> tuple[tuple[Message, ...], str]:
    """Return the messages before a completion, if any, and its text."""
    if isinstance(value, str):
        return (), value
    messages = as_prompt(value, where)
    if isinstance(messages, str) or messages[-1]["role"] != "assistant":
        raise UserError(f"{where}: its last message is not the assistant's; drop the row.")
    return tuple(messages[:-1]), messages[-1]["content"]

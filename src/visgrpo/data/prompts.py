"""Prompts to complete and pairs of completions, as the tokens that models read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from visgrpo.data.batches import CachedInputs
from visgrpo.data.roles import ended, prompt_table
from visgrpo.data.table import Splits, Table, of_bytes
from visgrpo.data.text import lengths, opened_ids, padded, special_id, token_ids
from visgrpo.errors import UserError


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
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(dict(row), ensure_ascii=False) + "\n")


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

"""Prompts, strings or chats, and texts: checked, compared, rendered, and encoded as token ids."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from visgrpo.data.batches import CachedInputs
from visgrpo.errors import UserError

_TEXTS_AT_A_TIME = 4096


def token_ids(texts: Sequence[str], tokenizer: Any) -> list[np.ndarray]:
    """Return the int32 ids of each text; special tokens are those that the text itself spells.

    Args:
        texts: any strings.
        tokenizer: of transformers.
    """
    rows: list[np.ndarray] = []
    for start in range(0, len(texts), _TEXTS_AT_A_TIME):
        encoded = tokenizer(
            list(texts[start : start + _TEXTS_AT_A_TIME]),
            add_special_tokens=False,
            return_attention_mask=False,
            verbose=False,  # texts longer than the model's context are cut or refused later
        )
        rows += [np.array(ids, dtype=np.int32) for ids in encoded["input_ids"]]
    return rows


def opened_ids(prompts: Sequence[Prompt], tokenizer: Any) -> list[np.ndarray]:
    """Return the int32 ids of each text that stands at the start of what a model reads.

    Before a string stands what the tokenizer puts there by its own default, such as Llama's
    ``<s>``, unless the string spells it itself; a chat template spells its own. Nothing is put
    after either.

    Args:
        prompts: strings, or messages that are rendered first.
        tokenizer: of transformers, with a chat template for messages.
    """
    rows = token_ids([render(prompt, tokenizer) for prompt in prompts], tokenizer)
    opening = _opening(tokenizer)
    return [
        _opened(ids, opening) if isinstance(prompt, str) else ids
        for prompt, ids in zip(prompts, rows, strict=True)
    ]


def special_id(tokenizer: Any, kind: Literal["eos", "pad"]) -> int:
    """Return the id of a tokenizer's end or padding token.

    Raises:
        UserError: if it has none.
    """
    token = getattr(tokenizer, f"{kind}_token_id")
    if token is None:
        raise UserError(
            f"The tokenizer has no {kind} token; set tokenizer.{kind}_token and save it again."
        )
    return int(token)


def padded(rows: Sequence[np.ndarray], pad: int, side: Literal["left", "right"]) -> Tensor:
    """Return M rows of ids as one (M, T) int64 tensor, T the longest row, filled up with `pad`."""
    width = max(map(len, rows))
    tokens_MT = np.full((len(rows), width), pad, dtype=np.int64)
    for tokens_T, ids in zip(tokens_MT, rows, strict=True):
        start = width - len(ids) if side == "left" else 0
        tokens_T[start : start + len(ids)] = ids
    return torch.from_numpy(tokens_MT)


def lengths(rows: Sequence[np.ndarray]) -> Tensor:
    """Return the (M,) int64 lengths of M rows."""
    return torch.tensor([len(row) for row in rows], dtype=torch.int64)


def _opening(tokenizer: Any) -> np.ndarray:
    """Return the ids that a tokenizer puts before a plain text by its own default."""
    special = set(tokenizer.all_special_ids)
    ordinary = (number for number in range(len(tokenizer)) if number not in special)
    # A text that every tokenizer can encode: some know a few characters only, and raise at others.
    text = next(text for number in ordinary if (text := tokenizer.decode([number])).strip())
    usual: list[int] = tokenizer(text)["input_ids"]
    plain: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    places = range(len(usual) - len(plain) + 1)
    start = next(place for place in places if usual[place : place + len(plain)] == plain)
    return np.array(usual[:start], dtype=np.int32)


def _opened(ids: np.ndarray, opening: np.ndarray) -> np.ndarray:
    if np.array_equal(ids[: len(opening)], opening):
        return ids
    return np.concatenate([opening, ids])


def token_blocks(documents: Sequence[str], tokenizer: Any, block: int) -> CachedInputs:
    """Cut documents, joined with an end token after each, into blocks that do not overlap.

    Before each stands what the tokenizer puts before a plain text, if anything. A block holds one
    token more than is predicted in it; what remains at the end is dropped.

    Args:
        documents: the text, in order.
        tokenizer: of transformers, with an end token.
        block: how many tokens are predicted in each block, 1 or more.

    Returns:
        inputs_M (M, block + 1) int64 ids; lengths_M (M,) int64, the number of tokens that count in
        a loss: always `block`.

    Raises:
        UserError: if `block` is below 1, the tokenizer has no end token, or the text is shorter
            than one block.
    """
    if block < 1:
        raise UserError(f"A block must hold 1 token or more, not {block}.")
    end = np.array([special_id(tokenizer, "eos")], dtype=np.int32)
    parts = [part for ids in opened_ids(documents, tokenizer) for part in (ids, end)]
    tokens = np.concatenate([np.empty(0, dtype=np.int32), *parts])
    rows = len(tokens) // (block + 1)
    if rows == 0:
        raise UserError(
            f"The text has {len(tokens)} tokens ({len(documents)} documents and their ends) but a "
            f"block takes {block + 1}; give more text or a smaller block."
        )
    blocks_MT = tokens[: rows * (block + 1)].reshape(rows, block + 1).astype(np.int64)
    return CachedInputs(torch.from_numpy(blocks_MT), lengths_M=torch.full((rows,), block))


Message = Mapping[str, str]
Prompt = str | Sequence[Message]


def as_prompt(value: Any, where: str) -> Prompt:
    """Return a stored value as a prompt; messages lose the keys that are None.

    Args:
        value: a string, or a list of messages.
        where: what errors call the place, such as 'questions/train: row 3, column "prompt"'.

    Raises:
        UserError: if it is neither, is empty, or a message has no text as role or content.
    """
    if not isinstance(value, str | list | tuple):
        kind = "nothing" if value is None else type(value).__name__
        raise UserError(f"{where} holds {kind}; give a string or a list of messages.")
    if not value:
        raise UserError(f"{where} is empty; fill it or drop the row.")
    return value if isinstance(value, str) else tuple(_message(part, where) for part in value)


def prompt_key(prompt: Prompt) -> str:
    """Return a text that is equal for equal prompts, and for no others."""
    return json.dumps(prompt if isinstance(prompt, str) else [dict(part) for part in prompt])


def render(prompt: Prompt, tokenizer: Any) -> str:
    """Return the text that a model completes: a string as it is, messages by the chat template.

    The template ends with the header of the answer (`add_generation_prompt`).

    Args:
        prompt: a string or messages.
        tokenizer: of transformers; needs a chat template for messages.

    Raises:
        UserError: if there is no chat template, or it refuses the messages.
    """
    import jinja2

    if isinstance(prompt, str):
        return prompt
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "The prompts are chat messages but the tokenizer has no chat template; "
            "give prompts as strings, or a model that was trained to chat."
        )
    messages = [dict(message) for message in prompt]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except jinja2.TemplateError as error:
        raise UserError(
            f"The tokenizer's chat template refuses the messages {messages} ({error}); "
            "mend their roles."
        ) from error
    return str(text)


def _message(message: Any, where: str) -> Message:
    for key in ("role", "content"):
        if not isinstance(message, Mapping) or not isinstance(message.get(key), str):
            raise UserError(
                f'{where}: a message has no text as "{key}"; write it as '
                '{"role": "user", "content": "…"}.'
            )
    # A table fills the keys that only other rows have with None.
    return {key: part for key, part in message.items() if part is not None}

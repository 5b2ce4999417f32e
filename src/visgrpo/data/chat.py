"""A prompt is a string or the messages of a chat: checked, compared, and rendered as text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from visgrpo.errors import UserError

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

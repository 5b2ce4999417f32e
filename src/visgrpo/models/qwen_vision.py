"""What Qwen2.5-VL asks of a language model: special tokens, chat template, rotary sections."""

from __future__ import annotations

from typing import Any

from visgrpo.errors import UserError

START, END = "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
VISION_TOKENS = (VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD)

# Messages whose content is a list of parts become messages of plain text, as any ChatML template
# takes them; the language model's own template follows and keeps its system prompt.
_PARTS_AS_TEXT = (
    "{%- set plain = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- if message['content'] is string or message['content'] is none -%}"
    "{%- set plain.messages = plain.messages + [message] -%}"
    "{%- else -%}"
    "{%- set text = namespace(value='') -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}"
    f"{{%- set text.value = text.value + '{VISION_START}{IMAGE_PAD}{VISION_END}' -%}}"
    "{%- else -%}"
    "{%- set text.value = text.value + part['text'] -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- set plain.messages = plain.messages + [dict(message, content=text.value)] -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- set messages = plain.messages -%}"
)
CHATML = (
    "{% for message in messages %}"
    f"{{{{ '{START}' + message['role'] + '\\n' + message['content'] + '{END}\\n' }}}}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{{{{ '{START}assistant\\n' }}}}{{% endif %}}"
)


def with_image_places(template: str | None) -> str:
    """Return a chat template that also takes images among the parts of a message's content.

    Args:
        template: of a language model, which takes strings; None for ChatML without a system prompt.
    """
    return _PARTS_AS_TEXT + (CHATML if template is None else template)


def mrope_section(head_dim: int) -> list[int]:
    """Return how many frequencies turn with time, rows and columns: 1 : 1.5 : 1.5, as Qwen2.5-VL's.

    A head of 128 has [16, 24, 24], one of 64 has [8, 12, 12]. On text the three positions are one,
    and the sections change nothing.

    Raises:
        UserError: for heads that are too narrow, or of odd width.
    """
    frequencies, odd = divmod(head_dim, 2)
    space = 3 * frequencies // 8
    if odd or not space:
        raise UserError(
            f"Heads {head_dim} wide cannot tell time, rows and columns apart: 6 or more, an even "
            "number, are needed."
        )
    return [frequencies - 2 * space, space, space]


def vision_token_ids(tokenizer: Any) -> dict[str, Any]:
    """Return the ids of the special tokens under the names that Qwen2.5-VL's settings have."""
    named = {
        "vision_start_token_id": VISION_START,
        "vision_end_token_id": VISION_END,
        "image_token_id": IMAGE_PAD,
        "video_token_id": VIDEO_PAD,
    }
    vocabulary = tokenizer.get_vocab()
    return {name: vocabulary[token] for name, token in named.items()}

"""Tokenizers made from the text, by character or byte pairs; chat with images; what any needs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from visgrpo.errors import UserError, nearest

TokenizerKind = Literal["char", "bpe"]

PAD, END, UNKNOWN = "<pad>", "<eos>", "<unk>"
TURN, END_OF_TURN = "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
VISION_TOKENS = (VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD)

# Messages whose content is a list of parts become messages of plain text, as any ChatML template
# takes them; the language model's own template follows and keeps its system prompt.
_PLACE = f"{VISION_START}{IMAGE_PAD}{VISION_END}"
_PARTS_AS_TEXT = (
    "{%- set plain = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- if message['content'] is string or message['content'] is none -%}"
    "{%- set plain.messages = plain.messages + [message] -%}"
    "{%- else -%}"
    "{%- set text = namespace(value='') -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}"
    f"{{%- set text.value = text.value + '{_PLACE}' -%}}"
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
    f"{{{{ '{TURN}' + message['role'] + '\\n' + message['content'] + '{END_OF_TURN}\\n' }}}}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{{{{ '{TURN}assistant\\n' }}}}{{% endif %}}"
)
_BYTES = 256
_SETTINGS: Mapping[str, Any] = {
    "padding_side": "left",  # as generation needs it
    "split_special_tokens": True,
    "clean_up_tokenization_spaces": False,
}


def make_tokenizer(kind: TokenizerKind, documents: Iterable[str], *, vocabulary: int = 512) -> Any:
    """Make a tokenizer of the training text; ``AutoTokenizer`` loads it as it was saved.

    What is encoded comes back from decoding, letter for letter; ``bpe`` composes accents (NFC).
    No special token is read out of text: a document that says "<eos>" does not end there.

    Args:
        kind: ``char``, every character of the text is a token and any other is ``<unk>``, for
            gpt2 alone; or ``bpe``, byte pairs, which encode any text.
        vocabulary: tokens of ``bpe``, at most; the text may have fewer pairs to merge.

    Raises:
        UserError: for text without a character, another kind, or a vocabulary without room for
            all bytes.
    """
    if kind not in get_args(TokenizerKind):
        raise UserError(
            f'Tokenizer "{kind}" is not known. {nearest(kind, get_args(TokenizerKind))}'
        )
    documents = list(documents)
    if not any(documents):
        raise UserError("A tokenizer cannot be made of text without a character.")
    if kind == "bpe":
        return _make_byte_pairs(documents, vocabulary)
    tokens = [PAD, END, UNKNOWN, *sorted(set().union(*documents))]
    ids = {token: number for number, token in enumerate(tokens)}
    return character_tokenizer(ids, end=END, pad=PAD, unknown=UNKNOWN)


def character_tokenizer(
    ids: Mapping[str, int], *, end: str, pad: str | None = None, unknown: str | None = None
) -> Any:
    """Make the tokenizer of a vocabulary whose tokens are characters.

    Without an unknown token, text with other characters cannot be encoded: tokenizers raises.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # The backend wants some unknown token; one that is not in the vocabulary makes it raise.
    model = models.WordLevel(vocab=dict(ids), unk_token=unknown or UNKNOWN)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end, pad_token=pad, unk_token=unknown, **_SETTINGS
    )


def with_image_places(template: str | None, place: str = _PLACE) -> str:
    """Return a chat template that also takes images among the parts of a message's content.

    Args:
        template: of a language model, which takes strings; None for ChatML without a system prompt.
        place: what is written for an image.
    """
    return _PARTS_AS_TEXT.replace(_PLACE, place) + (CHATML if template is None else template)


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


def check_tokenizer(tokenizer: Any, name: str, embeddings: int) -> str:
    """Check that a tokenizer can end and pad a completion and belongs to its model.

    One without a padding token gets its end token for padding, in place: padding is masked
    everywhere, so that no score depends on it.

    Args:
        name: of the model, for messages.
        embeddings: tokens that the model knows, V.

    Returns:
        A sentence on what was changed; empty where nothing was.

    Raises:
        UserError: without an end token, and for tokens that the model has no embedding of.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            f'The tokenizer of "{name}" has no end token, so no completion could end: set '
            "eos_token in its tokenizer_config.json."
        )
    tokens = 1 + max(tokenizer.get_vocab().values())
    if tokens > embeddings:
        raise UserError(
            f'The tokenizer of "{name}" has {tokens} tokens, the model embeddings of {embeddings}: '
            "they do not belong together."
        )
    if tokenizer.pad_token_id is not None:
        return ""
    tokenizer.pad_token = tokenizer.eos_token
    return f'The tokenizer of "{name}" has no padding token: {tokenizer.eos_token!r} pads.'


def _make_byte_pairs(documents: list[str], vocabulary: int) -> Any:
    """Train Qwen2's kind of tokenizer, which loads as it was saved beside a model of any kind.

    AutoTokenizer takes every tokenizer beside a qwen2 for one of these, whatever its files say.
    """
    from tokenizers import pre_tokenizers
    from tokenizers.trainers import BpeTrainer
    from transformers import Qwen2Tokenizer

    specials = [PAD, END]
    least = _BYTES + len(specials)
    if vocabulary < least:
        raise UserError(
            f"--vocabulary {vocabulary} has no room for every byte: give {least} or more."
        )
    names: dict[str, Any] = {"eos_token": END, "pad_token": PAD, "unk_token": None}
    trained = Qwen2Tokenizer(**names).backend_tokenizer
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator(documents, trainer)
    model = json.loads(trained.to_str())["model"]
    merges: Any = [tuple(pair) for pair in model["merges"]]
    return Qwen2Tokenizer(vocab=model["vocab"], merges=merges, **names, **_SETTINGS)

"""A tokenizer whose ids are told by the text, "a" is 3, "b" 4, …, and text to read with it."""

from __future__ import annotations

from typing import Any

from visgrpo.data.roles import text_table
from visgrpo.data.table import Splits

CHARACTERS = "abcdefghij \n:"
PAD, EOS, UNKNOWN = 0, 1, 2
BOS = 3 + len(CHARACTERS)  # where a tokenizer has one


def char_tokenizer(**special: str | None) -> Any:
    """Return it; `eos_token=None` or `pad_token=None` leaves one out."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<unk>", *CHARACTERS]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>", **special}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def opening_tokenizer() -> Any:
    """One that puts <bos>, 16, before a plain text and <eos> after it by its own default."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = char_tokenizer(bos_token="<bos>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    return tokenizer


def ids(text: str) -> list[int]:
    """What the tokenizer should say."""
    return [3 + CHARACTERS.index(character) for character in text]


def text_splits(
    train: tuple[str, ...], validation: tuple[str, ...], test: tuple[str, ...]
) -> Splits:
    """Documents called "letters" in three splits."""
    parts = {"train": train, "validation": validation, "test": test}
    return Splits(*(text_table(f"letters/{split}", texts) for split, texts in parts.items()))

"""Tokenizers: text comes back letter for letter, before and after saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from language_models import TEXT
from transformers import AutoConfig, AutoTokenizer
from vision_folders import asking, tiny_vision

from visgrpo.errors import UserError
from visgrpo.models.tokenizers import (
    TokenizerKind,
    check_tokenizer,
    make_tokenizer,
    with_image_places,
)

MODELS = (None, "gpt2", "qwen2", "llama")
KINDS: tuple[TokenizerKind, ...] = ("char", "bpe")
AWKWARD = ("  two  spaces ,and . points ", "\n\n\r\n\tx", "it 's don't", "", "\u00e9\u00a0")
ALPHABET = ["".join(AWKWARD) + "<eos><pad>"]

QWEN_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}"
    "{%- endif %}{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text)["input_ids"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", AWKWARD)
def test_text_comes_back_letter_for_letter(kind: TokenizerKind, text: str) -> None:
    tokenizer = make_tokenizer(kind, ALPHABET)
    assert tokenizer.decode(ids_of(tokenizer, text)) == text


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_not_read_out_of_text(kind: TokenizerKind) -> None:
    tokenizer = make_tokenizer(kind, ALPHABET)
    ids = ids_of(tokenizer, "<eos><pad>")
    assert not {tokenizer.eos_token_id, tokenizer.pad_token_id} & set(ids)
    assert tokenizer.decode(ids) == "<eos><pad>"


def test_characters_in_order_after_the_special_tokens() -> None:
    tokenizer = make_tokenizer("char", ["cab", "b\n"])
    assert tokenizer.get_vocab() == {
        **{"<pad>": 0, "<eos>": 1, "<unk>": 2},
        **{"\n": 3, "a": 4, "b": 5, "c": 6},
    }
    assert ids_of(tokenizer, "abc\n") == [4, 5, 6, 3]


def test_every_unknown_character_is_one_token() -> None:
    assert ids_of(make_tokenizer("char", ["ab"]), "aXYb") == [3, 2, 2, 4]


def test_byte_pairs_encode_any_text_and_shorten_their_own() -> None:
    tokenizer = make_tokenizer("bpe", [TEXT], vocabulary=300)
    assert len(tokenizer) <= 300
    assert len(ids_of(tokenizer, TEXT)) < len(TEXT)
    assert tokenizer.decode(ids_of(tokenizer, "naïve 東京 🙂")) == "naïve 東京 🙂"
    assert None not in ids_of(tokenizer, "東")


def test_bytes_alone() -> None:
    tokenizer = make_tokenizer("bpe", [TEXT], vocabulary=258)
    assert len(tokenizer) == 258
    assert len(ids_of(tokenizer, "東京")) == 6


def test_byte_pairs_compose_accents() -> None:
    tokenizer = make_tokenizer("bpe", [TEXT], vocabulary=258)
    assert tokenizer.decode(ids_of(tokenizer, "e\u0301")) == "\u00e9"


@pytest.mark.parametrize(
    ("kind", "beside"), [("char", None), ("char", "gpt2"), *(("bpe", m) for m in MODELS)]
)
def test_saved_and_loaded_it_is_the_same(
    kind: TokenizerKind, beside: str | None, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer(kind, ALPHABET)
    tokenizer.save_pretrained(tmp_path)
    if beside is not None:  # AutoTokenizer looks at the model's kind first
        AutoConfig.for_model(beside).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in (*AWKWARD, "<eos>", "unknown Ω"):
        assert ids_of(loaded, text) == ids_of(tokenizer, text)
        assert loaded.decode(ids_of(loaded, text)) == tokenizer.decode(ids_of(tokenizer, text))
    assert (loaded.eos_token_id, loaded.pad_token_id) == (1, 0)
    assert loaded.padding_side == "left"


def test_special_tokens_are_skipped_in_decoding() -> None:
    tokenizer = make_tokenizer("char", ["ab"])
    assert tokenizer.decode([3, 4, 1, 0], skip_special_tokens=True) == "ab"


@pytest.mark.parametrize("documents", [[], ["", ""]])
@pytest.mark.parametrize("kind", KINDS)
def test_no_text(kind: TokenizerKind, documents: list[str]) -> None:
    with pytest.raises(UserError, match="text without a character"):
        make_tokenizer(kind, documents)


def test_another_kind() -> None:
    with pytest.raises(UserError, match=r'"chars" is not known\. Did you mean "char"'):
        make_tokenizer("chars", [TEXT])  # type: ignore[arg-type]


def test_vocabulary_without_room_for_all_bytes() -> None:
    with pytest.raises(UserError, match=r"--vocabulary 100 .* 258 or more"):
        make_tokenizer("bpe", [TEXT], vocabulary=100)


def test_a_good_tokenizer_stays_as_it_is() -> None:
    tokenizer = make_tokenizer("char", ["ab"])
    assert check_tokenizer(tokenizer, "m", 5) == ""
    assert tokenizer.pad_token == "<pad>"


def test_without_an_end_token() -> None:
    tokenizer = make_tokenizer("char", ["ab"])
    tokenizer.eos_token = None
    with pytest.raises(UserError, match='tokenizer of "m" has no end token'):
        check_tokenizer(tokenizer, "m", 5)


def test_without_padding_the_end_token_pads_and_it_is_said() -> None:
    tokenizer = make_tokenizer("char", ["ab"])
    tokenizer.pad_token = None
    assert check_tokenizer(tokenizer, "m", 5).endswith("has no padding token: '<eos>' pads.")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 1


def test_more_tokens_than_embeddings() -> None:
    with pytest.raises(UserError, match="has 5 tokens, the model embeddings of 4"):
        check_tokenizer(make_tokenizer("char", ["ab"]), "m", 4)


def test_the_language_model_s_system_prompt_stays() -> None:
    tokenizer = tiny_vision().tokenizer
    plain = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    turned = [{"role": "system", "content": "Count."}, *plain]
    tokenizer.chat_template = QWEN_TEMPLATE
    before = [
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=header)
        for chat in (plain, turned)
        for header in (True, False)
    ]
    tokenizer.chat_template = with_image_places(QWEN_TEMPLATE)
    after = [
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=header)
        for chat in (plain, turned)
        for header in (True, False)
    ]
    assert after == before
    assert tokenizer.apply_chat_template(asking("?"), tokenize=False) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>?<|im_end|>\n"
    )


def test_a_language_model_without_template_gets_chatml() -> None:
    tokenizer = tiny_vision().tokenizer
    tokenizer.chat_template = with_image_places(None)
    chat = [{"role": "system", "content": "Count."}, *asking("?")]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nCount.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )

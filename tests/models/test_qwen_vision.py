"""What Qwen2.5-VL asks of a language model: rotary sections, and a chat template for images."""

from __future__ import annotations

import pytest
from vision_folders import asking, tiny_vision

from visgrpo.errors import UserError
from visgrpo.models.tokenizers import with_image_places
from visgrpo.models.vision_language.families import mrope_section

QWEN_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}"
    "{%- endif %}{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


@pytest.mark.parametrize(
    ("head_dim", "sections"),
    [(128, [16, 24, 24]), (64, [8, 12, 12]), (80, [10, 15, 15]), (8, [2, 1, 1]), (6, [1, 1, 1])],
)
def test_rotary_sections(head_dim: int, sections: list[int]) -> None:
    assert mrope_section(head_dim) == sections
    assert sum(sections) == head_dim / 2


@pytest.mark.parametrize("head_dim", [4, 7])
def test_heads_that_have_no_sections(head_dim: int) -> None:
    with pytest.raises(UserError, match=f"Heads {head_dim} wide cannot tell"):
        mrope_section(head_dim)


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

"""Small language models: transformers' own classes, sized and seeded as asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from language_models import TEXT, logits_of, tiny_language, tokenizer_for, tokens

from visgrpo.errors import UserError
from visgrpo.models.language import context_of
from visgrpo.models.small import SIZES, Architecture, build_language
from visgrpo.models.tokenizers import make_tokenizer

ARCHITECTURES: tuple[Architecture, ...] = ("gpt2", "qwen2")
SIZE: dict[str, Any] = {"layers": 2, "width": 16, "heads": 2, "context": 32, "seed": 0}


def build(architecture: str, **changes: int) -> Any:
    tokenizer = tokenizer_for("qwen2")
    return build_language(tokenizer, architecture=architecture, **SIZE | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("architecture", "name"), [("gpt2", "GPT2LMHeadModel"), ("qwen2", "Qwen2ForCausalLM")]
)
def test_a_class_of_transformers_with_tied_embeddings(architecture: str, name: str) -> None:
    model = build(architecture)
    assert type(model).__name__ == name
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    tokenizer = tokenizer_for("qwen2")
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert context_of(model) == 32


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_are_a_function_of_the_seed(architecture: Architecture) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = logits_of(tiny_language(architecture, seed=3))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(logits_of(tiny_language(architecture, seed=3)), first)
    assert not torch.equal(logits_of(tiny_language(architecture, seed=4)), first)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_dropout_in_training(architecture: Architecture) -> None:
    model = tiny_language(architecture)
    expected = logits_of(model)
    assert torch.equal(model.train()(tokens()).logits, expected)


def test_both_weigh_about_the_same() -> None:
    layers, width, heads = SIZES["nano"]
    weights = [
        sum(p.numel() for p in build(name, layers=layers, width=width, heads=heads).parameters())
        for name in ARCHITECTURES
    ]
    # 12 · layers · width² in the blocks; the rest is embeddings, biases and norms.
    assert all(12 * layers * width**2 < count < 13 * layers * width**2 for count in weights)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "--layers 0: give 1 or more"),
        ({"heads": 0}, "--heads 0: give 1 or more"),
        ({"context": 0}, "--context 0: give 1 or more"),
        ({"heads": 3}, "--heads 3 does not divide --width 16"),
        ({"width": 0}, "--heads 2 does not divide --width 0"),
    ],
)
def test_sizes_that_do_not_fit(changes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build("gpt2", **changes)


def test_heads_of_odd_width_cannot_be_rotated() -> None:
    with pytest.raises(UserError, match="are 1 wide: a qwen2 rotates pairs"):
        build("qwen2", heads=16)


def test_architecture_that_is_not_known() -> None:
    with pytest.raises(UserError, match=r'"gpt3" is not known\. Did you mean "gpt2"'):
        build("gpt3")


def test_characters_cannot_be_loaded_beside_a_qwen2() -> None:
    with pytest.raises(UserError, match="--architecture qwen2 takes a byte-level tokenizer"):
        tiny_language("qwen2", make_tokenizer("char", [TEXT]))

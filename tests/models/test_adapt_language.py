"""What of a language model trains: everything, or adapters on every linear layer but the head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from language_models import logits_of, tiny_language, train
from torch import nn

from visgrpo.errors import UserError
from visgrpo.models.adapt import trainable_parameters
from visgrpo.models.adapt_language import adapt_language
from visgrpo.models.small_language import Architecture

ADAPTED = {
    "gpt2": ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    "qwen2": (
        *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
        *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    ),
}
BLOCKS = {"gpt2": "transformer.h", "qwen2": "model.layers"}
ARCHITECTURES: tuple[Architecture, ...] = ("gpt2", "qwen2")


def with_adapter(model: Any, rank: int = 2) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return adapt_language(model, lora=True, rank=rank, alpha=4.0, dropout=0.0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adapters_on_every_linear_layer_but_the_head(architecture: Architecture) -> None:
    model = with_adapter(tiny_language(architecture))
    assert set(trainable_parameters(model)) == {
        f"base_model.model.{BLOCKS[architecture]}.{block}.{layer}.lora_{side}.default.weight"
        for block in (0, 1)
        for layer in ADAPTED[architecture]
        for side in "AB"
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adapters_start_as_no_change_and_off_is_the_start(architecture: Architecture) -> None:
    start = logits_of(tiny_language(architecture))
    model = with_adapter(tiny_language(architecture))
    torch.testing.assert_close(logits_of(model), start, rtol=0, atol=1e-6)
    train(model)
    assert (logits_of(model) - start).abs().max() > 1e-3
    with model.disable_adapter():
        torch.testing.assert_close(logits_of(model), start, rtol=0, atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_without_adapters_everything_trains(architecture: Architecture) -> None:
    model = tiny_language(architecture).requires_grad_(False)
    adapted = adapt_language(model, lora=False, rank=8, alpha=16.0, dropout=0.0)
    assert adapted is model
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_rank_below_one() -> None:
    with pytest.raises(UserError, match="--lora-rank 0: give 1 or more"):
        with_adapter(tiny_language(), rank=0)


def test_no_linear_layers() -> None:
    model = tiny_language()
    model.transformer.h = nn.ModuleList()
    with pytest.raises(UserError, match="a gpt2 has no linear layers"):
        with_adapter(model)

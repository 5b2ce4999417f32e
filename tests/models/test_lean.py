"""The lean step of every family it knows, against transformers' forward pass of whole texts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from token_models import COMPLETIONS, CONTEXT, LENGTHS, PROMPTS, VOCABULARY, each_plain, policy
from torch import Tensor

from visgrpo.models.language import Decoder, LanguageModel, TransformersSteps
from visgrpo.models.lean import WORTH_JOINING, LeanSteps, lean
from visgrpo.models.options import Adapt
from visgrpo.models.trains import adapt

LAYERS = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
SCALED = {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT}),
    "gpt2 of other scales": (
        "GPT2",
        {
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": CONTEXT,
            "activation_function": "gelu",
            "scale_attn_by_inverse_layer_idx": True,
        },
    ),
    "llama": ("Llama", {}),
    "llama, wide heads, biases, another rotation": (
        "Llama",
        {"head_dim": 6, "attention_bias": True, "mlp_bias": True, "rope_parameters": SCALED},
    ),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "phi": ("Phi", {}),
    "olmo2": ("Olmo2", {}),
    "llama that rotates by the length": ("Llama", {"rope_parameters": DYNAMIC}),
}


def built(family: str, settings: dict[str, Any]) -> Any:
    import transformers

    sizes = {k: LAYERS[k] for k in ("vocab_size", "initializer_range", "bos_token_id")}
    given = sizes | {"eos_token_id": 1} if family == "GPT2" else LAYERS
    config = getattr(transformers, f"{family}Config")(**{**given, **settings})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        name = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
        model = getattr(transformers, name)(config).eval()
        for key, weight in model.named_parameters():  # norms and biases that do something
            if weight.ndim == 1:
                torch.nn.init.normal_(weight, float("norm" in key or "ln" in key), 0.2)
    return model


@torch.no_grad()
def log_probs(model: LanguageModel) -> tuple[Tensor, Decoder]:
    """Log-probs of every next token (N, G, T, V), one token at a time."""
    decoder = model.begin(PROMPTS, LENGTHS, 2, COMPLETIONS.shape[2])
    logits = [decoder.logits_BV]
    for tokens_NG in COMPLETIONS[..., :-1].unbind(2):
        decoder.feed(tokens_NG.flatten())
        logits.append(decoder.logits_BV)
    return torch.stack(logits, 1).log_softmax(-1).unflatten(0, (3, 2)), decoder


@torch.no_grad()
def expected(model: LanguageModel) -> Tensor:
    return each_plain(model, PROMPTS, LENGTHS, COMPLETIONS).log_softmax(-1)


@pytest.mark.parametrize("joining", [WORTH_JOINING, 0], ids=["joined", "apart"])
@pytest.mark.parametrize("name", FAMILIES)
def test_log_probs_are_those_of_transformers(
    name: str, joining: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visgrpo.models.lean.WORTH_JOINING", joining)
    model = LanguageModel(built(*FAMILIES[name]))
    found, decoder = log_probs(model)
    assert isinstance(decoder._steps, LeanSteps)
    torch.testing.assert_close(found, expected(model), atol=1e-6, rtol=1e-6)
    assert torch.equal(found, log_probs(model)[0])


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "llama"])
def test_adapters_are_called(name: str) -> None:
    lm = adapt(built(*FAMILIES[name]), ["lora"], Adapt(2, 4.0))
    plain, _ = log_probs(LanguageModel(lm))
    for key, weight in lm.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(weight, std=0.2)
    model = LanguageModel(lm)
    found, decoder = log_probs(model)
    assert isinstance(decoder._steps, LeanSteps)
    torch.testing.assert_close(found, expected(model), atol=1e-6, rtol=1e-6)
    assert (found - plain).abs().max() > 0.01


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_rows_that_go_on_alone_keep_their_prompts(name: str) -> None:
    model = LanguageModel(built(*FAMILIES[name]))
    every, _ = log_probs(model)
    decoder = model.begin(PROMPTS, LENGTHS, 2, COMPLETIONS.shape[2])
    tokens_BT, every = COMPLETIONS.flatten(0, 1), every.flatten(0, 1)
    for step, kept in enumerate(([4, 1, 2], [2, 0])):
        decoder.feed(tokens_BT[:, step])
        decoder.keep(torch.tensor(kept))
        tokens_BT, every = tokens_BT[kept], every[kept]
        found = decoder.logits_BV.log_softmax(-1)
        torch.testing.assert_close(found, every[:, step + 1], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_steps_of_fixed_shapes_are_the_same(name: str) -> None:
    model = LanguageModel(built(*FAMILIES[name]))
    every, _ = log_probs(model)
    model.compiled = True
    found, decoder = log_probs(model)
    torch.testing.assert_close(found, every, atol=1e-6, rtol=1e-6)
    decoder = model.begin(PROMPTS, LENGTHS, 2, COMPLETIONS.shape[2])
    tokens_BT, every = COMPLETIONS.flatten(0, 1), every.flatten(0, 1)
    decoder.feed(tokens_BT[:, 0])
    decoder.keep(torch.tensor([4, 1, 2]))
    decoder.feed(tokens_BT[[4, 1, 2], 1])
    found = decoder.logits_BV.log_softmax(-1)
    torch.testing.assert_close(found, every[[4, 1, 2], 2], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_keep_their_own_way(name: str) -> None:
    model = LanguageModel(built(*OTHERS[name]))
    found, decoder = log_probs(model)
    assert isinstance(decoder._steps, TransformersSteps)
    torch.testing.assert_close(found, expected(model), atol=2e-6, rtol=2e-6)


def test_another_attention_and_the_plain_engine_are_left_alone() -> None:
    model = policy("qwen2")
    assert lean(model.trunk) is not None
    model.engine = "plain"
    assert isinstance(log_probs(model)[1]._steps, TransformersSteps)
    model.lm.set_attn_implementation("eager")
    assert lean(model.trunk) is None


def test_in_low_precision_it_is_as_near_as_transformers() -> None:
    for kind in ("gpt2", "qwen2"):
        model = policy(kind)
        exact = expected(model)
        with torch.autocast("cpu", torch.bfloat16):
            ours, _ = log_probs(model)
            model.engine = "plain"
            theirs, _ = log_probs(model)
        assert (ours - exact).abs().mean() < 1.5 * (theirs - exact).abs().mean()

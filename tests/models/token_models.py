"""Tiny language models as policies over tokens, and what one plain forward says of a sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from visgrpo.models.language import CriticKind, LanguageModel, critic_of
from visgrpo.models.options import Adapt
from visgrpo.models.trains import adapt

VOCABULARY, WIDTH, CONTEXT = 13, 16, 24
KINDS = ("gpt2", "qwen2", "gpt2-lora", "qwen2-lora")
PAD = 0
# Three prompts of 5, 2 and 4 tokens, padded on the left, with two completions each.
PROMPTS = torch.tensor([[7, 3, 9, 1, 4], [0, 0, 0, 11, 2], [0, 5, 5, 12, 8]])
LENGTHS = torch.tensor([5, 2, 4])
COMPLETIONS = torch.tensor(
    [
        [[2, 10, 4, 6], [2, 10, 1, 3]],
        [[9, 9, 12, 5], [1, 7, 2, 2]],
        [[3, 8, 11, 1], [12, 6, 6, 4]],
    ]
)


def causal_lm(kind: str, *, dropout: float = 0.0, seed: int = 0) -> Any:
    """GPT-2, or Qwen2 with two heads that share one key; weights so large that logits differ."""
    from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind.startswith("gpt2"):
            return GPT2LMHeadModel(
                GPT2Config(
                    vocab_size=VOCABULARY,
                    n_embd=WIDTH,
                    n_layer=2,
                    n_head=2,
                    n_positions=CONTEXT,
                    initializer_range=0.3,
                    resid_pdrop=dropout,
                    embd_pdrop=dropout,
                    attn_pdrop=dropout,
                    bos_token_id=None,
                    eos_token_id=1,
                )
            )
        return Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=VOCABULARY,
                hidden_size=WIDTH,
                intermediate_size=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=CONTEXT,
                initializer_range=0.3,
                attention_dropout=dropout,
                bos_token_id=None,
                eos_token_id=1,
            )
        )


def policy(
    kind: str, *, critic: CriticKind | None = None, dropout: float = 0.0, seed: int = 0
) -> LanguageModel:
    """A policy; adapters, where the kind has them, are no longer the identity."""
    lm = causal_lm(kind, dropout=dropout, seed=seed)
    value = critic_of(lm, critic) if critic else None
    if kind.endswith("lora"):
        with torch.random.fork_rng():
            torch.manual_seed(seed + 1)
            lm = adapt(lm, ["lora"], Adapt(2, 4.0, dropout))
            for name, weight in lm.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(weight, std=0.2)
    return LanguageModel(lm, value)


def plain_logits(model: LanguageModel, prompt_P: Tensor, completion_T: Tensor) -> Tensor:
    """Logits (T, V) that predict one completion: one sequence, no padding, no cache."""
    sequence = torch.cat([prompt_P, completion_T])
    logits = model.lm(sequence[None], use_cache=False).logits[0]
    return logits[len(prompt_P) - 1 : -1]


def each_plain(
    model: LanguageModel, prompts_NP: Tensor, lengths_N: Tensor, completions_NGT: Tensor
) -> Tensor:
    """Logits (N, G, T, V) of completions, one sequence after the other."""
    return torch.stack(
        [
            torch.stack([plain_logits(model, prompt[-length:], one) for one in group])
            for prompt, length, group in zip(
                prompts_NP, lengths_N.tolist(), completions_NGT, strict=True
            )
        ]
    )

"""Helpers of the language models' tests: tiny random models, and logits of a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from visgrpo.models.parts import Parts
from visgrpo.models.save import save
from visgrpo.models.small import Architecture, build_language
from visgrpo.models.tokenizers import make_tokenizer

TEXT = "Tell me, how does it feel?\n\nTo be on your own: no direction home.\n"
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def chat_tokenizer() -> Any:
    """Byte-level, as Qwen2's, with a chat template."""
    tokenizer = tokenizer_for("qwen2")
    tokenizer.chat_template = CHAT
    return tokenizer


def tokenizer_for(architecture: Architecture) -> Any:
    """Characters where they can be loaded again, else bytes."""
    if architecture == "gpt2":
        return make_tokenizer("char", [TEXT])
    return make_tokenizer("bpe", [TEXT], vocabulary=280)


def tiny_language(
    architecture: Architecture = "gpt2", tokenizer: Any = None, context: int = 128, seed: int = 0
) -> Any:
    tokenizer = tokenizer_for(architecture) if tokenizer is None else tokenizer
    return build_language(
        tokenizer,
        architecture=architecture,
        layers=2,
        width=16,
        heads=2,
        context=context,
        seed=seed,
    )


def saved_language(folder: Path, architecture: Architecture = "gpt2") -> Path:
    """A model folder as a run writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_for(architecture)
    save(
        tiny_language(architecture, tokenizer), Parts("", None, tokenizer), folder, "# a card\n", {}
    )
    return folder


def tokens() -> torch.Tensor:
    """Two rows of token ids that every model here knows, (2, 20)."""
    ids = make_tokenizer("char", [TEXT])(TEXT)["input_ids"]
    return torch.tensor([ids[:20], ids[20:40]])


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    """Logits (2, 20, V) of `tokens`."""
    return model.eval()(tokens()).logits


def train(model: Any, steps: int = 2) -> None:
    """Move every weight that trains by a few steps on `tokens`."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        model(tokens(), labels=tokens()).loss.backward()
        optimizer.step()

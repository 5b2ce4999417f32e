"""What of a language model trains: all of it, or low-rank adapters on its linear layers."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from visgrpo.errors import UserError
from visgrpo.models.adapt import wrap_in_adapters


def adapt_language(model: Any, *, lora: bool, rank: int, alpha: float, dropout: float) -> Any:
    """Return the model with everything training; with LoRA, a peft model with adapters alone.

    Adapters go on every linear layer but the output head, and start as no change. They start from
    torch's global generator: seed it before.

    Raises:
        UserError: for a rank below 1, and a model without linear layers.
    """
    if not lora:
        return model.requires_grad_(True)
    if rank < 1:
        raise UserError(f"--lora-rank {rank}: give 1 or more.")
    targets = linear_layers(model)
    if not targets:
        raise UserError(
            f"--lora: a {model.config.model_type} has no linear layers for adapters; train it in "
            "full."
        )
    with warnings.catch_warnings():  # peft sees by itself how GPT-2's Conv1D holds its weights
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)
        return wrap_in_adapters(model, targets, rank=rank, alpha=alpha, dropout=dropout)


def linear_layers(model: Any) -> list[str]:
    """Return the names of a model's linear layers, without its output head."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, Conv1D) and module is not head
    ]

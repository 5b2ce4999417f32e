"""Attention of many completions over one prompt: its keys and values are there once, not copied.

A query's scores over the prompt of its group and over its own completion are taken apart, in two
products of matrices, and normalised together: softmax([q·K_prompt, q·K_own]) · [V_prompt, V_own].
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "visgrpo_shared_prompt"  # by which transformers' layers find it in their config
_USUAL = "sdpa"


@dataclass(frozen=True)
class SharedPrompt:
    """N prompts before N·G completions.

    Attributes:
        layers: keys and values (N, heads, P, width) of every layer.
        group_size: G.
        blocked_N11P: what is added to the scores of places that are padding; None where none is.
    """

    layers: list[tuple[Tensor, Tensor]]
    group_size: int
    blocked_N11P: Tensor | None


_PROMPT: ContextVar[SharedPrompt | None] = ContextVar("prompt", default=None)


def can_share(trunk: Any) -> bool:
    """Whether a transformer's layers ask transformers for their attention, as most do."""
    return trunk.config._attn_implementation in (_USUAL, NAME)


@contextmanager
def after(prompt: SharedPrompt, trunk: Any) -> Iterator[None]:
    """Let completions attend to prompts that their own keys and values do not hold."""
    # It stays set: without a prompt before it, this is transformers' usual attention.
    trunk.config._attn_implementation = NAME
    token = _PROMPT.set(prompt)
    try:
        yield
    finally:
        _PROMPT.reset(token)


def shared_attention(
    module: Any,
    query_BhTd: Tensor,
    key_BkSd: Tensor,
    value_BkSd: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend to the prompt and to what a completion has itself; transformers' signature.

    Args:
        query_BhTd: of T new tokens of each of N·G completions; h heads are a multiple of k.
        key_BkSd: of the completions' own S tokens, the new ones among them.
        attention_mask: added to the scores of the own tokens, (1, 1, T, S); None for 0.

    Returns:
        What the tokens take from all values, (B, T, h, d).
    """
    prompt = _PROMPT.get()
    if prompt is None:
        return sdpa_attention_forward(
            module, query_BhTd, key_BkSd, value_BkSd, attention_mask, scaling=scaling, **others
        )
    keys_NkPd, values_NkPd = prompt.layers[module.layer_idx]
    heads, width = keys_NkPd.shape[1], query_BhTd.shape[-1]
    scale = width**-0.5 if scaling is None else scaling
    # G completions × r heads that share keys × T tokens ask the same prompt the same way.
    grid = (-1, prompt.group_size, heads, query_BhTd.shape[1] // heads, query_BhTd.shape[2])
    query_NGkrTd = (query_BhTd * scale).view(*grid, width)
    asking_Nkqd = query_NGkrTd.transpose(1, 2).flatten(2, 4)
    over_prompt_NkqP = asking_Nkqd @ keys_NkPd.transpose(-1, -2)
    if prompt.blocked_N11P is not None:
        over_prompt_NkqP = over_prompt_NkqP + prompt.blocked_N11P
    over_own_BkqS = query_NGkrTd.flatten(0, 1).flatten(2, 3) @ key_BkSd.transpose(-1, -2)
    over_own_NGkrTS = over_own_BkqS.view(*grid, key_BkSd.shape[2])
    if attention_mask is not None:
        over_own_NGkrTS = over_own_NGkrTS + attention_mask
    over_own_NkqS = over_own_NGkrTS.transpose(1, 2).flatten(2, 4)
    weights_NkqK = torch.cat([over_prompt_NkqP, over_own_NkqS], dim=-1).softmax(
        dim=-1, dtype=torch.promote_types(query_BhTd.dtype, torch.float32)
    )
    weights_NkqK = weights_NkqK.to(query_BhTd.dtype)
    padded = keys_NkPd.shape[2]
    n_prompts, _, group_size = len(keys_NkPd), None, prompt.group_size
    from_prompt_Nkqd = weights_NkqK[..., :padded] @ values_NkPd
    by_completion = weights_NkqK[..., padded:].unflatten(2, (group_size, -1)).transpose(1, 2)
    from_own_BkqD = by_completion.flatten(0, 1) @ value_BkSd
    taken_NGkqd = from_prompt_Nkqd.unflatten(2, (group_size, -1)).transpose(1, 2)
    taken_NGkqd = taken_NGkqd + from_own_BkqD.view(n_prompts, group_size, heads, -1, width)
    taken_BhTd = taken_NGkqd.reshape(query_BhTd.shape)
    return taken_BhTd.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, shared_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)

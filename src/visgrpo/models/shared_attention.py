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
WORTH_SHARING = 2**19  # numbers in the copied keys of a layer; measured on a CPU


@dataclass(frozen=True)
class SharedPrompt:
    """N prompts before N·G completions.

    Attributes:
        layers: keys and values (N, k, P, d) of every layer.
        group_size: G.
        blocked_N11P: what is added to the scores of places that are padding; None where none is.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    group_size: int
    blocked_N11P: Tensor | None

    def rows(self, rows_B: Tensor) -> SharedPrompt:
        """Return the prompts of some completions, one for each: they are no whole groups now."""
        prompts_B = rows_B // self.group_size
        blocked = None if self.blocked_N11P is None else self.blocked_N11P[prompts_B]
        layers = tuple((keys[prompts_B], values[prompts_B]) for keys, values in self.layers)
        return SharedPrompt(layers, 1, blocked)


_PROMPT: ContextVar[SharedPrompt | None] = ContextVar("prompt", default=None)


def pays(trunk: Any, keys_NkPd: Tensor, group_size: int, tokens: int) -> bool:
    """Whether sharing prompts costs less than copying them for each of their completions.

    For small models the copies cost less than taking attention apart. With many tokens at once the
    scores of all of them, which are kept for the backward pass, are larger than the copies.

    Args:
        tokens: of each completion that attend at once.
    """
    if trunk.config._attn_implementation not in (_USUAL, NAME):
        return False  # its layers have another attention than the one that is replaced here
    _, key_heads, _, width = keys_NkPd.shape
    heads = trunk.config.num_attention_heads
    copied = keys_NkPd.numel() * group_size
    return group_size > 1 and copied >= WORTH_SHARING and tokens * heads < 2 * key_heads * width


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
    keys_NkPd, values_NkPd = (
        tensor.to(query_BhTd.dtype) for tensor in prompt.layers[module.layer_idx]
    )
    heads, padded, width = keys_NkPd.shape[1:]
    # G completions, k heads of keys, r = h / k heads of queries to each of them, T tokens.
    grid = (-1, prompt.group_size, heads, query_BhTd.shape[1] // heads, query_BhTd.shape[2])
    query_NGkrTd = (query_BhTd * (scaling or width**-0.5)).view(*grid, width)
    # Of one prompt, all G · r · T queries at a head are one matrix of q rows.
    over_prompt_NkqP = _by_prompt(query_NGkrTd) @ keys_NkPd.transpose(-1, -2)
    if prompt.blocked_N11P is not None:
        over_prompt_NkqP = over_prompt_NkqP + prompt.blocked_N11P
    over_own_BkxS = query_NGkrTd.flatten(0, 1).flatten(2, 3) @ key_BkSd.transpose(-1, -2)
    over_own_NGkrTS = over_own_BkxS.view(*grid, key_BkSd.shape[2])
    if attention_mask is not None:
        over_own_NGkrTS = over_own_NGkrTS + attention_mask
    scores_Nkq = torch.cat([over_prompt_NkqP, _by_prompt(over_own_NGkrTS)], dim=-1)
    weights_Nkq = scores_Nkq.softmax(
        dim=-1, dtype=torch.promote_types(scores_Nkq.dtype, torch.float32)
    )
    weights_Nkq = weights_Nkq.to(query_BhTd.dtype)
    own_NGkxS = _by_completion(weights_Nkq[..., padded:], prompt.group_size)
    from_own_BkxD = own_NGkxS.flatten(0, 1) @ value_BkSd
    taken_NGkxd = _by_completion(weights_Nkq[..., :padded] @ values_NkPd, prompt.group_size)
    taken_NGkxd = taken_NGkxd + from_own_BkxD.view(taken_NGkxd.shape)
    return taken_NGkxd.reshape(query_BhTd.shape).transpose(1, 2).contiguous(), None


def _by_prompt(each_NGkrT: Tensor) -> Tensor:
    """Put all queries to one prompt together: (N, G, k, r, T, …) to (N, k, q, …)."""
    return each_NGkrT.transpose(1, 2).flatten(2, 4)


def _by_completion(each_Nkq: Tensor, group_size: int) -> Tensor:
    """Give every completion its own queries back: (N, k, q, …) to (N, G, k, r · T, …)."""
    return each_Nkq.unflatten(2, (group_size, -1)).transpose(1, 2)


AttentionInterface.register(NAME, shared_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)

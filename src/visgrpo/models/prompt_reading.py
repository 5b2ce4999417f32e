"""Prompts run through a transformer once, and completions after them that share what was read."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from visgrpo.models.shared_attention import SharedPrompt, after, pays
from visgrpo.models.token_cache import shared_prefix

BLOCKED = -1e4  # added to the scores of places that may not be looked at


class ReadPrompts(NamedTuple):
    """N prompts after a pass through a transformer.

    Attributes:
        hidden_ND: the last state of each, which predicts the first token of its completions.
        cache: keys and values (N, heads, P, width) of every layer.
        lengths_N: real tokens of each, padded on the left to P.
        next_N: position of the token that follows each; an image takes fewer positions than places.
    """

    hidden_ND: Tensor
    cache: Any
    lengths_N: Tensor
    next_N: Tensor

    @property
    def padded(self) -> int:
        """P, the places of the longest prompt."""
        return int(self.cache.get_seq_length())

    def sharing_pays(self, trunk: Any, group_size: int, tokens: int) -> bool:
        """Whether completions should attend to the prompts themselves, not to copies of them."""
        return pays(trunk, self.cache.layers[0].keys, group_size, tokens)

    def shared(self, group_size: int) -> SharedPrompt:
        """Return the prompts as N·G completions attend to them."""
        blocked = None
        if is_ragged(self.lengths_N, self.padded):
            rows_N11P = padding(self.lengths_N, self.padded)[:, None, None]
            blocked = additive(rows_N11P, self.hidden_ND.dtype)
        layers = tuple((layer.keys, layer.values) for layer in self.cache.layers)
        return SharedPrompt(layers, group_size, blocked)


def text_positions(lengths_N: Tensor, padded: int) -> Tensor:
    """Return the positions (N, P) of prompts padded on the left: from 0 at the first real token."""
    places = torch.arange(padded, device=lengths_N.device)
    return (places - (padded - lengths_N[:, None])).clamp(min=0)


def read_prompts(
    trunk: Any, lengths_N: Tensor, positions: Tensor, next_N: Tensor, **inputs: Tensor
) -> ReadPrompts:
    """Run N prompts through a transformer.

    Args:
        positions: (N, P), or (3, N, P) of time, rows and columns.
        inputs: ``input_ids`` (N, P) or ``inputs_embeds`` (N, P, D).
    """
    from transformers import DynamicCache

    padded = positions.shape[-1]
    mask = None
    if is_ragged(lengths_N, padded):
        steps = torch.arange(padded, device=lengths_N.device)
        later = steps[None, :] > steps[:, None]
        mask = additive(later | padding(lengths_N, padded)[:, None, None], trunk.dtype)
    out = trunk(
        **inputs,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=DynamicCache(),
        use_cache=True,
    )
    return ReadPrompts(out.last_hidden_state[:, -1], out.past_key_values, lengths_N, next_N)


def hidden_after(trunk: Any, read: ReadPrompts, tokens_NGT: Tensor) -> Tensor:
    """Return the hidden states (N, G, T, D) that predict the tokens of G completions of N prompts.

    The last state of the prompt predicts the first token; a completion's last token predicts none
    and is not read. Gradients flow back into the prompts.
    """
    n_prompts, group_size, length = tokens_NGT.shape
    first_NG1D = read.hidden_ND[:, None, None].expand(-1, group_size, 1, -1)
    if length == 1:
        return first_NG1D
    padded, later_tokens = read.padded, length - 1
    steps = torch.arange(later_tokens, device=tokens_NGT.device)
    later = steps[None, :] > steps[:, None]
    inputs = {
        "input_ids": tokens_NGT[..., :-1].flatten(0, 1),
        "position_ids": (read.next_N[:, None] + steps).repeat_interleave(group_size, dim=0),
    }
    if read.sharing_pays(trunk, group_size, later_tokens):
        mask = additive(later[None, None], trunk.dtype)
        with after(read.shared(group_size), trunk):
            out = trunk(**inputs, attention_mask=mask, use_cache=False)
    else:
        blocked = nn.functional.pad(later, (padded, 0))[None, None]  # (1, 1, T - 1, P + T - 1)
        if is_ragged(read.lengths_N, padded):
            rows = padding(read.lengths_N, padded).repeat_interleave(group_size, dim=0)
            blocked = blocked | nn.functional.pad(rows, (0, later_tokens))[:, None, None]
        out = trunk(
            **inputs,
            attention_mask=additive(blocked, trunk.dtype),
            past_key_values=shared_prefix(read.cache, group_size),
            use_cache=True,
        )
    rest = out.last_hidden_state.unflatten(0, (n_prompts, group_size))
    return torch.cat([first_NG1D, rest], dim=2)


def is_ragged(lengths_N: Tensor, padded: int) -> bool:
    """Whether a prompt is shorter than the longest."""
    return int(lengths_N.min()) < padded


def padding(lengths_N: Tensor, padded: int) -> Tensor:
    """Return which places (N, P) are padding, on the left."""
    places = torch.arange(padded, device=lengths_N.device)
    return places < padded - lengths_N[:, None]


def additive(blocked: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to attention's scores.

    A number whose exponential is 0 stands for -inf: a padded place, which may look at nothing, then
    gets some finite value instead of NaN, and nobody looks at it. It is finite in every precision.
    """
    allowed = torch.zeros(blocked.shape, dtype=dtype, device=blocked.device)
    return allowed.masked_fill(blocked, BLOCKED)

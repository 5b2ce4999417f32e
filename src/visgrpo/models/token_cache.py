"""Keys and values of prompts, computed once and shared by all completions of a prompt.

Both are cache layers as transformers' models take them, with tensors (rows, heads, tokens, width).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class SharedPrefixLayer(DynamicLayer):
    """Prompts (N, h, P, d) seen by N·G completions at once; gradients flow back into the prompts.

    Nothing is kept of the completions: this is for scoring whole ones in a single pass.
    """

    def __init__(self, prompts: Any, group_size: int) -> None:
        super().__init__()
        self._prompts, self._group_size = prompts, group_size
        self.keys, self.values = prompts.keys, prompts.values
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return self._joined(self._prompts.keys, key_states), self._joined(
            self._prompts.values, value_states
        )

    def _joined(self, prompt_NhPd: Tensor, new_BhTd: Tensor) -> Tensor:
        """Put each prompt before its completions, (B, h, P + T, d): one copy, no repeat before."""
        grouped = new_BhTd.unflatten(0, (-1, self._group_size))
        prompts = prompt_NhPd.unsqueeze(1).expand(-1, self._group_size, -1, -1, -1)
        return torch.cat([prompts.to(new_BhTd.dtype), grouped], dim=-2).flatten(0, 1)


class GrowingLayer(DynamicLayer):
    """Keys and values of rows, with room for the tokens to come. Without gradient.

    A new token is written in place: generating T tokens copies no cache T times.
    """

    def __init__(self, buffers: tuple[Tensor, Tensor], length: int) -> None:
        """Take buffers (B, h, tokens that may come to be, d) of which ``length`` are filled."""
        super().__init__()
        self._buffers, self._length = buffers, length
        self.keys, self.values = self._filled()
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        length = key_states.shape[-2]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer.narrow(-2, self._length, length).copy_(new)
        self._length += length
        self.keys, self.values = self._filled()
        return self.keys, self.values

    def keep(self, rows_B: Tensor) -> None:
        """Go on with some rows only."""
        keys, values = self._buffers
        self._buffers = keys[rows_B], values[rows_B]
        self.keys, self.values = self._filled()

    def _filled(self) -> tuple[Tensor, Tensor]:
        keys, values = (buffer.narrow(-2, 0, self._length) for buffer in self._buffers)
        return keys, values


def shared_prefix(prompts: Cache, group_size: int) -> Cache:
    """Return a cache of N prompts for scoring N·G completions in one pass, with gradient."""
    return Cache(layers=[SharedPrefixLayer(layer, group_size) for layer in prompts.layers])


def rollout_cache(prompts: Any, group_size: int, new_tokens: int) -> Cache:
    """Return a cache for generating N·G completions that holds each one's prompt, copied once."""

    def with_room(prompt_NhPd: Tensor) -> Tensor:
        rows, heads, length, width = prompt_NhPd.shape
        buffer = prompt_NhPd.new_empty(rows, group_size, heads, length + new_tokens, width)
        buffer[:, :, :, :length] = prompt_NhPd.unsqueeze(1)
        return buffer.flatten(0, 1)

    return Cache(
        layers=[
            GrowingLayer((with_room(layer.keys), with_room(layer.values)), layer.keys.shape[-2])
            for layer in prompts.layers
        ]
    )


def own_cache(prompts: Any, group_size: int, new_tokens: int) -> Cache:
    """Return a cache for generating N·G completions that holds their own tokens alone."""

    def room(prompt_NhPd: Tensor) -> Tensor:
        rows, heads, _, width = prompt_NhPd.shape
        return prompt_NhPd.new_empty(rows * group_size, heads, new_tokens, width)

    return Cache(
        layers=[GrowingLayer((room(layer.keys), room(layer.values)), 0) for layer in prompts.layers]
    )

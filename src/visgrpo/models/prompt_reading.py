"""Prompts run through a transformer once, and completions after them that share what was read.

Completions get copies of a prompt's keys and values, in one of two caches; or, where that costs
less, attend to them where they are. A query's scores over the prompt of its group and over its own
completion are then taken apart, in two products of matrices, and normalised together:
softmax([q·K_prompt, q·K_own]) · [V_prompt, V_own].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from visgrpo.errors import UserError

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
    trunk: Any,
    lengths_N: Tensor,
    positions: Tensor,
    next_N: Tensor,
    ahead_NPP: Tensor | None = None,
    **inputs: Tensor,
) -> ReadPrompts:
    """Run N prompts through a transformer.

    Args:
        positions: (N, P), or (3, N, P) of time, rows and columns.
        ahead_NPP: which later places a place sees all the same; none by default.
        inputs: ``input_ids`` (N, P) or ``inputs_embeds`` (N, P, D), and more that it takes.
    """
    from transformers import DynamicCache

    cache = DynamicCache()
    cache.layer_class_to_replicate = ReadLayer
    padded = positions.shape[-1]
    mask = None
    if is_ragged(lengths_N, padded) or ahead_NPP is not None:
        steps = torch.arange(padded, device=lengths_N.device)
        later = steps[None, :] > steps[:, None]
        if ahead_NPP is not None:
            later = (later & ~ahead_NPP)[:, None]
        mask = additive(later | padding(lengths_N, padded)[:, None, None], trunk.dtype)
    out = trunk(
        **inputs,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    )
    if cache.get_seq_length() != padded:
        raise UserError(
            "transformers' own gradient checkpointing keeps no cache of prompts: switch it off, "
            "and set the model's recompute instead."
        )
    return ReadPrompts(out.last_hidden_state[:, -1], cache, lengths_N, next_N)


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


NAME = "visgrpo_shared_prompt"  # by which transformers' layers find it in their config
_USUAL = "sdpa"
WORTH_SHARING = 2**19  # numbers in the copied keys of a layer; measured on a CPU
SHORTEST_SHARED = 64  # places of prompts that whole completions share
LONG_PROMPT = 2  # times as many places as there are tokens at once; measured on a CPU, see pays


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
    _, key_heads, padded, width = keys_NkPd.shape
    if tokens > 1 and keys_NkPd.device.type == "cpu":
        return group_size > 1 and padded >= max(LONG_PROMPT * tokens, SHORTEST_SHARED)
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
    device = query_BhTd.device.type
    if torch.is_autocast_enabled(device):  # which gives the usual attention what it computes in
        dtype = torch.get_autocast_dtype(device)
        own = query_BhTd, key_BkSd, value_BkSd
        query_BhTd, key_BkSd, value_BkSd = (each.to(dtype) for each in own)
    keys_NkPd, values_NkPd = (
        tensor.to(query_BhTd.dtype) for tensor in prompt.layers[module.layer_idx]
    )
    heads, padded, width = keys_NkPd.shape[1:]
    if 1 < query_BhTd.shape[2] == key_BkSd.shape[2] and _has_kernel(query_BhTd, key_BkSd):
        inputs = query_BhTd, key_BkSd, value_BkSd, keys_NkPd, values_NkPd, prompt.blocked_N11P
        taken_BhTd = WholeCompletions.apply(*inputs, scaling or width**-0.5)
        return taken_BhTd.transpose(1, 2).contiguous(), None
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


def _has_kernel(query: Tensor, keys: Tensor) -> bool:
    return query.device.type == "cpu" and query.dtype == keys.dtype != torch.float16


_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class WholeCompletions(torch.autograd.Function):
    """Attention of whole completions to their prompts and, causally, to themselves.

    Torch's kernel takes both apart, and gives the logarithms Z of their normalisers: with Z of both
    together, the parts are out = Σ exp(Z_i - Z) out_i, and the kernel's own backward pass of each
    part, given out and Z of the whole, is its part of the gradient (Liu et al. 2023, arXiv
    2310.01889, appendix A).
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_BhTd: Tensor,
        key_BkTd: Tensor,
        value_BkTd: Tensor,
        keys_NkPd: Tensor,
        values_NkPd: Tensor,
        blocked_N11P: Tensor | None,
        scaling: float,
    ) -> Tensor:
        prompts, rows, shape = len(keys_NkPd), len(query_BhTd), query_BhTd.shape
        key_heads = keys_NkPd.shape[1]
        blocked_N11P = None if blocked_N11P is None else blocked_N11P.to(query_BhTd.dtype)
        grid = prompts, rows // prompts, key_heads, shape[1] // key_heads, shape[2]
        own = query_BhTd, *(_repeated(each, grid[3]) for each in (key_BkTd, value_BkTd))
        over = _as_matrices(query_BhTd, grid), keys_NkPd, values_NkPd
        out_own, log_own = _attend(*own, is_causal=True, scale=scaling)
        out_over, log_over = _attend(*over, attn_mask=blocked_N11P, scale=scaling)
        log_over = _as_rows(log_over.unsqueeze(-1), grid)
        log_own = log_own.unsqueeze(-1)
        log_BhT1 = torch.logaddexp(log_over, log_own)
        out_BhTd = _as_rows(out_over, grid) * (log_over - log_BhT1).exp()
        out_BhTd = out_BhTd.addcmul_(out_own, (log_own - log_BhT1).exp()).to(query_BhTd.dtype)
        ctx.save_for_backward(*own, *over, blocked_N11P, out_BhTd, log_BhT1)
        ctx.grid, ctx.scaling = grid, scaling
        return out_BhTd

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        *both, blocked_N11P, out_BhTd, log_BhT1 = ctx.saved_tensors
        own, over, grid = both[:3], both[3:], ctx.grid
        (gradient_BhTd,) = gradients
        query, key, value = _attend_backward(
            gradient_BhTd, *own, out_BhTd, log_BhT1.squeeze(-1), 0.0, True, scale=ctx.scaling
        )
        query_over, keys, values = _attend_backward(
            _as_matrices(gradient_BhTd, grid),
            *over,
            _as_matrices(out_BhTd, grid),
            _as_matrices(log_BhT1, grid).squeeze(-1),
            0.0,
            False,
            attn_mask=blocked_N11P,
            scale=ctx.scaling,
        )
        query = query + _as_rows(query_over, grid)
        if grid[3] > 1:
            key, value = (each.unflatten(1, (grid[2], grid[3])).sum(2) for each in (key, value))
        return query, key, value, keys, values, None, None


def _repeated(each_BkTd: Tensor, times: int) -> Tensor:
    return each_BkTd if times == 1 else each_BkTd.repeat_interleave(times, dim=1)


def _as_matrices(each_BhTd: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Put all rows of one prompt's group at a head of keys together: (N, k, G · r · T, d)."""
    return each_BhTd.reshape(*grid, -1).transpose(1, 2).flatten(2, 4).contiguous()


def _as_rows(each_NkQd: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Give every completion its own rows back: (B, h, T, d)."""
    prompts, group, key_heads, shared, tokens = grid
    each = each_NkQd.view(prompts, key_heads, group, shared, tokens, -1).transpose(1, 2)
    return each.reshape(prompts * group, key_heads * shared, tokens, -1)


def _by_prompt(each_NGkrT: Tensor) -> Tensor:
    """Put all queries to one prompt together: (N, G, k, r, T, …) to (N, k, q, …)."""
    return each_NGkrT.transpose(1, 2).flatten(2, 4)


def _by_completion(each_Nkq: Tensor, group_size: int) -> Tensor:
    """Give every completion its own queries back: (N, k, q, …) to (N, G, k, r · T, …)."""
    return each_Nkq.unflatten(2, (group_size, -1)).transpose(1, 2)


AttentionInterface.register(NAME, shared_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


class ReadLayer(DynamicLayer):
    """Keys and values of prompts that are read in one pass; a pass again changes nothing."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        key_states, value_states = key_states.contiguous(), value_states.contiguous()
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.keys, self.values, self.is_initialized = key_states, value_states, True
        return key_states, value_states


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


@contextmanager
def recomputed(*modules: nn.Module) -> Iterator[None]:
    """Let blocks keep their inputs alone for the backward pass, which runs them again.

    Values and gradients stay what they are (Chen et al. 2016, arXiv 1604.06174). What a prompt's
    block puts into the cache is kept, and completions' blocks run again after it.

    Args:
        modules: transformers, whose blocks stand in their first list of modules.
    """
    lists = [next(m for m in each.modules() if isinstance(m, nn.ModuleList)) for each in modules]
    blocks: list[Any] = [block for blocks in lists for block in blocks]
    for block in blocks:
        block.forward = partial(_run_again, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _run_again(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    prompt = _PROMPT.get()

    def run(*args: Any, **kwargs: Any) -> Any:
        token = _PROMPT.set(prompt)  # the backward pass is not within `after`
        try:
            return forward(*args, **kwargs)
        finally:
            _PROMPT.reset(token)

    # Nothing is drawn in a block: dropout is off.
    return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


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

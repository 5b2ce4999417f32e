"""One token of many completions through a transformer, without what does not change between tokens.

For GPT-2, and for the family of Llama, Mistral, Qwen2 and Qwen3 with the text models of Qwen-VLs:
their layers as plain products of matrices. Rotations are made once, keys and values are written in
place, and grouped heads share their keys; the prompts' keys and values are there once for a group:
softmax([q·K_prompt, q·K_own]) · [V_prompt, V_own].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visgrpo.models.prompt_reading import NAME, SharedPrompt

Map = Callable[[Tensor], Tensor]
# Weights of products of the same input are put together up to so many numbers: above, a product
# costs more than calling it, and a copy of its weights more than it saves.
WORTH_JOINING = 2**20
_ROTATED = frozenset(
    {
        "LlamaModel",
        "MistralModel",
        "Qwen2Model",
        "Qwen3Model",
        "Qwen2VLTextModel",
        "Qwen2_5_VLTextModel",
        "Qwen3VLTextModel",
    }
)


@dataclass(frozen=True)
class Heads:
    """h heads of queries, k of keys, each d wide; scores are multiplied by ``scaling``."""

    queries: int
    keys: int
    width: int
    scaling: float


@dataclass(frozen=True)
class Layer:
    """A layer's maps of rows (B, D).

    Attributes:
        projected: to queries, keys and values side by side (B, (h + 2k) · d), of the normed input.
        rotated: normalises each head of queries and keys (…, h + k, d), before they are rotated.
        out: from what attention took (B, h · d).
        rest: what the rest of the layer adds.
    """

    heads: Heads
    projected: Map
    rotated: Map
    out: Map
    rest: Map


@dataclass(frozen=True)
class LeanTrunk:
    """A transformer whose layers are known.

    Attributes:
        embedded: of token ids (B,) at positions (B,), the states (B, D).
        rotations: of positions (B, T), cosines and sines (B, T, d); None where nothing is rotated.
    """

    layers: tuple[Layer, ...]
    embedded: Callable[[Tensor, Tensor], Tensor]
    rotations: Callable[[Tensor], tuple[Tensor, Tensor]] | None
    norm: Map


def lean(trunk: Any) -> LeanTrunk | None:
    """Return a transformer's parts; None of one that is not known, or attends in another way."""
    if trunk.config._attn_implementation not in ("sdpa", NAME):
        return None
    name, module = type(trunk).__name__, type(trunk).__module__
    if not module.startswith("transformers.models."):
        return None
    if name == "GPT2Model":
        return _gpt2(trunk)
    if name in _ROTATED and trunk.rotary_emb.rope_type in ("default", "linear", "llama3", "yarn"):
        return _rotating(trunk)
    return None


class LeanSteps:
    """N·G completions of N prompts under way: hidden states of one token after the other.

    Without gradient. Rows stand by prompt, head of keys and completion, so that all queries of a
    group at a head are one matrix.
    """

    def __init__(
        self,
        trunk: LeanTrunk,
        prompt: SharedPrompt,
        next_N: Tensor,
        room: int,
        *,
        fixed: bool = False,
    ) -> None:
        """Begin after prompts.

        Args:
            next_N: position of the first token of each prompt's completions.
            room: tokens that may come.
            fixed: give every step the same shapes, by attending to places that are still empty
                with weight 0: more work, which CUDA takes as one graph instead of kernel by kernel.
        """
        prompts = [(keys.detach(), values.detach()) for keys, values in prompt.layers]
        self._trunk, self._prompts, self._blocked_N11P = trunk, prompts, prompt.blocked_N11P
        self._prompts_n, self._group, self._written = len(next_N), prompt.group_size, 0
        self._positions_NT = next_N[:, None] + torch.arange(room, device=next_N.device)
        self._rotations: tuple[Tensor, Tensor] | None = None
        if trunk.rotations is not None:
            cos_NTd, sin_NTd = trunk.rotations(self._positions_NT)
            half = sin_NTd.shape[2] // 2  # x · cos + (second half, first half) · signed sin
            signed_NTd = torch.cat([-sin_NTd[..., :half], sin_NTd[..., half:]], dim=2)
            self._rotations = cos_NTd[:, :, None, None], signed_NTd[:, :, None, None]
        keys = prompts[0][0]
        rows = self._prompts_n, keys.shape[1], self._group, room, keys.shape[3]
        self._own = [(k.new_zeros(rows), v.new_zeros(rows)) for k, v in prompts]
        self._fixed, self._room = fixed, room
        self._graph: torch.cuda.CUDAGraph | None = None
        self._place_1 = torch.zeros(1, dtype=torch.long, device=next_N.device)
        self._lay_out()

    def feed(self, tokens_B: Tensor) -> Tensor:
        """Take the next token of every row; return the states (B, D) that predict the one after."""
        self._place_1.fill_(self._written)
        if self._fixed and tokens_B.is_cuda:
            states_BD = self._replayed(tokens_B)
        else:
            states_BD = self._step(tokens_B)
        self._written += 1
        return states_BD

    def _step(self, tokens_B: Tensor) -> Tensor:
        trunk = self._trunk
        positions_B = self._now(self._positions_NT).repeat_interleave(self._group)
        states_BD = trunk.embedded(tokens_B, positions_B)
        for i, layer in enumerate(trunk.layers):
            states_BD = states_BD + layer.out(self._attended(i, layer.projected(states_BD)))
            states_BD = states_BD + layer.rest(states_BD)
        return trunk.norm(states_BD)

    def _replayed(self, tokens_B: Tensor) -> Tensor:
        """Return what a step makes, as a CUDA graph that is recorded once for these rows."""
        if self._graph is None:
            self._tokens_B = tokens_B.clone()
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                self._step(self._tokens_B)  # libraries set themselves up outside of a recording
            torch.cuda.current_stream().wait_stream(aside)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._states_BD = self._step(self._tokens_B)
        self._tokens_B.copy_(tokens_B)
        self._graph.replay()
        return self._states_BD

    def _now(self, each_NT: Tensor) -> Tensor:
        """Return what stands at this step's place, along dimension 1."""
        if self._fixed:
            return each_NT.index_select(1, self._place_1).squeeze(1)
        return each_NT.select(1, self._written)

    def _write(self, kept_NkGTd: Tensor, new_NGkd: Tensor) -> None:
        new_NkGd = new_NGkd.transpose(1, 2)
        if self._fixed:
            kept_NkGTd.index_copy_(3, self._place_1, new_NkGd.unsqueeze(3))
        else:
            kept_NkGTd.select(3, self._written).copy_(new_NkGd)

    def keep(self, rows_B: Tensor) -> None:
        """Go on with some rows only, each with a copy of its prompt: no whole groups now."""
        prompts_B = rows_B // self._group
        inside_B = rows_B % self._group
        self._prompts = [(keys[prompts_B], values[prompts_B]) for keys, values in self._prompts]
        self._own = [
            (keys[prompts_B, :, inside_B].unsqueeze(2), values[prompts_B, :, inside_B].unsqueeze(2))
            for keys, values in self._own
        ]
        self._positions_NT = self._positions_NT[prompts_B]
        if self._rotations is not None:
            cos, sin = self._rotations
            self._rotations = cos[prompts_B], sin[prompts_B]
        if self._blocked_N11P is not None:
            self._blocked_N11P = self._blocked_N11P[prompts_B]
        self._prompts_n, self._group = len(rows_B), 1
        self._lay_out()

    def _lay_out(self) -> None:
        """Make the views of caches that every step takes."""
        self._graph = None  # which holds what was there before
        heads = self._trunk.layers[0].heads
        self._flat = [
            (pk.flatten(0, 1).transpose(1, 2), pv.flatten(0, 1), k.flatten(0, 2), v.flatten(0, 2))
            for (pk, pv), (k, v) in zip(self._prompts, self._own, strict=True)
        ]
        batch = self._prompts_n * heads.keys
        blocked = self._blocked_N11P
        if blocked is None:
            empty = self._prompts[0][0].new_empty(())
            self._added, self._beta = empty.expand(batch, 1, self._flat[0][0].shape[2]), 0
        else:
            self._added = blocked.expand(-1, heads.keys, -1, -1).reshape(batch, 1, -1)
            self._beta = 1

    def _empty_11T(self) -> Tensor:
        """Return -inf for the places that nothing has been written to, 0 for the others."""
        places_T = torch.arange(self._room, device=self._place_1.device)
        scores_T = self._own[0][0].new_zeros(self._room)
        return scores_T.masked_fill(places_T > self._place_1, -torch.inf)[None, None]

    def _attended(self, i: int, made_BX: Tensor) -> Tensor:
        """Return what the new tokens take from all values (B, h · d), and keep theirs."""
        layer = self._trunk.layers[i]
        heads, n, group = layer.heads, self._prompts_n, self._group
        made_NGHd = made_BX.view(n, group, -1, heads.width)
        turned, value = made_NGHd.split([heads.queries + heads.keys, heads.keys], dim=2)
        if self._rotations is not None:
            cos_N11d, sin_N11d = map(self._now, self._rotations)
            turned = layer.rotated(turned)
            swapped = turned.roll(heads.width // 2, 3)
            turned = torch.addcmul(turned * cos_N11d, swapped, sin_N11d)
        query, key = turned.split([heads.queries, heads.keys], dim=2)
        keys, values = self._own[i]
        self._write(keys, key)
        self._write(values, value)
        prompt_keys, prompt_values, own_keys, own_values = self._flat[i]
        # r queries share a head of keys: (N, k, G, r, d).
        shared = heads.queries // heads.keys
        query = query.unflatten(2, (heads.keys, shared)).transpose(1, 2)
        matrices, each = n * heads.keys, n * heads.keys * group
        query = query.reshape(matrices, group * shared, heads.width)
        over_prompt = torch.baddbmm(
            self._added, query, prompt_keys, beta=self._beta, alpha=heads.scaling
        )
        filled = self._room if self._fixed else self._written + 1
        over_own = torch.baddbmm(
            self._empty_11T() if self._fixed else self._added[:1, :, :1],
            query.reshape(each, shared, heads.width),
            own_keys[:, :filled].transpose(1, 2),
            beta=int(self._fixed),
            alpha=heads.scaling,
        )
        padded = over_prompt.shape[2]
        over_own = over_own.view(matrices, group * shared, filled)
        scores = torch.cat([over_prompt, over_own], dim=2)
        weights = scores.softmax(dim=2, dtype=torch.promote_types(scores.dtype, torch.float32))
        weights = weights.to(prompt_values.dtype)
        on_own = weights.view(each, shared, padded + filled)[..., padded:]
        taken = torch.bmm(on_own, own_values[:, :filled]).view(query.shape)
        taken = torch.baddbmm(taken, weights[..., :padded], prompt_values)
        taken = taken.view(n, heads.keys, group, shared * heads.width).transpose(1, 2)
        return taken.reshape(n * group, heads.queries * heads.width)


def _gpt2(trunk: Any) -> LeanTrunk:
    def layer(block: Any) -> Layer:
        attention, mlp = block.attn, block.mlp
        width = attention.head_dim
        before, after = _norm(block.ln_1), _norm(block.ln_2)
        qkv, wide, narrow = _linear(attention.c_attn), _linear(mlp.c_fc), _linear(mlp.c_proj)
        act = _activation(mlp.act)
        return Layer(
            Heads(attention.num_heads, attention.num_heads, width, attention.scaling),
            lambda x: qkv(before(x)),
            _same,
            _linear(attention.c_proj),
            lambda x: narrow(act(wide(after(x)))),
        )

    return LeanTrunk(
        tuple(layer(block) for block in trunk.h),
        lambda tokens_B, positions_B: trunk.wte(tokens_B) + trunk.wpe(positions_B),
        None,
        _norm(trunk.ln_f),
    )


def _rotating(trunk: Any) -> LeanTrunk:
    config = trunk.config

    def layer(block: Any) -> Layer:
        attention, mlp = block.self_attn, block.mlp
        before, after = _norm(block.input_layernorm), _norm(block.post_attention_layernorm)
        heads = Heads(
            config.num_attention_heads,
            config.num_key_value_heads,
            attention.head_dim,
            attention.scaling,
        )
        qkv = _side_by_side(attention.q_proj, attention.k_proj, attention.v_proj)
        both, narrow, act = (
            _side_by_side(mlp.gate_proj, mlp.up_proj),
            _linear(mlp.down_proj),
            mlp.act_fn,
        )

        def rest(x: Tensor) -> Tensor:
            gate, up = both(after(x)).chunk(2, dim=-1)
            return narrow(act(gate) * up)

        rotated = _same
        if hasattr(attention, "q_norm"):
            rotated = partial(_norm_heads, _norm(attention.q_norm), _norm(attention.k_norm), heads)
        return Layer(heads, lambda x: qkv(before(x)), rotated, _linear(attention.o_proj), rest)

    def rotations(positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        # Text after images has one position in time, rows and columns.
        places = positions_BT.expand(3, -1, -1) if "VL" in type(trunk).__name__ else positions_BT
        cos, sin = trunk.rotary_emb(trunk.norm.weight, places)  # of which the type is taken alone
        return cos, sin

    return LeanTrunk(
        tuple(layer(block) for block in trunk.layers[: config.num_hidden_layers]),
        lambda tokens_B, positions_B: trunk.embed_tokens(tokens_B),
        rotations,
        _norm(trunk.norm),
    )


def _same(x: Tensor) -> Tensor:
    return x


def _norm_heads(of_queries: Map, of_keys: Map, heads: Heads, each_NGHd: Tensor) -> Tensor:
    queries, keys = each_NGHd.split([heads.queries, heads.keys], dim=2)
    return torch.cat([of_queries(queries), of_keys(keys)], dim=2)


def _linear(module: Any) -> Map:
    """Return the map of a linear layer; what else stands there, such as an adapter, is called."""
    from transformers.pytorch_utils import Conv1D

    if type(module) is nn.Linear:
        return partial(F.linear, weight=module.weight, bias=module.bias)
    if type(module) is Conv1D:
        weight, bias = module.weight, module.bias
        return lambda x: torch.addmm(bias, x, weight)
    return module


def _side_by_side(*modules: Any) -> Map:
    """Return one map to what linear layers make of the same input, side by side."""
    plain = all(type(module) is nn.Linear for module in modules)
    biased = {module.bias is not None for module in modules} if plain else set()
    if len(biased) == 1 and sum(module.weight.numel() for module in modules) <= WORTH_JOINING:
        weight = torch.cat([module.weight.detach() for module in modules])
        bias = torch.cat([module.bias.detach() for module in modules]) if biased == {True} else None
        return partial(F.linear, weight=weight, bias=bias)
    maps = [_linear(module) for module in modules]
    return lambda x: torch.cat([each(x) for each in maps], dim=-1)


def _norm(module: Any) -> Map:
    """Return the map of a norm: of layers, or of root mean squares as Llama and Qwen have it."""
    weight = module.weight
    if type(module) is nn.LayerNorm:
        return partial(
            F.layer_norm,
            normalized_shape=module.normalized_shape,
            weight=weight,
            bias=module.bias,
            eps=module.eps,
        )
    if weight.dtype != torch.float32:
        return module  # which rounds between
    # x · w / √(mean x² + ε) = x · w √D / √(|x|² + D ε), in fewer kernels.
    scaled_D = weight * len(weight) ** 0.5
    least = scaled_D.new_tensor((len(weight) * module.variance_epsilon) ** 0.5)

    def norm(x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x / torch.hypot(length, least) * scaled_D

    return norm


def _activation(module: Any) -> Map:
    if type(module).__name__ in ("NewGELUActivation", "GELUTanh"):
        return partial(F.gelu, approximate="tanh")  # one kernel
    return module

"""A causal language model as a policy over completions, with a critic beside it for PPO."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from visgrpo.models.token_cache import rollout_cache, shared_prefix
from visgrpo.objectives.token_distribution import TokenDistribution, score_tokens

CriticKind = Literal["head", "separate"]
WHOLE_SOFTMAX = TokenDistribution()
BLOCKED = -1e4  # added to the scores of places that may not be looked at


class Scores(NamedTuple):
    """Of tokens, each of the tokens' shape; values are None without a critic."""

    log_probs: Tensor
    entropy: Tensor
    values: Tensor | None


class LanguageModel(nn.Module):
    """A transformers causal language model, perhaps inside peft adapters, and perhaps a critic.

    Its dropout is switched off: log-probs of generation and of training must be those of one
    policy. Prompts are padded on the left, completions on the right.

    Attributes:
        lm: the model as it is saved.
        critic: what makes values from hidden states; None where no method asks for them.
    """

    def __init__(self, lm: Any, critic: Critic | None = None) -> None:
        super().__init__()
        self.lm, self.critic = lm, critic
        without_dropout(self)

    @property
    def plain(self) -> Any:
        """The transformers model, out of its adapters' wrapper."""
        return self.lm.get_base_model() if self.has_adapter else self.lm

    @property
    def has_adapter(self) -> bool:
        return hasattr(self.lm, "peft_config")

    @property
    def device(self) -> torch.device:
        return self.plain.get_input_embeddings().weight.device

    def head(self, hidden: Tensor) -> Tensor:
        """Return the logits (…, V) of hidden states (…, D)."""
        return self.plain.get_output_embeddings()(hidden)

    def forward(
        self,
        prompts_NP: Tensor,
        lengths_N: Tensor,
        completions_NGT: Tensor,
        distribution: TokenDistribution = WHOLE_SOFTMAX,
        *,
        entropy_gradient: bool = False,
        critic_alone: bool = False,
    ) -> Scores:
        """Score the tokens of G completions of each of N prompts, (N, G, T).

        Each prompt goes through the model once, whatever G. What stands after a completion's end
        is scored too and means nothing.

        Args:
            prompts_NP: token ids, padded on the left.
            lengths_N: real tokens of each prompt, at least 1.
            completions_NGT: token ids, padded on the right with any id.
            entropy_gradient: whether the entropy is part of the loss.
            critic_alone: whether a critic that reads the policy's states leaves them as they are.
        """
        hidden_NGTD = self._hidden(prompts_NP, lengths_N, completions_NGT)
        scores = score_tokens(
            hidden_NGTD.flatten(0, 2),
            self.head,
            completions_NGT.flatten(),
            distribution,
            entropy_gradient=entropy_gradient,
        )
        values_NGT = None
        if self.critic is not None:
            read_NGTD = hidden_NGTD.detach() if critic_alone else hidden_NGTD
            values_NGT = self.critic(read_NGTD, prompts_NP, lengths_N, completions_NGT)
        shape = completions_NGT.shape
        return Scores(scores.log_probs.view(shape), scores.entropy.view(shape), values_NGT)

    @torch.no_grad()
    def score(
        self,
        prompts_NP: Tensor,
        lengths_N: Tensor,
        completions_NGT: Tensor,
        distribution: TokenDistribution = WHOLE_SOFTMAX,
    ) -> Tensor:
        """Return the log-probs (N, G, T) alone, without gradient."""
        hidden_NGTD = self._hidden(prompts_NP, lengths_N, completions_NGT)
        chosen_B = completions_NGT.flatten()
        scores = score_tokens(hidden_NGTD.flatten(0, 2), self.head, chosen_B, distribution)
        return scores.log_probs.view(completions_NGT.shape)

    @torch.no_grad()
    def values(self, prompts_NP: Tensor, lengths_N: Tensor, completions_NGT: Tensor) -> Tensor:
        """Return the critic's values (N, G, T): of the state before each token."""
        assert self.critic is not None
        hidden_NGTD = None
        if self.critic.trunk is None:
            hidden_NGTD = self._hidden(prompts_NP, lengths_N, completions_NGT)
        return self.critic(hidden_NGTD, prompts_NP, lengths_N, completions_NGT)

    @torch.no_grad()
    def begin(self, prompts_NP: Tensor, lengths_N: Tensor, group_size: int, room: int) -> Decoder:
        """Read N prompts, and return what generates G completions of each."""
        hidden_ND, prompts = _read_prompts(self.plain.base_model, prompts_NP, lengths_N)
        logits_BV = self.head(hidden_ND).repeat_interleave(group_size, dim=0)
        cache = rollout_cache(prompts, group_size, room)
        return Decoder(self, cache, logits_BV, prompts_NP.shape[1], lengths_N, group_size, room)

    def _hidden(self, prompts_NP: Tensor, lengths_N: Tensor, completions_NGT: Tensor) -> Tensor:
        return hidden_of(self.plain.base_model, prompts_NP, lengths_N, completions_NGT)

    @contextmanager
    def adapter_off(self) -> Iterator[None]:
        """The start, as it was before the adapter."""
        with self.lm.disable_adapter():
            yield


class Decoder:
    """N·G completions under way, one token at a time; without gradient.

    Attributes:
        logits_BV: of the next token of each row.
    """

    def __init__(
        self,
        model: LanguageModel,
        cache: Any,
        logits_BV: Tensor,
        padded: int,
        lengths_N: Tensor,
        group_size: int,
        room: int,
    ) -> None:
        self._model, self._cache, self.logits_BV = model, cache, logits_BV
        self._positions_B = lengths_N.repeat_interleave(group_size)
        self._written = padded
        self._mask_B1K = None
        if _is_ragged(lengths_N, padded):
            blocked = _padding(lengths_N, padded).repeat_interleave(group_size, dim=0)
            blocked = nn.functional.pad(blocked, (0, room))[:, None, None]
            self._mask_B1K = _additive(blocked, model.plain.dtype)

    @torch.no_grad()
    def feed(self, tokens_B: Tensor) -> None:
        """Take the next token of every row."""
        self._written += 1
        mask = None if self._mask_B1K is None else self._mask_B1K[..., : self._written]
        out = self._model.plain.base_model(
            input_ids=tokens_B[:, None],
            attention_mask=mask,
            position_ids=self._positions_B[:, None],
            past_key_values=self._cache,
            use_cache=True,
        )
        self._positions_B = self._positions_B + 1
        self.logits_BV = self._model.head(out.last_hidden_state[:, -1])

    def keep(self, rows_B: Tensor) -> None:
        """Go on with some rows only."""
        for layer in self._cache.layers:
            layer.keep(rows_B)
        self.logits_BV, self._positions_B = self.logits_BV[rows_B], self._positions_B[rows_B]
        self._mask_B1K = None if self._mask_B1K is None else self._mask_B1K[rows_B]


class Critic(nn.Module):
    """Values of states: a linear layer on the policy's hidden states, or a model of its own.

    It starts at 0 everywhere, so that the first advantages are the rewards themselves.

    Attributes:
        trunk: its own transformer; None where it reads the policy's.
    """

    def __init__(self, width: int, trunk: Any = None) -> None:
        super().__init__()
        self.trunk = trunk
        self.value = nn.Linear(width, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(
        self,
        hidden_NGTD: Tensor | None,
        prompts_NP: Tensor,
        lengths_N: Tensor,
        completions_NGT: Tensor,
    ) -> Tensor:
        if self.trunk is not None:
            hidden_NGTD = hidden_of(self.trunk, prompts_NP, lengths_N, completions_NGT)
        assert hidden_NGTD is not None
        return self.value(hidden_NGTD).squeeze(-1).float()


def critic_of(model: Any, kind: CriticKind) -> Critic:
    """Return a new critic for a transformers causal language model, without adapters."""
    trunk = copy.deepcopy(model.base_model) if kind == "separate" else None
    return Critic(model.config.get_text_config().hidden_size, trunk)


def hidden_of(trunk: Any, prompts_NP: Tensor, lengths_N: Tensor, tokens_NGT: Tensor) -> Tensor:
    """Return the hidden states (N, G, T, D) that predict the tokens of G completions of N prompts.

    The last state of the prompt predicts the first token; a completion's last token predicts none
    and is not read.
    """
    n_prompts, group_size, length = tokens_NGT.shape
    first_ND, prompts = _read_prompts(trunk, prompts_NP, lengths_N)
    first_NG1D = first_ND[:, None, None].expand(-1, group_size, 1, -1)
    if length == 1:
        return first_NG1D
    padded, read = prompts_NP.shape[1], length - 1
    steps = torch.arange(read, device=prompts_NP.device)
    later = steps[None, :] > steps[:, None]
    blocked = nn.functional.pad(later, (padded, 0))[None, None]  # (1, 1, T - 1, P + T - 1)
    if _is_ragged(lengths_N, padded):
        rows = _padding(lengths_N, padded).repeat_interleave(group_size, dim=0)
        blocked = blocked | nn.functional.pad(rows, (0, read))[:, None, None]
    out = trunk(
        input_ids=tokens_NGT[..., :-1].flatten(0, 1),
        attention_mask=_additive(blocked, trunk.dtype),
        position_ids=(lengths_N[:, None] + steps).repeat_interleave(group_size, dim=0),
        past_key_values=shared_prefix(prompts, group_size),
        use_cache=True,
    )
    rest = out.last_hidden_state.unflatten(0, (n_prompts, group_size))
    return torch.cat([first_NG1D, rest], dim=2)


def without_dropout(module: nn.Module) -> None:
    """Switch every dropout of a model off, in place."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        if hasattr(part, "attention_dropout") and isinstance(part.attention_dropout, float):
            part.attention_dropout = 0.0  # type: ignore[assignment]


def _read_prompts(trunk: Any, prompts_NP: Tensor, lengths_N: Tensor) -> tuple[Tensor, Any]:
    """Return the last hidden state (N, D) of each prompt, and the cache of keys and values."""
    from transformers import DynamicCache

    padded = prompts_NP.shape[1]
    positions_NP = torch.arange(padded, device=prompts_NP.device) - (padded - lengths_N[:, None])
    mask = None
    if _is_ragged(lengths_N, padded):
        steps = torch.arange(padded, device=prompts_NP.device)
        later = steps[None, :] > steps[:, None]
        blocked = later | _padding(lengths_N, padded)[:, None, None]
        mask = _additive(blocked, trunk.dtype)
    out = trunk(
        input_ids=prompts_NP,
        attention_mask=mask,
        position_ids=positions_NP.clamp(min=0),
        past_key_values=DynamicCache(),
        use_cache=True,
    )
    return out.last_hidden_state[:, -1], out.past_key_values


def _is_ragged(lengths_N: Tensor, padded: int) -> bool:
    return int(lengths_N.min()) < padded


def _padding(lengths_N: Tensor, padded: int) -> Tensor:
    """Return which places (N, P) are padding, on the left."""
    places = torch.arange(padded, device=lengths_N.device)
    return places < padded - lengths_N[:, None]


def _additive(blocked: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to attention's scores.

    A number whose exponential is 0 stands for -inf: a padded place, which may look at nothing, then
    gets some finite value instead of NaN, and nobody looks at it. It is finite in every precision.
    """
    allowed = torch.zeros(blocked.shape, dtype=dtype, device=blocked.device)
    return allowed.masked_fill(blocked, BLOCKED)

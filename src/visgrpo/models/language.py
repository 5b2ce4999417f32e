"""A causal language model as a policy over completions, with a critic beside it for PPO."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from visgrpo.data.pictures import Pictures
from visgrpo.errors import UserError
from visgrpo.models.lean import LeanSteps, lean
from visgrpo.models.parts import Parts, without_dropout
from visgrpo.models.prompt_reading import (
    ReadPrompts,
    SharedPrompt,
    additive,
    after,
    hidden_after,
    is_ragged,
    own_cache,
    padding,
    read_prompts,
    recomputed,
    rollout_cache,
    text_positions,
)
from visgrpo.objectives.token_distribution import Entropies, TokenDistribution, score_tokens

CriticKind = Literal["head", "separate"]
Engine = Literal["shared", "plain"]
WHOLE_SOFTMAX = TokenDistribution()


class Scores(NamedTuple):
    """Of tokens, each of the tokens' shape; None: not asked for, or values of no critic."""

    log_probs: Tensor
    entropy: Tensor | None
    values: Tensor | None


class LanguageModel(nn.Module):
    """A transformers causal language model, perhaps inside peft adapters, and perhaps a critic.

    Its dropout is switched off: log-probs of generation and of training must be those of one
    policy. Prompts are padded on the left, completions on the right.

    Attributes:
        lm: the model as it is saved.
        critic: what makes values from hidden states; None where no method asks for them.
        engine: "shared" runs each prompt once for all completions of its group; "plain" runs every
            prompt with every completion, as transformers does it: slower, and the same.
        compiled: whether steps of generation have fixed shapes, which CUDA runs as one graph.
        recompute: whether the backward pass runs blocks again instead of keeping what they made.
    """

    compiled = recompute = False

    def __init__(self, lm: Any, critic: Critic | None = None, engine: Engine = "shared") -> None:
        super().__init__()
        self.lm, self.critic, self.engine = lm, critic, engine
        without_dropout(self)

    def like(self, lm: Any) -> LanguageModel:
        """Return another model that is used in the same way, without a critic."""
        return LanguageModel(lm, engine=self.engine)

    @property
    def plain(self) -> Any:
        """The transformers model, out of its adapters' wrapper."""
        return self.lm.get_base_model() if self.has_adapter else self.lm

    @property
    def trunk(self) -> Any:
        """The transformer that reads and writes text, without its output head."""
        return self.plain.base_model

    @property
    def has_adapter(self) -> bool:
        return hasattr(self.lm, "peft_config")

    @property
    def device(self) -> torch.device:
        return self.plain.get_input_embeddings().weight.device

    @property
    def head(self) -> Any:
        """The layer from hidden states (…, D) to logits (…, V)."""
        return self.plain.get_output_embeddings()

    def forward(
        self,
        prompts_NP: Tensor,
        lengths_N: Tensor,
        completions_NGT: Tensor,
        distribution: TokenDistribution = WHOLE_SOFTMAX,
        *,
        pictures: Pictures | None = None,
        read: ReadPrompts | None = None,
        entropies: Entropies = "value",
        critic_alone: bool = False,
    ) -> Scores:
        """Score the tokens of G completions of each of N prompts, (N, G, T).

        What stands after a completion's end is scored too and means nothing.

        Args:
            prompts_NP: token ids, padded on the left.
            lengths_N: real tokens of each prompt, at least 1.
            completions_NGT: token ids, padded on the right with any id.
            pictures: the prompts' images, for a model that sees.
            read: the prompts where they were read before, with these weights; its gradient flows
                back into them, once.
            entropies: what is asked of them.
            critic_alone: whether a critic that reads the policy's states leaves them as they are.
        """
        with self._recomputing(self.trunk):
            if read is None:
                hidden_NGTD = self._hidden(prompts_NP, lengths_N, completions_NGT, pictures)
            else:
                hidden_NGTD = hidden_after(self.trunk, read, completions_NGT)
        scores = score_tokens(
            hidden_NGTD.flatten(0, 2),
            self.head,
            completions_NGT.flatten(),
            distribution,
            entropies=entropies,
        )
        values_NGT = None
        if self.critic is not None:
            read_NGTD = hidden_NGTD.detach() if critic_alone else hidden_NGTD
            with self._recomputing(self.critic.trunk):
                values_NGT = self.critic(read_NGTD, prompts_NP, lengths_N, completions_NGT)
        shape = completions_NGT.shape
        entropy_NGT = None if scores.entropy is None else scores.entropy.view(shape)
        return Scores(scores.log_probs.view(shape), entropy_NGT, values_NGT)

    @torch.no_grad()
    def score(
        self,
        prompts_NP: Tensor,
        lengths_N: Tensor,
        completions_NGT: Tensor,
        distribution: TokenDistribution = WHOLE_SOFTMAX,
        pictures: Pictures | None = None,
    ) -> Tensor:
        """Return the log-probs (N, G, T) alone, without gradient."""
        hidden_NGTD = self._hidden(prompts_NP, lengths_N, completions_NGT, pictures)
        chosen_B = completions_NGT.flatten()
        scores = score_tokens(
            hidden_NGTD.flatten(0, 2), self.head, chosen_B, distribution, entropies="none"
        )
        return scores.log_probs.view(completions_NGT.shape)

    @torch.no_grad()
    def values(self, prompts_NP: Tensor, lengths_N: Tensor, completions_NGT: Tensor) -> Tensor:
        """Return the values (N, G, T) of a critic with a transformer of its own, before each token.

        One that reads the policy's states has its values when they are drawn: `Completions`.
        """
        assert self.critic is not None
        assert self.critic.trunk is not None
        return self.critic(None, prompts_NP, lengths_N, completions_NGT)

    def begin(
        self,
        prompts_NP: Tensor,
        lengths_N: Tensor,
        group_size: int,
        room: int,
        pictures: Pictures | None = None,
    ) -> Decoder:
        """Read N prompts, and return what generates G completions of each.

        The decoder has no gradient; what it has read has one, unless gradients are off.
        """
        if self.engine == "plain":
            prompts_NP = prompts_NP.repeat_interleave(group_size, dim=0)
            lengths_N = lengths_N.repeat_interleave(group_size, dim=0)
            pictures = pictures.repeated(group_size) if pictures is not None else None
            group_size = 1
        with self._recomputing(self.trunk):
            read = self._read(prompts_NP, lengths_N, pictures)
        return Decoder(self, read, group_size, room)

    def _recomputing(self, trunk: Any) -> AbstractContextManager[None]:
        return recomputed(trunk) if self.recompute and trunk is not None else nullcontext()

    def _hidden(
        self,
        prompts_NP: Tensor,
        lengths_N: Tensor,
        completions_NGT: Tensor,
        pictures: Pictures | None = None,
    ) -> Tensor:
        """Return the states (N, G, T, D) that predict the completions' tokens."""
        if self.engine == "plain":
            return self._hidden_plainly(prompts_NP, lengths_N, completions_NGT, pictures)
        read = self._read(prompts_NP, lengths_N, pictures)
        return hidden_after(self.trunk, read, completions_NGT)

    def _read(
        self, prompts_NP: Tensor, lengths_N: Tensor, pictures: Pictures | None
    ) -> ReadPrompts:
        assert pictures is None, "a language model sees no images"
        positions_NP = text_positions(lengths_N, prompts_NP.shape[1])
        return read_prompts(self.trunk, lengths_N, positions_NP, lengths_N, input_ids=prompts_NP)

    def _hidden_plainly(
        self,
        prompts_NP: Tensor,
        lengths_N: Tensor,
        completions_NGT: Tensor,
        pictures: Pictures | None,
    ) -> Tensor:
        """Run every prompt with every completion through the whole model, in one pass."""
        group_size, padded = completions_NGT.shape[1], prompts_NP.shape[1]
        prompts_BP = prompts_NP.repeat_interleave(group_size, dim=0)
        tokens_BS = torch.cat([prompts_BP, completions_NGT[..., :-1].flatten(0, 1)], dim=1)
        mask_BS = torch.ones_like(tokens_BS)
        padding_NP = padding(lengths_N, padded)
        mask_BS[:, :padded] = (~padding_NP).repeat_interleave(group_size, dim=0)
        out = self.plain.base_model(
            **self._plain_inputs(tokens_BS, mask_BS, pictures, group_size),
            attention_mask=mask_BS,
            use_cache=False,
        )
        return out.last_hidden_state[:, padded - 1 :].unflatten(0, (-1, group_size))

    def _plain_inputs(
        self, tokens_BS: Tensor, mask_BS: Tensor, pictures: Pictures | None, group_size: int
    ) -> dict[str, Tensor]:
        """Return what transformers' own model takes, beside the mask."""
        assert pictures is None, "a language model sees no images"
        return {
            "input_ids": tokens_BS,
            "position_ids": (mask_BS.cumsum(dim=1) - 1).clamp(min=0),
        }

    @contextmanager
    def adapter_off(self) -> Iterator[None]:
        """The start, as it was before the adapter."""
        with self.lm.disable_adapter():
            yield


class Decoder:
    """N·G completions under way, one token at a time; without gradient.

    Attributes:
        read: the prompts.
        states_BD: of each row, which predict its next token.
        logits_BV: of the next token of each row.
    """

    @torch.no_grad()
    def __init__(self, model: LanguageModel, read: ReadPrompts, group_size: int, room: int) -> None:
        self.read, self._head = read, model.head
        self.states_BD = read.hidden_ND.detach().repeat_interleave(group_size, dim=0)
        self.logits_BV = model.head(read.hidden_ND).repeat_interleave(group_size, dim=0)
        known = lean(model.trunk) if model.engine == "shared" else None
        self._steps: LeanSteps | TransformersSteps = (
            TransformersSteps(model.trunk, read, group_size, room)
            if known is None
            else LeanSteps(known, read.shared(group_size), read.next_N, room, fixed=model.compiled)
        )

    @torch.no_grad()
    def feed(self, tokens_B: Tensor) -> None:
        """Take the next token of every row."""
        self.states_BD = self._steps.feed(tokens_B)
        self.logits_BV = self._head(self.states_BD)

    @torch.no_grad()
    def keep(self, rows_B: Tensor) -> None:
        """Go on with some rows only."""
        self._steps.keep(rows_B)
        self.states_BD, self.logits_BV = self.states_BD[rows_B], self.logits_BV[rows_B]


class TransformersSteps:
    """What `LeanSteps` does, through the forward pass of transformers: for any model."""

    def __init__(self, trunk: Any, read: ReadPrompts, group_size: int, room: int) -> None:
        self._trunk, self._written = trunk, read.padded
        self._positions_B = read.next_N.repeat_interleave(group_size)
        self._mask_B1K: Tensor | None = None
        self._prompt: SharedPrompt | None = None
        self._cache: Any
        if read.sharing_pays(trunk, group_size, 1):
            self._prompt = read.shared(group_size)
            self._cache = own_cache(read.cache, group_size, room)
            return
        self._cache = rollout_cache(read.cache, group_size, room)
        if is_ragged(read.lengths_N, read.padded):
            blocked = padding(read.lengths_N, read.padded).repeat_interleave(group_size, dim=0)
            blocked = nn.functional.pad(blocked, (0, room))[:, None, None]
            self._mask_B1K = additive(blocked, trunk.dtype)

    def feed(self, tokens_B: Tensor) -> Tensor:
        self._written += 1
        mask = None if self._mask_B1K is None else self._mask_B1K[..., : self._written]
        with after(self._prompt, self._trunk) if self._prompt else nullcontext():
            out = self._trunk(
                input_ids=tokens_B[:, None],
                attention_mask=mask,
                position_ids=self._positions_B[:, None],
                past_key_values=self._cache,
                use_cache=True,
            )
        self._positions_B = self._positions_B + 1
        return out.last_hidden_state[:, -1]

    def keep(self, rows_B: Tensor) -> None:
        for layer in self._cache.layers:
            layer.keep(rows_B)
        self._positions_B = self._positions_B[rows_B]
        self._mask_B1K = None if self._mask_B1K is None else self._mask_B1K[rows_B]
        self._prompt = None if self._prompt is None else self._prompt.rows(rows_B)


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
            positions_NP = text_positions(lengths_N, prompts_NP.shape[1])
            read = read_prompts(
                self.trunk, lengths_N, positions_NP, lengths_N, input_ids=prompts_NP
            )
            hidden_NGTD = hidden_after(self.trunk, read, completions_NGT)
        assert hidden_NGTD is not None
        return self.of_states(hidden_NGTD)

    def of_states(self, states: Tensor) -> Tensor:
        """Return the values (…) of states (…, D)."""
        return self.value(states).squeeze(-1).float()


def critic_of(model: Any, kind: CriticKind) -> Critic:
    """Return a new critic for a transformers causal language model, without adapters."""
    trunk = copy.deepcopy(model.base_model) if kind == "separate" else None
    return Critic(model.config.get_text_config().hidden_size, trunk)


def context_of(model: Any) -> int:
    """Return the greatest number of positions, of prompt and completion together.

    Where layers see a window of the last tokens only, it is the window: within it they see all.

    Raises:
        UserError: for a model that has no such number.
    """
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        raise UserError(
            f"A {config.model_type} model does not say how long its context is: set "
            '"max_position_embeddings" in its config.json.'
        )
    windows = [config.sliding_window] if getattr(config, "sliding_window", None) else []
    kinds = getattr(config, "layer_types", None)
    if kinds and "sliding_attention" not in kinds:
        windows = []
    return min([int(positions), *windows])


def stop_tokens(parts: Parts) -> tuple[int, ...]:
    """Return the ids that end a completion: the tokenizer's and the generation settings', sorted.

    A chat model often has several: the end of a turn and the end of a text.
    """
    settings = parts.model.generation_config.eos_token_id
    further = settings if isinstance(settings, list) else [settings]
    return tuple(sorted({parts.tokenizer.eos_token_id, *further} - {None}))

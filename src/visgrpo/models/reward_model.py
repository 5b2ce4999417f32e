"""A learned reward: a language model's trunk with a scalar head, read at the last token."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visgrpo.data.text import Prompt, lengths, opened_ids, padded, special_id, token_ids
from visgrpo.errors import UserError
from visgrpo.models.language import context_of
from visgrpo.models.parts import Parts, without_dropout
from visgrpo.models.tokenizers import PAD


class RewardModel(nn.Module):
    """A transformers sequence classifier with one output, as the score of a text.

    Its dropout is switched off: the two texts of a pair are compared under the same weights.

    Attributes:
        scorer: the model as it is saved.
    """

    def __init__(self, scorer: Any) -> None:
        super().__init__()
        self.scorer = scorer
        without_dropout(self)

    def forward(self, tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Return the score (B,) of each text, read at its last token.

        Args:
            tokens_BT: ids, padded on the right with any id: no token looks ahead.
            lengths_B: real tokens of each row, at least 1.
        """
        out = self.scorer.base_model(input_ids=tokens_BT, use_cache=False)
        rows_B = torch.arange(len(tokens_BT), device=tokens_BT.device)
        last_BD = out.last_hidden_state[rows_B, lengths_B - 1]
        return self.scorer.score(last_BD).squeeze(-1).float()


def build_reward_model(parts: Parts, seed: int) -> RewardModel:
    """Build a reward model that starts from a copy of a language model without adapters.

    The head is drawn from N(0, 1/(D + 1)), as in Stiennon et al. 2020 (arXiv 2009.01325).

    Raises:
        UserError: for a family of which transformers has no classifier that reads the last token.
    """
    from transformers import AutoModelForSequenceClassification

    language, tokenizer = parts.model, with_own_padding(parts.tokenizer)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = copy.deepcopy(language.config)
        config.num_labels = 1
        try:
            scorer = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        except ValueError as error:  # no such class
            raise _no_reward_model(parts.name) from error
        if not isinstance(getattr(scorer, "score", None), nn.Linear):
            raise _no_reward_model(parts.name)
        nn.init.normal_(scorer.score.weight, std=(scorer.score.in_features + 1) ** -0.5)
        scorer.base_model.load_state_dict(language.base_model.state_dict())
        embeddings = scorer.get_input_embeddings().num_embeddings
        if tokenizer.pad_token_id >= embeddings:
            scorer.resize_token_embeddings(tokenizer.pad_token_id + 1, mean_resizing=False)
    scorer.config.pad_token_id = tokenizer.pad_token_id
    return RewardModel(scorer).to(language.device)


def with_own_padding(tokenizer: Any) -> Any:
    """Return a copy that pads on the right, with a token that nothing else means.

    Plain transformers reads the score at the last token that is not padding. Were the end of a
    text padding too, it would read the token before it.
    """
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.add_special_tokens({"pad_token": PAD})
    return tokenizer


class LearnedReward:
    """A reward model as a reward function of TRL's signature: (score - mean) / std.

    Texts are encoded as the pairs were that it learnt from: prompt and completion apart, and the
    end token where the completion came to its end. A policy of the same vocabulary has its
    completions scored token by token as it drew them: their text, encoded again, may be other
    and more tokens (a stray byte decodes to U+FFFD, which is three).

    Args:
        parts: the model moves to `device`. Without ``reward_mean`` and ``reward_std`` in its info
            (a model from elsewhere), scores stay as they are.
        batch_size: texts scored at once.
        stop_tokens: ids that end a completion, those of the policy; the reward model reads its own
            end token in their place. None: that end token alone.
        policy_tokenizer: of the model that draws `completion_ids`. None, or one that has another
            vocabulary (but for a padding token): their text is encoded again.

    Raises:
        UserError: if the std is not a finite number above 0.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        batch_size: int = 64,
        device: torch.device | str = "cpu",
        stop_tokens: Collection[int] | None = None,
        policy_tokenizer: Any = None,
    ) -> None:
        self.__name__ = "learned_reward"  # what TRL calls it in its log
        self._parts, self._batch_size = parts, batch_size
        self._device = torch.device(device)
        self.model = parts.model.to(self._device).eval()
        self._end = special_id(parts.tokenizer, "eos")
        self._stops = {self._end} if stop_tokens is None else set(stop_tokens)
        self._same_tokens = policy_tokenizer is not None and _same_vocabulary(
            parts.tokenizer, policy_tokenizer
        )
        self._known = 1 + max(parts.tokenizer.get_vocab().values())
        self._context = context_of(parts.model.scorer)
        self._mean = float(parts.info.get("reward_mean", 0.0))
        self._std = float(parts.info.get("reward_std", 1.0))
        if not 0 < self._std < math.inf:
            raise UserError(
                f'The scores of "{parts.name}" have a std of {self._std:g}: it tells no completion '
                "from another. Train it again."
            )

    @torch.no_grad()
    def __call__(
        self,
        *,
        prompts: Sequence[Prompt],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **columns: Sequence[Any],
    ) -> list[float]:
        """Return one reward for each of the rows.

        Raises:
            UserError: for a row that is empty or longer than the model's context.
        """
        rows = self._encoded(prompts, completions, completion_ids)
        scores: list[float] = []
        for start in range(0, len(rows), self._batch_size):
            batch = rows[start : start + self._batch_size]
            tokens_BT = padded(batch, self._end, "right").to(self._device)
            scores += self.model(tokens_BT, lengths(batch).to(self._device)).tolist()
        return [(score - self._mean) / self._std for score in scores]

    def _encoded(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
    ) -> list[np.ndarray]:
        befores = opened_ids(prompts, self._parts.tokenizer)
        afters = self._without_ends(completions, completion_ids)
        rows = []
        for row, ids in enumerate(completion_ids):
            end = np.array([self._end] if self._ended(ids) else [], dtype=np.int32)
            tokens = np.concatenate([befores[row], afters[row], end])
            if not 0 < len(tokens) <= self._context:
                raise UserError(
                    f"Completion {row} has {len(tokens)} tokens with its prompt, and the reward "
                    f'model "{self._parts.name}" reads 1 to {self._context}: generate fewer.'
                )
            rows.append(tokens)
        return rows

    def _ended(self, ids: Sequence[int]) -> bool:
        return len(ids) > 0 and ids[-1] in self._stops

    def _without_ends(
        self, completions: Sequence[Any], completion_ids: Sequence[Sequence[int]]
    ) -> list[np.ndarray]:
        """Return the ids of each completion, without what ended it."""
        if not self._same_tokens:
            texts = [_text_of(completion) for completion in completions]
            return token_ids(texts, self._parts.tokenizer)
        own = [ids[:-1] if self._ended(ids) else ids for ids in completion_ids]
        # A policy may have more embeddings than there are tokens; what has no text is not read.
        return [np.array([i for i in ids if i < self._known], dtype=np.int32) for ids in own]


def _same_vocabulary(ours: Any, theirs: Any) -> bool:
    """Whether two tokenizers know the same tokens by the same ids, but for our padding."""
    differing = ours.get_vocab().items() ^ theirs.get_vocab().items()
    return all(token == ours.pad_token for token, _ in differing)


def _text_of(completion: Any) -> str:
    """Return the text of a completion: a string, or the last message of a chat."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def _no_reward_model(name: str) -> UserError:
    return UserError(
        f'transformers has no reward model of the family of "{name}": start from a gpt2, qwen2 or '
        "llama model."
    )

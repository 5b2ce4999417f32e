"""Tiny language models, batches, rollouts and groups for the tests of the token policies."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from visgrpo.data.batches import Batch
from visgrpo.methods.generate import Sampling
from visgrpo.methods.token_groups import FixedKL, TokenGroups, TokenMemory, TokenRollouts
from visgrpo.methods.tokens import TokenGRPO, TokenTerms
from visgrpo.models.language import CriticKind, LanguageModel, Scores, critic_of
from visgrpo.models.reference import TokenReference, reference_of
from visgrpo.objectives import preset
from visgrpo.objectives.token_distribution import TokenDistribution
from visgrpo.rewards.texts import TextRewards

Answer = TypeVar("Answer")
VOCABULARY, WIDTH, PAD, STOP = 12, 16, 0, 1
# Four prompts of 4, 2, 3 and 1 tokens, padded on the left.
PROMPTS = torch.tensor([[7, 3, 9, 4], [0, 0, 11, 2], [0, 5, 5, 8], [0, 0, 0, 6]])
LENGTHS = torch.tensor([4, 2, 3, 1])
PROMPT_TEXTS = tuple(
    " ".join(map(str, row[-length:]))
    for row, length in zip(PROMPTS.tolist(), LENGTHS.tolist(), strict=True)
)


def language(
    kind: str = "gpt2", *, critic: CriticKind | None = None, seed: int = 0, spread: float = 0.3
) -> LanguageModel:
    """GPT-2, or Qwen2 whose two heads share a key; weights so large that logits differ."""
    from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

    ids = {"bos_token_id": None, "eos_token_id": STOP}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "gpt2":
            sizes = {"n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 64}
            quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
            lm: Any = GPT2LMHeadModel(
                GPT2Config(vocab_size=VOCABULARY, initializer_range=spread, **sizes, **quiet, **ids)
            )
        else:
            lm = Qwen2ForCausalLM(
                Qwen2Config(
                    vocab_size=VOCABULARY,
                    hidden_size=WIDTH,
                    intermediate_size=24,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    num_key_value_heads=1,
                    initializer_range=spread,
                    **ids,
                )
            )
    return LanguageModel(lm, critic_of(lm, critic) if critic else None)


def batch_of(rows: Sequence[int] = (0, 1, 2, 3), positions: Tensor | None = None) -> Batch:
    """Some of the prompts, with a column; the inputs are token ids and the labels lengths."""
    chosen = torch.tensor(rows)
    column = {"price": [float(row + 1) for row in rows]}
    return Batch(
        chosen, PROMPTS[chosen], columns=column, positions_N=positions, lengths_N=LENGTHS[chosen]
    )


def sampling(length: int = 6, stop: tuple[int, ...] = (STOP,), **distribution: Any) -> Sampling:
    cut = TokenDistribution(**{"forbidden": (PAD,), **distribution})
    return Sampling(cut, length, stop, PAD)


def decode(groups: list[list[int]]) -> list[str]:
    """Ids as words; the one that ends a completion is special and left out."""
    return [" ".join(str(token) for token in ids if token != STOP) for ids in groups]


def large_tokens(*, completions: list[str], **columns: Any) -> list[float]:
    """A reward: the share of tokens above 6, or 0 for nothing."""
    split = [[int(word) for word in text.split()] for text in completions]
    return [sum(word > 6 for word in words) / max(len(words), 1) for words in split]


def rollouts(
    *,
    rewards: Sequence[Callable[..., Any]] = (large_tokens,),
    weights: Sequence[float] | None = None,
    group_size: int = 4,
    control: Any = None,
    drawn: Sampling | None = None,
    **settings: Any,
) -> TokenRollouts:
    return TokenRollouts(
        rewards=TextRewards.of([(f.__name__, f) for f in rewards], weights),
        sampling=drawn or sampling(),
        group_size=group_size,
        prompts=PROMPT_TEXTS,
        decode=decode,
        memory=TokenMemory(FixedKL(0.0) if control is None else control),
        **settings,
    )


def grpo(name: str = "grpo", **settings: Any) -> TokenGRPO:
    """A method, off policy; some of its completions end and some are cut off."""
    terms = settings.pop("terms", TokenTerms(on_policy=False))
    best_only = settings.pop("best_only", False)
    combination = settings.pop("combination", "sum_then_normalize")
    source = rollouts(drawn=sampling(6, stop=(STOP, 6)), **settings)
    return TokenGRPO(source, preset(name), terms, combination, best_only)


def moved_from_start(kind: str = "gpt2") -> tuple[TokenReference, LanguageModel]:
    """A reference, and the policy that has moved away from it."""
    model = language(kind)
    reference = reference_of(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    return reference, model


class GivenScores(nn.Module):
    """A model whose log-probs, entropies and values are parameters: the loss's own inputs."""

    def __init__(
        self, log_probs_NGT: Tensor, entropy_NGT: Tensor, values_NGT: Tensor | None = None
    ) -> None:
        super().__init__()
        self.log_probs = nn.Parameter(log_probs_NGT.clone())
        self.entropy = nn.Parameter(entropy_NGT.clone())
        self.values = None if values_NGT is None else nn.Parameter(values_NGT.clone())

    def forward(self, *given: Any, **named: Any) -> Scores:
        return Scores(self.log_probs, self.entropy, self.values)


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


MASK = torch.tensor(
    [
        [[1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 1, 0, 0]],
        [[1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]],
    ]
).bool()
ENDED = torch.tensor([[False, True, True], [True, True, False]])


def given_groups(**changes: Any) -> TokenGroups:
    """Two groups of three ragged completions, all numbers in float64 and NaN at masked places."""
    old = -random(2, 3, 5, seed=1).abs()
    groups = TokenGroups(
        prompts_NP=PROMPTS[:2],
        lengths_N=LENGTHS[:2],
        tokens_NGT=torch.zeros(2, 3, 5, dtype=torch.long),
        mask_NGT=MASK,
        ended_NG=ENDED,
        old_log_probs_NGT=old.masked_fill(~MASK, torch.nan),
        reference_log_probs_NGT=(old + 0.5 * random(2, 3, 5, seed=2)).masked_fill(
            ~MASK, -torch.inf
        ),
        rewards_NGR=random(2, 3, 1, seed=3),
        gold_NG=None,
        mean_tokens_N=torch.full((2,), MASK.sum().item() / 6, dtype=torch.float64),
        texts=(("a", ("b", "c", "d")), ("e", ("f", "g", "h"))),
        advantages=random(2, 3, seed=4),
    )
    return replace(groups, **changes)


def given_scores(**changes: Tensor) -> GivenScores:
    """Log-probs off the old ones by about a third, so that clips act; NaN at masked places."""
    near = -random(2, 3, 5, seed=1).abs() + 0.35 * random(2, 3, 5, seed=5)
    parts = {
        "log_probs_NGT": near.masked_fill(~MASK, torch.nan),
        "entropy_NGT": random(2, 3, 5, seed=6).abs(),
    }
    return GivenScores(**{**parts, **changes})


class Shard:
    """One of two processes that really wait for each other, each in a thread of its own."""

    world_size = 2

    def __init__(self, rank: int, parts: list[Tensor | None], barrier: threading.Barrier) -> None:
        self.rank, self._parts, self._barrier = rank, parts, barrier

    def gather(self, tensor: Tensor) -> Tensor:
        self._parts[self.rank] = tensor.detach().clone()
        self._barrier.wait()
        whole = torch.cat([part for part in self._parts if part is not None])
        self._barrier.wait()  # nobody writes before both have read
        return whole


def in_two_processes(work: Callable[[Shard], Answer]) -> list[Answer]:
    """What each of two processes answers; a gather that only one reaches fails within seconds."""
    parts: list[Tensor | None] = [None, None]
    barrier = threading.Barrier(2, timeout=10)
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda rank: work(Shard(rank, parts, barrier)), (0, 1)))

"""The groups of completions that one batch is optimised on, and how they are drawn and scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from visgrpo.data.batches import Batch
from visgrpo.data.pictures import Pictures
from visgrpo.data.text import Prompt
from visgrpo.errors import UserError
from visgrpo.methods.generate import Completions, Sampling, generate, ids_of
from visgrpo.methods.groups import places_of, uniforms_for
from visgrpo.methods.method import ONE_PROCESS, Shards
from visgrpo.models.language import LanguageModel
from visgrpo.models.prompt_reading import ReadPrompts
from visgrpo.models.reference import MovingReference, TokenReference
from visgrpo.rewards.texts import TextReward, TextRewards


@dataclass(frozen=True)
class TokenGroups:
    """N groups of G completions of up to T tokens, with everything that a loss needs.

    Attributes:
        prompts_NP: ids, padded on the left; lengths_N are their real tokens.
        tokens_NGT: ids of the completions; mask_NGT is True at their own tokens.
        ended_NG: False where the length limit cut a completion off.
        old_log_probs_NGT: of the distribution that the tokens were drawn from, by the pass that
            trains where several updates learn from them.
        reference_log_probs_NGT: of the same tokens by the start, where top-k and top-p cut none
            away: the KL is that of what is drawn to the whole start. None without a reference.
        rewards_NGR: each of R rewards, unweighted; NaN where a reward does not apply to a prompt.
        gold_NG: what a judge says beside the rewards, which nothing learns from; None without one.
        advantages: (N, G), or (N, G, T) where a critic sees every token; 0 until they are made.
        mean_tokens_N: mean tokens of a completion in the whole batch of all processes, the same
            number for every input.
        entropies_NGT: of the whole softmax that each token was drawn from; None unless asked for.
        uncertain_NGT: which tokens the surrogate counts; None for all.
        draws_N: how often each group was drawn; told_N: which hold the truth. None where neither
            was asked for.
        learned_NG: which completions the loss may count; None for all.
        learned_tokens_N: mean tokens of a completion that the loss counts, in the whole batch of
            all processes; None where these groups are the whole.
        old_values_NGT, returns_NGT: of the critic, where there is one.
        explained_variance_N: of its values in the whole batch, the same number for every input.
        texts: the prompt and the completions of each input, as text.
        truths: the true answer to each prompt, to be shown; None where there are none.
        pictures: the prompts' images; None where there are none.
        read: the prompts as the rollout read them, with gradient, for the one update that its
            weights serve; None where an update reads them itself.
    """

    prompts_NP: Tensor
    lengths_N: Tensor
    tokens_NGT: Tensor
    mask_NGT: Tensor
    ended_NG: Tensor
    old_log_probs_NGT: Tensor
    reference_log_probs_NGT: Tensor | None
    rewards_NGR: Tensor
    gold_NG: Tensor | None
    mean_tokens_N: Tensor
    texts: tuple[tuple[str, tuple[str, ...]], ...]
    advantages: Tensor
    old_values_NGT: Tensor | None = None
    returns_NGT: Tensor | None = None
    entropies_NGT: Tensor | None = None
    uncertain_NGT: Tensor | None = None
    draws_N: Tensor | None = None
    told_N: Tensor | None = None
    learned_NG: Tensor | None = None
    learned_tokens_N: Tensor | None = None
    explained_variance_N: Tensor | None = None
    truths: tuple[str, ...] | None = None
    pictures: Pictures | None = None
    read: ReadPrompts | None = None

    def mean_over_tokens(self, values_NGT: Tensor) -> Tensor:
        """Return what these groups add to the mean over all tokens of the whole batch.

        The mean over equal pieces of a batch is then that of its tokens, however long each piece's
        completions are.
        """
        tokens = self.mean_tokens_N.sum() * self.mask_NGT.shape[1]
        return values_NGT.masked_fill(~self.mask_NGT, 0.0).sum() / tokens.clamp(min=1)

    def select(self, rows: Tensor) -> TokenGroups:
        """Return the groups of some inputs, for a minibatch."""
        assert self.read is None, "prompts that were read together are learned from together"
        chosen = rows.tolist()

        def pick(value: Any) -> Any:
            if value is None:
                return None
            if isinstance(value, Pictures):
                return value.select(rows)
            return value[rows] if isinstance(value, Tensor) else tuple(value[i] for i in chosen)

        return TokenGroups(**{f.name: pick(getattr(self, f.name)) for f in fields(self)}).trimmed()

    def trimmed(self) -> TokenGroups:
        """Return the groups without columns of completions that are padding in every row.

        Prompts keep the width of the whole batch: at another width the same prompt is rounded
        otherwise, in bf16 by more than a sequence's ratio may be off 1.
        """
        longest = int(self.mask_NGT.sum(dim=-1).max())
        if longest == self.mask_NGT.shape[-1]:
            return self
        return replace(self, **{name: v[..., :longest] for name, v in self.of_tokens().items()})

    def of_tokens(self) -> dict[str, Any]:
        """Return what there is of each token, (N, G, T), by name."""
        return {
            f.name: value
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
            and value.ndim == 3
            and f.name != "rewards_NGR"
        }


class TokenMemory:
    """What a run over tokens remembers: how many it has drawn, the weight of KL, its reference.

    Attributes:
        weights: of a reference that moves.
    """

    def __init__(
        self, control: KLControl | None = None, reference: TokenReference | None = None
    ) -> None:
        self.control, self.sampled_tokens = control or FixedKL(0.0), 0
        self.weights: Mapping[str, Tensor] = {}
        if isinstance(reference, MovingReference):
            self.weights = reference.weights

    @property
    def kl_weight(self) -> float:
        """How much KL to the start weighs now."""
        return self.control.coefficient

    def state(self) -> dict[str, float]:
        return {"sampled_tokens": self.sampled_tokens, **self.control.state()}

    def restore(self, state: Mapping[str, float]) -> None:
        rest = dict(state)
        self.sampled_tokens = int(rest.pop("sampled_tokens"))
        self.control.restore(rest)

    def metrics(self) -> dict[str, float]:
        return {
            "sampled_tokens": self.sampled_tokens,
            "kl_coefficient": self.kl_weight,
        }


@dataclass(frozen=True)
class TokenRollouts:
    """Draws the groups of a batch and asks for their rewards.

    Attributes:
        prompts: of the training set, as the reward functions are given them.
        decode: from token ids to text, without special tokens.
        truths: the true answers to the prompts, to be shown beside samples; None without any.
        judge: a reward that is measured and never learned from; None for none.
        reference: of the KL terms; None where nobody asks for KL.
    """

    rewards: TextRewards
    sampling: Sampling
    group_size: int
    prompts: Sequence[Prompt]
    decode: Callable[[list[list[int]]], list[str]]
    memory: TokenMemory
    truths: Sequence[str] | None = None
    reference: TokenReference | None = None
    judge: TextReward | None = None
    shards: Shards = ONE_PROCESS
    seed: int = 0

    def draw(
        self,
        model: LanguageModel,
        batch: Batch,
        step: int,
        chunk: int,
        *,
        total: int | None = None,
        steer: bool = True,
        keep_read: bool = False,
        rescored: bool = False,
        entropies: bool = False,
    ) -> TokenGroups:
        """Return the groups of this process's share of a batch, ``chunk`` inputs at a time.

        Counts what was drawn, and tells the control of the KL weight how far the policy is.

        Args:
            total: inputs of the whole batch; None where all processes have as many.
            steer: whether the control of the KL weight is told.
            keep_read: whether the groups hold the prompts as they were read, with gradient; the
                whole batch must be one chunk.
            rescored: whether the old log-probs are those of the pass that trains: decoding with a
                cache rounds otherwise, in bf16 by more than a sequence's ratio may be off 1.
            entropies: whether the groups hold the entropy that each token was drawn with.
        """
        n_inputs = len(batch)
        total = total or n_inputs * self.shards.world_size
        places_N = places_of(batch, self.shards)
        room = self.sampling.max_new_tokens
        uniforms = uniforms_for(self.seed, step, places_N, total, self.group_size, room)
        parts, references = [], []
        for rows in torch.arange(n_inputs).split(chunk):
            prompts_NP, lengths_N = batch.prompts_NP[rows], batch.lengths_N[rows]
            prompts_NP = prompts_NP[:, -int(lengths_N.max()) :]
            pictures = batch.pictures.select(rows) if batch.pictures is not None else None
            drawn = generate(
                model,
                prompts_NP,
                lengths_N,
                uniforms[rows],
                self.sampling,
                pictures,
                keep_read=keep_read,
                entropies=entropies,
            )
            if rescored:
                scores = model(
                    batch.prompts_NP[rows],
                    lengths_N,
                    drawn.tokens_NGT,
                    self.sampling.distribution,
                    pictures=pictures,
                )
                drawn = replace(
                    drawn, log_probs_NGT=scores.log_probs.masked_fill(~drawn.mask_NGT, 0.0)
                )
            parts.append(drawn)
            if self.reference is not None:
                references.append(
                    self.reference.log_probs(
                        batch.prompts_NP[rows],
                        lengths_N,
                        drawn.tokens_NGT,
                        self.sampling.distribution.whole(),
                        pictures,
                    )
                )
        completions = joined(parts, self.sampling.pad)
        tokens_NG = completions.mask_NGT.sum(dim=-1)
        tokens = int(self.shards.gather(tokens_NG.sum()[None]).sum())
        self.memory.sampled_tokens += tokens
        groups = TokenGroups(
            prompts_NP=batch.prompts_NP,
            lengths_N=batch.lengths_N,
            tokens_NGT=completions.tokens_NGT,
            mask_NGT=completions.mask_NGT,
            ended_NG=completions.ended_NG,
            old_log_probs_NGT=completions.log_probs_NGT,
            reference_log_probs_NGT=_one_after_another(references, completions.mask_NGT),
            rewards_NGR=torch.zeros(n_inputs, 0, 0),
            advantages=torch.zeros_like(tokens_NG, dtype=torch.float32),
            gold_NG=None,
            mean_tokens_N=tokens_NG.new_full(
                (n_inputs,), tokens / (total * self.group_size), dtype=torch.float32
            ),
            old_values_NGT=completions.values_NGT,
            entropies_NGT=completions.entropies_NGT,
            texts=(),
            truths=self._truths(batch),
            pictures=batch.pictures,
            read=parts[0].read,
        ).trimmed()
        groups = self.rewarded(groups, batch)
        if steer and groups.reference_log_probs_NGT is not None:
            kl_NG = sequence_kl(groups)
            mean = float(self.shards.gather(kl_NG.mean()[None]).mean())
            self.memory.control.update(mean, total * self.group_size)
        return groups

    def rewarded(self, groups: TokenGroups, batch: Batch) -> TokenGroups:
        """Return groups with what their completions say, and earn."""
        ids = ids_of(groups.tokens_NGT, groups.mask_NGT)
        prompts = [self.prompts[row] for row in batch.indices_N.tolist()]
        texts = [self.decode(group) for group in ids]
        device = groups.tokens_NGT.device
        return replace(
            groups,
            rewards_NGR=self.rewards(prompts, texts, ids, batch.columns).to(device),
            gold_NG=self._gold(prompts, texts, ids, batch.columns, device),
            texts=tuple(
                (shown_prompt(prompt), tuple(group))
                for prompt, group in zip(prompts, texts, strict=True)
            ),
        )

    def move_reference(self, step: int) -> None:
        """Move a reference that follows the policy, before a step in which it is due."""
        if isinstance(self.reference, MovingReference):
            self.reference.follow(step)

    def apart(self, prompts: Sequence[Prompt], group_size: int) -> TokenRollouts:
        """Return the same for other prompts and without the run's memory, in one process."""
        return replace(
            self,
            prompts=prompts,
            truths=None,
            group_size=group_size,
            memory=TokenMemory(),
            shards=ONE_PROCESS,
        )

    def _truths(self, batch: Batch) -> tuple[str, ...] | None:
        if self.truths is None:
            return None
        return tuple(self.truths[row] for row in batch.indices_N.tolist())

    def _gold(
        self,
        prompts: list[Prompt],
        texts: list[list[str]],
        ids: list[list[list[int]]],
        columns: Mapping[str, list[Any]],
        device: torch.device,
    ) -> Tensor | None:
        if self.judge is None:
            return None
        judge = TextRewards.of([("gold", self.judge)], None)
        return judge(prompts, texts, ids, columns)[..., 0].to(device)


def joined(parts: Sequence[Completions], pad: int) -> Completions:
    """Return the completions of several parts of a batch as one, padded to the longest."""
    longest = max(part.mask_NGT.shape[-1] for part in parts)

    def padded(optional: Sequence[Tensor | None]) -> Tensor | None:
        there = [_padded(each, longest, 0.0) for each in optional if each is not None]
        return torch.cat(there) if there else None

    return Completions(
        torch.cat([_padded(part.tokens_NGT, longest, pad) for part in parts]),
        torch.cat([_padded(part.mask_NGT, longest, False) for part in parts]),
        torch.cat([_padded(part.log_probs_NGT, longest, 0.0) for part in parts]),
        torch.cat([part.ended_NG for part in parts]),
        padded([part.values_NGT for part in parts]),
        padded([part.entropies_NGT for part in parts]),
    )


def sequence_kl(groups: TokenGroups) -> Tensor:
    """Return log π_old - log π_ref (N, G) of whole completions: k1, in nats per completion."""
    assert groups.reference_log_probs_NGT is not None
    difference = groups.old_log_probs_NGT - groups.reference_log_probs_NGT
    return difference.masked_fill(~groups.mask_NGT, 0.0).sum(dim=-1)


def shown_prompt(prompt: Prompt) -> str:
    """Return a prompt as people read it: messages one after the other, each with its role."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _one_after_another(parts: Sequence[Tensor], mask_NGT: Tensor) -> Tensor | None:
    """Join the reference's log-probs of parts of a batch; 0 after the end, None without a part."""
    if not parts:
        return None
    longest = mask_NGT.shape[-1]
    return torch.cat([_padded(part, longest, 0.0) for part in parts]).masked_fill(~mask_NGT, 0.0)


def _padded(values_NGT: Tensor, length: int, value: float) -> Tensor:
    return torch.nn.functional.pad(values_NGT, (0, length - values_NGT.shape[-1]), value=value)


MAX_ERROR = 0.2  # of the relative distance to the target that one update acts on


class KLControl(Protocol):
    """Who decides how much KL to the start weighs; its state goes into the checkpoint."""

    @property
    def coefficient(self) -> float:
        """The weight now."""

    def update(self, kl: float, samples: int) -> None:
        """Take the KL to the start that was seen over some completions."""

    def state(self) -> dict[str, float]: ...
    def restore(self, state: Mapping[str, float]) -> None: ...


class AdaptiveKL:
    """Raises the weight while the KL is above its target, and lowers it below.

        e = clip(KL / target - 1, -0.2, 0.2)
        β ← β (1 + e · samples / horizon)

    Source: Ziegler et al. 2019, arXiv 1909.08593, section 2.2, with a fixed share K_β = 0.1; the
    form here is that of its published code, in which it grows with the batch.

    Args:
        initial: the first weight, above 0.
        target: nats per completion, above 0.
        horizon: completions in which a KL far from its target moves the weight by about a fifth.

    Raises:
        UserError: for a setting that is not a finite number above 0.
    """

    def __init__(self, initial: float, target: float, horizon: float) -> None:
        settings = {"first weight": initial, "target": target, "horizon": horizon}
        for what, value in settings.items():
            if not 0 < value < math.inf:
                raise UserError(
                    f"The {what} of the adaptive KL is {value:g}: give a number above 0."
                )
        self.coefficient = initial
        self.target, self.horizon = target, horizon

    def update(self, kl: float, samples: int) -> None:
        """Move the weight after `samples` completions of mean divergence `kl`.

        Raises:
            UserError: for a KL that is not finite, and a horizon so short that the weight could
                reach 0 in one update.
        """
        if not math.isfinite(kl):
            raise UserError(f"The KL to the reference is {kl}: lower the learning rate.")
        self.check(samples)
        error = min(max(kl / self.target - 1, -MAX_ERROR), MAX_ERROR)
        self.coefficient *= 1 + error * samples / self.horizon

    def check(self, samples: int) -> None:
        """Raise UserError for a horizon so short that so many completions could bring it to 0."""
        if MAX_ERROR * samples >= self.horizon:
            raise UserError(
                f"The horizon of the adaptive KL is {self.horizon:g}: with {samples} completions "
                f"at once it must be above {MAX_ERROR * samples:g}."
            )

    def state(self) -> dict[str, float]:
        return {"coefficient": self.coefficient}

    def restore(self, state: Mapping[str, float]) -> None:
        self.coefficient = state["coefficient"]


class FixedKL:
    """A weight that stays as it is; it has no state.

    Raises:
        UserError: for a weight that is negative or not finite.
    """

    def __init__(self, coefficient: float) -> None:
        if not 0 <= coefficient < math.inf:
            raise UserError(f"The weight of the KL is {coefficient:g}: give a number from 0.")
        self.coefficient = coefficient

    def update(self, kl: float, samples: int) -> None:
        """Keep the weight."""

    def state(self) -> dict[str, float]:
        return {}

    def restore(self, state: Mapping[str, float]) -> None:
        """Restore nothing: the weight is the run's option."""

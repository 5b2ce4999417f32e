"""Language models on held-out text, and policies over completions on held-out prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visgrpo.data.batches import Batch, CachedInputs
from visgrpo.data.prompts import PromptDataset
from visgrpo.data.token_blocks import BlockDataset
from visgrpo.measures.held_out import Precision
from visgrpo.measures.language import pair_measures, text_measures
from visgrpo.measures.zero_shot import run_over
from visgrpo.methods.token_groups import TokenGroups, TokenRollouts, sequence_kl
from visgrpo.models.language import LanguageModel
from visgrpo.models.reward_model import RewardModel
from visgrpo.objectives import weighted_sum
from visgrpo.objectives.token_distribution import LOGITS_AT_ONCE
from visgrpo.rewards.texts import TextRewards

PROMPTS_AT_ONCE = 32


@torch.no_grad()
def likelihood(
    model: LanguageModel, blocks: CachedInputs, tokenizer: Any, processes: Precision
) -> dict[str, float]:
    """Return `text_measures` of blocks of text, each predicted from its own beginning."""

    def sums(tokens_BT: Tensor) -> Tensor:
        logits_BTV = model.lm(input_ids=tokens_BT[:, :-1], use_cache=False).logits.float()
        chosen_BT1 = tokens_BT[:, 1:, None]
        nll_B = -logits_BTV.log_softmax(dim=-1).gather(-1, chosen_BT1).sum(dim=(1, 2))
        correct_B = (logits_BTV.argmax(dim=-1, keepdim=True) == chosen_BT1).sum(dim=(1, 2))
        return torch.stack([nll_B.double(), correct_B.double()], dim=1)

    rows = BlockDataset("text", len(blocks.inputs_M))
    vocabulary = model.plain.get_input_embeddings().num_embeddings
    fits = LOGITS_AT_ONCE // (blocks.inputs_M.shape[1] * vocabulary)
    at_once = max(1, min(PROMPTS_AT_ONCE, fits))
    with processes.autocast():
        totals_M2 = run_over(sums, rows, blocks, processes, batch_size=at_once)
    texts = tokenizer.batch_decode(blocks.inputs_M[:, 1:], skip_special_tokens=True)
    nll, correct = totals_M2.sum(dim=0).tolist()
    tokens = blocks.inputs_M[:, 1:].numel()
    return text_measures(nll, tokens, int(correct), sum(len(text.encode()) for text in texts))


@torch.no_grad()
def pair_scores(
    model: RewardModel, pairs: CachedInputs, rows: Any, processes: Precision
) -> tuple[Tensor, Tensor]:
    """Return the scores (M,) of the chosen and of the rejected completions of pairs."""
    assert pairs.labels_M is not None
    # One tensor travels: the lengths stand before the tokens.
    together_M = torch.cat([pairs.labels_M.unsqueeze(-1), pairs.inputs_M], dim=-1)

    def scores(rows_B2T: Tensor) -> Tensor:
        flat = rows_B2T.flatten(0, 1)
        return model(flat[:, 1:], flat[:, 0]).view(-1, 2)

    inputs = CachedInputs(together_M, pairs.labels_M)
    with processes.autocast():
        scores_M2 = run_over(scores, rows, inputs, processes, batch_size=64)
    return scores_M2[:, 0].float(), scores_M2[:, 1].float()


def pair_accuracy(
    model: RewardModel, pairs: CachedInputs, rows: Any, processes: Precision
) -> dict[str, float]:
    """Return `pair_measures` of a reward model on preference pairs."""
    return pair_measures(*pair_scores(model, pairs, rows, processes))


@dataclass(frozen=True)
class HeldOutPrompts:
    """Draws completions of held-out prompts, the same random numbers each time, and measures them.

    Attributes:
        rollouts: how completions are drawn and what they earn; it remembers nothing of the run.
        dataset: the prompts; inputs are their tokens.
    """

    rollouts: TokenRollouts
    dataset: PromptDataset
    inputs: CachedInputs
    processes: Precision

    @torch.no_grad()
    def measures(self, model: LanguageModel) -> dict[str, float]:
        """Return means over completions; KL is to the reference, in nats.

        Every process draws for its share of the prompts.
        """
        total, shards = len(self.dataset), self.processes
        share = -(-total // shards.world_size)
        begin = min(shards.rank * share, total)
        rows = torch.arange(begin, min(begin + share, total))
        sums: dict[str, Tensor] = {}
        for start in range(0, len(rows), PROMPTS_AT_ONCE):  # none at all for an empty share
            chunk = rows[start : start + PROMPTS_AT_ONCE]
            for name, value in self._sums(model, chunk, total).items():
                sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + value
        names = self._names()
        mine = torch.stack([sums.get(name, torch.zeros(())).double() for name in names])
        whole = shards.gather(mine.to(shards.device)[None]).sum(dim=0).tolist()
        found = dict(zip(names, whole, strict=True))
        entropy, tokens = found.pop("entropy"), found["tokens"]
        return {**completion_means(found, self.rollouts.rewards), "entropy": entropy / tokens}

    def _names(self) -> list[str]:
        names = ["completions", "tokens", "reward", "ended", "entropy"]
        for name in self.rollouts.rewards.names:
            names += [f"rewards/{name}", f"paid/{name}"]  # what it paid, and for how many
        names += ["gold_reward"] if self.rollouts.judge is not None else []
        return names + (["kl"] if self.rollouts.reference is not None else [])

    def _sums(self, model: LanguageModel, rows: Tensor, total: int) -> Mapping[str, Tensor]:
        """Sums over the completions of some prompts, float64 on the CPU."""
        assert self.inputs.labels_M is not None
        chosen = rows.tolist()
        columns = {
            name: [column[row] for row in chosen] for name, column in self.dataset.columns.items()
        }
        batch = Batch(rows, self.inputs.inputs_M[rows], self.inputs.labels_M[rows], columns, rows)
        batch = batch.to(self.processes.device)
        with self.processes.autocast():
            groups = self.rollouts.draw(model, batch, 0, PROMPTS_AT_ONCE, total=total)
            scores = model(
                groups.prompts_NP,
                groups.lengths_N,
                groups.tokens_NGT,
                self.rollouts.sampling.distribution,
                pictures=groups.pictures,
            )
        sums = completion_sums(groups, self.rollouts.rewards)
        sums["entropy"] = scores.entropy.masked_fill(~groups.mask_NGT, 0.0).sum(dim=(1, 2))
        return {name: value.double().cpu().sum() for name, value in sums.items()}


def completion_sums(groups: TokenGroups, rewards: TextRewards) -> dict[str, Tensor]:
    """Return sums (N,) over the completions of each prompt, for `completion_means`."""
    known_NGR = groups.rewards_NGR.nan_to_num(nan=0.0)
    n_prompts, group_size = groups.ended_NG.shape
    sums = {
        "completions": torch.full((n_prompts,), group_size),
        "tokens": groups.mask_NGT.sum(dim=(1, 2)),
        "reward": weighted_sum(known_NGR, rewards.weights_R).sum(dim=1),
        "ended": groups.ended_NG.sum(dim=1),
    }
    for i, name in enumerate(rewards.names):  # what it paid, and for how many
        sums[f"rewards/{name}"] = known_NGR[..., i].sum(dim=1)
        sums[f"paid/{name}"] = (~groups.rewards_NGR[..., i].isnan()).sum(dim=1)
    if groups.gold_NG is not None:
        sums["gold_reward"] = groups.gold_NG.sum(dim=1)
    if groups.reference_log_probs_NGT is not None:
        sums["kl"] = sequence_kl(groups).sum(dim=1)
    return sums


def completion_means(sums: Mapping[str, float], rewards: TextRewards) -> dict[str, float]:
    """Return means over completions, of the sums of all prompts; KL is in nats."""
    rest = dict(sums)
    completions, tokens = rest.pop("completions"), rest.pop("tokens")
    paid = {name: rest.pop(f"paid/{name}") for name in rewards.names}
    counts = {f"rewards/{name}": max(count, 1.0) for name, count in paid.items()}
    means = {name: value / counts.get(name, completions) for name, value in rest.items()}
    means["length"] = tokens / completions
    if "kl" in means:
        means["kl_per_token"] = rest["kl"] / tokens
    return means

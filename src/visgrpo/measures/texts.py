"""Texts: how well they are predicted, preferred and rewarded, on held-out text and prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from visgrpo.data.batches import Batch, CachedInputs
from visgrpo.data.roles import block_table
from visgrpo.data.table import Table
from visgrpo.errors import UserError
from visgrpo.measures.classification import bin_confidences, calibration_gap
from visgrpo.measures.over import Team, over, sums_over
from visgrpo.methods.token_groups import TokenGroups, TokenRollouts, sequence_kl
from visgrpo.models.language import LanguageModel
from visgrpo.models.reward_model import RewardModel
from visgrpo.objectives import weighted_sum
from visgrpo.objectives.token_distribution import LOGITS_AT_ONCE
from visgrpo.rewards.texts import TextRewards

PROMPTS_AT_ONCE = 32
_LONGEST_NLL = 700.0
"""Nats per token beyond which e^nll is no number of float64."""


def text_measures(nll: float, tokens: int, correct: int, text_bytes: int) -> dict[str, float]:
    """Return how well a model predicts a text.

    Args:
        nll: Σ -log p of the tokens that count, in nats.
        tokens: How many tokens those are.
        correct: How many of them were the model's likeliest token.
        text_bytes: Length of the text they make up, in bytes of UTF-8.

    Returns:
        ``nll`` (nats per token), ``perplexity`` e^nll, ``accuracy`` in [0, 1], and
        ``bits_per_byte``, which unlike the others compares models of different tokenizers.

    Raises:
        UserError: There is no token or no byte, or the sum is no finite number.
    """
    if tokens < 1 or text_bytes < 1:
        raise UserError(
            f"Nothing to evaluate: {tokens} tokens, {text_bytes} bytes; give a longer text."
        )
    per_token = nll / tokens
    # Written so that NaN fails too.
    if not abs(per_token) < _LONGEST_NLL:
        raise UserError(
            f"The text costs {per_token:.3g} nats per token: the model has diverged; "
            "try a lower learning rate."
        )
    return {
        "nll": per_token,
        "perplexity": math.exp(per_token),
        "accuracy": correct / tokens,
        "bits_per_byte": nll / (math.log(2) * text_bytes),
    }


def pair_measures(chosen_M: Tensor, rejected_M: Tensor, bins: int = 10) -> dict[str, float]:
    """Return how well the scores of a reward model tell preferred texts from rejected ones.

    By Bradley and Terry (1952) the chosen text wins with p = sigmoid(chosen - rejected).

    Args:
        chosen_M: Scores of the preferred texts.
        rejected_M: Scores of the texts they were preferred to.
        bins: Bins of the calibration error, of equal width in (0, 1].

    Returns:
        ``accuracy``, the share of pairs with the higher score for the chosen text, equal scores
        counting half; ``nll``, mean -log p in nats; ``ece`` of the confidence max(p, 1 - p);
        ``margin``, the mean of chosen - rejected.

    Raises:
        UserError: There are no pairs, shapes differ, or a score is NaN or infinite.
    """
    if chosen_M.ndim != 1 or chosen_M.shape != rejected_M.shape or not len(chosen_M):
        raise UserError(
            f"Shapes do not fit: chosen {tuple(chosen_M.shape)}, rejected "
            f"{tuple(rejected_M.shape)}; expected (M,) twice, with at least one pair."
        )
    margin_M = chosen_M.detach().cpu().double() - rejected_M.detach().cpu().double()
    if not margin_M.isfinite().all():
        row = int((~margin_M.isfinite()).nonzero()[0])
        raise UserError(
            f"Pair {row} has a score that is NaN or infinite: the reward model has diverged; "
            "try a lower learning rate."
        )
    right_M = (margin_M > 0).double() + 0.5 * (margin_M == 0).double()
    confidence_M = margin_M.abs().sigmoid()
    return {
        "accuracy": float(right_M.mean()),
        "nll": float(F.softplus(-margin_M).mean()),
        "ece": calibration_gap(bin_confidences(confidence_M, right_M, bins)),
        "margin": float(margin_M.mean()),
    }


def best_of_n(
    proxy_MS: Tensor, gold_MS: Tensor | None, sizes: Sequence[int]
) -> list[dict[str, float]]:
    """Return what the best of n samples by the proxy is worth, for each n.

    Of S samples of a prompt, sorted by the proxy, the k-th smallest is the best of a random subset
    of n with probability C(k-1, n-1) / C(S, n). The mean under these weights is that over all
    subsets: an unbiased estimate for every n ≤ S from the same samples, without drawing any
    (as Nakano et al. 2021, arXiv 2112.09332). Samples of equal proxy share their
    weight: either may be taken.

    Args:
        proxy_MS: The reward that chooses, of S samples of M prompts.
        gold_MS: The true reward of the same samples; None where it is not known.
        sizes: The values of n, each from 1 to S.

    Returns:
        One row for each n: ``n``, ``kl`` = log n - (n - 1) / n, ``reward`` and, if gold is known,
        ``gold_reward``, both means over prompts. ``kl`` is in nats per completion (Stiennon et
        al. 2020, arXiv 2009.01325). It is exact where no output is drawn twice, and an upper bound
        otherwise (Beirami et al. 2024, arXiv 2401.01879).

    Raises:
        UserError: Shapes do not fit, a reward is NaN or infinite, or an n is out of range.
    """
    _check_samples(proxy_MS, gold_MS)
    proxy_MS = proxy_MS.detach().cpu().double()
    sorted_MS, order_MS = proxy_MS.sort(dim=1)
    S = proxy_MS.shape[1]
    if gold_MS is not None:
        gold_MS = _shared_by_ties(gold_MS.detach().cpu().double().gather(1, order_MS), sorted_MS)
    rows = []
    for n in sizes:
        if not 1 <= n <= S:
            raise UserError(f"The best of {n} cannot be told from {S} samples: take n in 1 to {S}.")
        subsets = math.comb(S, n)
        # Exact whole numbers, divided once: no overflow, no cancellation.
        weight_S = torch.tensor(
            [math.comb(k, n - 1) / subsets for k in range(S)], dtype=torch.float64
        )
        row: dict[str, float] = {
            "n": n,
            "kl": math.log(n) - (n - 1) / n,
            "reward": float((sorted_MS @ weight_S).mean()),
        }
        if gold_MS is not None:
            row["gold_reward"] = float((gold_MS @ weight_S).mean())
        rows.append(row)
    return rows


def sizes_to(samples: int) -> list[int]:
    """Return the sizes n for `best_of_n` of so many samples: the powers of two, and all of them."""
    return sorted({*(2**power for power in range(samples.bit_length())), samples})


def _check_samples(proxy_MS: Tensor, gold_MS: Tensor | None) -> None:
    if proxy_MS.ndim != 2 or 0 in proxy_MS.shape:
        raise UserError(
            f"Shapes do not fit: rewards {tuple(proxy_MS.shape)}; expected (M, S), neither zero."
        )
    if gold_MS is not None and gold_MS.shape != proxy_MS.shape:
        raise UserError(
            f"Shapes do not fit: rewards {tuple(proxy_MS.shape)} and gold rewards "
            f"{tuple(gold_MS.shape)}; expected (M, S) twice."
        )
    for name, values_MS in (("reward", proxy_MS), ("gold reward", gold_MS)):
        if values_MS is not None and not values_MS.isfinite().all():
            row, sample = (~values_MS.isfinite()).nonzero()[0].tolist()
            raise UserError(
                f"The {name} of sample {sample} of prompt {row} is NaN or infinite: mend the "
                "reward function."
            )


def _shared_by_ties(gold_MS: Tensor, sorted_MS: Tensor) -> Tensor:
    """Replace the gold rewards of samples of equal proxy, which lie side by side, by their mean."""
    shared_MS = torch.empty_like(gold_MS)
    for m, (gold_S, proxy_S) in enumerate(zip(gold_MS, sorted_MS, strict=True)):
        _, run_S, counts = torch.unique_consecutive(
            proxy_S, return_inverse=True, return_counts=True
        )
        sums = torch.zeros(len(counts), dtype=gold_S.dtype).index_add_(0, run_S, gold_S)
        shared_MS[m] = (sums / counts)[run_S]
    return shared_MS


# ---- models on held-out text and prompts ---------------------------------------------------------


@torch.no_grad()
def likelihood(
    model: LanguageModel, blocks: CachedInputs, tokenizer: Any, processes: Team
) -> dict[str, float]:
    """Return `text_measures` of blocks of text, each predicted from its own beginning."""

    def sums(batch: Batch) -> Tensor:
        tokens_BT = batch.inputs
        logits_BTV = model.lm(input_ids=tokens_BT[:, :-1], use_cache=False).logits.float()
        chosen_BT1 = tokens_BT[:, 1:, None]
        nll_B = -logits_BTV.log_softmax(dim=-1).gather(-1, chosen_BT1).sum(dim=(1, 2))
        correct_B = (logits_BTV.argmax(dim=-1, keepdim=True) == chosen_BT1).sum(dim=(1, 2))
        return torch.stack([nll_B.double(), correct_B.double()], dim=1)

    rows = block_table("text", len(blocks.inputs_M))
    vocabulary = model.plain.get_input_embeddings().num_embeddings
    fits = LOGITS_AT_ONCE // (blocks.inputs_M.shape[1] * vocabulary)
    at_once = max(1, min(PROMPTS_AT_ONCE, fits))
    with processes.autocast():
        totals_M2 = over(sums, rows, blocks, processes, batch_size=at_once)
    texts = tokenizer.batch_decode(blocks.inputs_M[:, 1:], skip_special_tokens=True)
    nll, correct = totals_M2.sum(dim=0).tolist()
    tokens = blocks.inputs_M[:, 1:].numel()
    return text_measures(nll, tokens, int(correct), sum(len(text.encode()) for text in texts))


@torch.no_grad()
def pair_scores(
    model: RewardModel, pairs: CachedInputs, rows: Any, processes: Team
) -> tuple[Tensor, Tensor]:
    """Return the scores (M,) of the chosen and of the rejected completions of pairs."""

    def scores(batch: Batch) -> Tensor:
        return model(batch.inputs.flatten(0, 1), batch.lengths_N.flatten()).view(-1, 2)

    with processes.autocast():
        scores_M2 = over(scores, rows, pairs, processes, batch_size=64)
    return scores_M2[:, 0].float(), scores_M2[:, 1].float()


def pair_accuracy(
    model: RewardModel, pairs: CachedInputs, rows: Any, processes: Team
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
    dataset: Table
    inputs: CachedInputs
    processes: Team

    @torch.no_grad()
    def measures(self, model: LanguageModel) -> dict[str, float]:
        """Return means over completions; KL is to the reference, in nats.

        Every process draws for its share of the prompts.
        """
        rollouts, total = self.rollouts, len(self.dataset)
        names = [*completion_sums_of(rollouts), "entropy"]

        def sums(batch: Batch) -> list[Tensor]:
            with self.processes.autocast():
                groups = rollouts.draw(model, batch, 0, PROMPTS_AT_ONCE, total=total)
                scores = model(
                    groups.prompts_NP,
                    groups.lengths_N,
                    groups.tokens_NGT,
                    rollouts.sampling.distribution,
                    pictures=groups.pictures,
                )
            found = completion_sums(groups, rollouts.rewards)
            assert scores.entropy is not None
            found["entropy"] = scores.entropy.masked_fill(~groups.mask_NGT, 0.0).sum(dim=(1, 2))
            return [found[name].double().sum() for name in names]

        zeros = [torch.zeros((), dtype=torch.float64) for _ in names]
        whole = sums_over(
            sums, zeros, self.dataset, self.inputs, self.processes, batch_size=PROMPTS_AT_ONCE
        )
        found = {name: value.item() for name, value in zip(names, whole, strict=True)}
        entropy, tokens = found.pop("entropy"), found["tokens"]
        return {**completion_means(found, rollouts.rewards), "entropy": entropy / tokens}


def completion_sums_of(rollouts: TokenRollouts) -> list[str]:
    """Return the names of `completion_sums`, which all processes agree on."""
    names = ["completions", "tokens", "reward", "ended"]
    for name in rollouts.rewards.names:
        names += [f"rewards/{name}", f"paid/{name}"]  # what it paid, and for how many
    names += ["gold_reward"] if rollouts.judge is not None else []
    return names + (["kl"] if rollouts.reference is not None else [])


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

"""Measures of language models, of reward models, and of best-of-n sampling: pure numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from visgrpo.errors import UserError
from visgrpo.measures.calibration import bin_confidences, calibration_gap

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

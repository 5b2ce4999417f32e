"""Measures of text, of pairs and of best-of-n, against closed forms and brute force."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error

from visgrpo.errors import UserError
from visgrpo.measures.texts import best_of_n, completion_means, pair_measures, text_measures
from visgrpo.rewards.texts import TextRewards


def test_a_uniform_model_costs_log_v():
    # 8 tokens of a vocabulary of 16, each of two bytes: 4 bits a token, 2 bits a byte.
    measures = text_measures(nll=8 * math.log(16), tokens=8, correct=2, text_bytes=16)
    assert measures == pytest.approx(
        {"nll": math.log(16), "perplexity": 16, "accuracy": 0.25, "bits_per_byte": 2}
    )


@pytest.mark.parametrize(("tokens", "text_bytes"), [(0, 3), (3, 0)])
def test_an_empty_text_is_an_error(tokens, text_bytes):
    with pytest.raises(UserError, match="Nothing to evaluate"):
        text_measures(1.0, tokens, 0, text_bytes)


@pytest.mark.parametrize("nll", [math.nan, math.inf, 1e6])
def test_a_diverged_model_is_an_error(nll):
    with pytest.raises(UserError, match="has diverged"):
        text_measures(nll, 10, 0, 10)


def test_pairs_by_hand():
    # Differences log 3, -log 3, 0: p = 3/4, 1/4, 1/2.
    measures = pair_measures(torch.tensor([math.log(3), 0, 2]), torch.tensor([0, math.log(3), 2]))
    assert measures == pytest.approx(
        {
            "accuracy": 0.5,
            "nll": -(math.log(3 / 4) + math.log(1 / 4) + math.log(1 / 2)) / 3,
            # Two pairs of confidence 3/4, one of them right; one of 1/2 that counts half.
            "ece": 2 / 3 * (3 / 4 - 1 / 2),
            "margin": 0,
        },
        abs=1e-7,
    )


def test_calibration_of_pairs_agrees_with_torchmetrics():
    chosen, rejected = torch.randn(2, 500, generator=torch.Generator().manual_seed(0))
    margin = chosen.double() - rejected.double()
    expected = binary_calibration_error(margin.abs().sigmoid(), (margin > 0).long(), n_bins=10)
    assert pair_measures(chosen, rejected)["ece"] == pytest.approx(float(expected), abs=1e-6)


def test_scores_far_apart_do_not_overflow():
    measures = pair_measures(torch.tensor([-1e5]), torch.tensor([1e5]))
    assert (measures["nll"], measures["accuracy"], measures["ece"]) == (2e5, 0, 1)


@pytest.mark.parametrize("shapes", [((3,), (2,)), ((0,), (0,)), ((2, 2), (2, 2))])
def test_pairs_of_other_shapes_are_an_error(shapes):
    with pytest.raises(UserError, match="Shapes do not fit"):
        pair_measures(*(torch.zeros(shape) for shape in shapes))


def test_a_score_that_is_nan_is_named():
    with pytest.raises(UserError, match="Pair 1 has a score"):
        pair_measures(torch.tensor([0.0, math.nan]), torch.zeros(2))


@pytest.mark.parametrize("tied", [False, True])
def test_best_of_n_is_the_mean_over_all_subsets(tied):
    generator = torch.Generator().manual_seed(3)
    proxy_MS = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    proxy_MS = proxy_MS.round() if tied else proxy_MS
    gold_MS = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    for row in best_of_n(proxy_MS, gold_MS, range(1, 8)):
        proxies, golds = [], []
        for proxy_S, gold_S in zip(proxy_MS.tolist(), gold_MS.tolist(), strict=True):
            for subset in combinations(range(7), int(row["n"])):
                best = max(proxy_S[k] for k in subset)
                winners = [gold_S[k] for k in subset if proxy_S[k] == best]
                proxies.append(best)
                golds.append(sum(winners) / len(winners))
        assert row["reward"] == pytest.approx(sum(proxies) / len(proxies))
        assert row["gold_reward"] == pytest.approx(sum(golds) / len(golds))


def test_the_kl_of_best_of_n_is_exact_without_ties():
    # Of V equally likely outputs with distinct rewards the k-th is the best of n with
    # (k/V)^n - ((k-1)/V)^n: for many outputs its KL to 1/V is log n - (n-1)/n.
    V = 200_000
    k = torch.arange(1, V + 1, dtype=torch.float64)
    for row in best_of_n(torch.rand(1, 16), None, [1, 2, 16]):
        chance = (k / V) ** row["n"] - ((k - 1) / V) ** row["n"]
        kl = torch.xlogy(chance, chance * V).sum()
        assert row["kl"] == pytest.approx(float(kl), abs=1e-4)
        assert "gold_reward" not in row


def test_many_samples_do_not_overflow():
    rows = best_of_n(torch.arange(1000.0).repeat(2, 1), None, [1, 500, 1000])
    # The greatest of n out of 1 … S is n (S + 1) / (n + 1) on average.
    expected = [n * 1001 / (n + 1) - 1 for n in (1, 500, 1000)]
    assert [row["reward"] for row in rows] == pytest.approx(expected)


@pytest.mark.parametrize("n", [0, 5])
def test_n_must_lie_in_the_number_of_samples(n):
    with pytest.raises(UserError, match=rf"The best of {n} cannot be told from 4 samples"):
        best_of_n(torch.zeros(2, 4), None, [n])


def test_rewards_that_do_not_fit_are_an_error():
    with pytest.raises(UserError, match="expected \\(M, S\\), neither zero"):
        best_of_n(torch.zeros(4), None, [1])
    with pytest.raises(UserError, match="expected \\(M, S\\) twice"):
        best_of_n(torch.zeros(2, 4), torch.zeros(2, 3), [1])


def test_a_reward_that_is_nan_is_named():
    gold_MS = torch.zeros(2, 4)
    gold_MS[1, 2] = math.nan
    with pytest.raises(UserError, match="gold reward of sample 2 of prompt 1 is NaN"):
        best_of_n(torch.zeros(2, 4), gold_MS, [1])


def test_a_reward_is_a_mean_over_the_prompts_that_it_applies_to() -> None:
    """Of four completions it paid 3 in all to two: 1.5 each, and not 0.75."""
    rewards = TextRewards.of([("exact", lambda completions: [])], None)
    sums = {"completions": 4.0, "tokens": 8.0, "reward": 3.0, "ended": 4.0}
    sums |= {"rewards/exact": 3.0, "paid/exact": 2.0}
    assert completion_means(sums, rewards)["rewards/exact"] == 1.5
    sums |= {"rewards/exact": 0.0, "paid/exact": 0.0}
    assert completion_means(sums, rewards)["rewards/exact"] == 0.0

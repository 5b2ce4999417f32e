"""Advantages of completions against the presets' formulas, and what enters them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from token_tools import (
    LENGTHS,
    PROMPTS,
    batch_of,
    grpo,
    in_two_processes,
    language,
    large_tokens,
    moved_from_start,
)
from torch import Tensor

from visgrpo.methods.token_groups import AdaptiveKL, FixedKL
from visgrpo.methods.tokens import TokenTerms
from visgrpo.objectives.presets import PRESETS

BETA = 0.3


def advantages_by_hand(name: str, rewards: np.ndarray) -> np.ndarray:
    others = rewards.shape[1] - 1
    mean = rewards.mean(axis=1, keepdims=True)
    if name in ("grpo", "dapo", "gspo", "cispo", "sapo"):
        return (rewards - mean) / (rewards.std(axis=1, ddof=1, keepdims=True) + 1e-4)
    if name == "dr_grpo":
        return rewards - mean
    if name == "rloo":
        return rewards - (rewards.sum(axis=1, keepdims=True) - rewards) / others
    return rewards - rewards.mean()


@pytest.mark.parametrize("name", PRESETS)
def test_advantages_of_every_preset(name: str) -> None:
    model = language()
    groups = grpo(name).rollout(model, batch_of(), 0, chunk=2)
    rewards = groups.rewards_NGR[..., 0].double().numpy()
    assert len(np.unique(rewards)) > 3
    np.testing.assert_allclose(
        groups.advantages.numpy(), advantages_by_hand(name, rewards), atol=1e-5
    )


@pytest.mark.parametrize("name", ["grpo", "rloo", "reinforce"])
def test_kl_in_the_reward_is_taken_before_the_baseline(name: str) -> None:
    reference, model = moved_from_start()
    method = grpo(
        name, reference=reference, control=FixedKL(BETA), terms=TokenTerms(kl_in="reward")
    )
    groups = method.rollout(model, batch_of(), 0, chunk=4)
    rewards = groups.rewards_NGR[..., 0].double().numpy().copy()
    for n, g, t in np.ndindex(*groups.mask_NGT.shape):
        if groups.mask_NGT[n, g, t]:
            old, start = groups.old_log_probs_NGT, groups.reference_log_probs_NGT
            rewards[n, g] -= BETA * float(old[n, g, t] - start[n, g, t])
    np.testing.assert_allclose(
        groups.advantages.numpy(), advantages_by_hand(name, rewards), atol=1e-5
    )


def test_several_rewards_are_weighed() -> None:
    def length(*, completion_ids: list[list[int]], **given: Any) -> list[float]:
        return [float(len(ids)) for ids in completion_ids]

    model = language()
    for combination in ("sum_then_normalize", "normalize_then_sum"):
        method = grpo(
            rewards=(large_tokens, length),
            weights=(2.0, -0.5),
            combination=combination,
        )
        groups = method.rollout(model, batch_of(), 0, chunk=4)
        first, second = groups.rewards_NGR.double().numpy().transpose(2, 0, 1)
        if combination == "sum_then_normalize":
            expected = advantages_by_hand("grpo", 2 * first - 0.5 * second)
        else:
            expected = 2 * advantages_by_hand("grpo", first) - 0.5 * advantages_by_hand(
                "grpo", second
            )
        np.testing.assert_allclose(groups.advantages.numpy(), expected, atol=1e-5)


def test_rejection_sampling_imitates_the_best_of_each_group() -> None:
    """The first of equals; nothing where all are equal. Its loss is the best's cross-entropy."""
    rewards = iter([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0], [-1.0, -2.0, -3.0], [0.0, 0.0, 1.0]])

    def given(**columns: Any) -> list[float]:
        return [value for group in rewards for value in group]

    model = language()
    method = grpo("dapo", rewards=(given,), group_size=3, best_only=True)
    method = replace(method, terms=TokenTerms())
    groups = method.rollout(model, batch_of(), 0, chunk=4)
    expected = [[0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 1]]
    assert groups.advantages.tolist() == expected
    result = method.loss(model, batch_of(), groups, 0)
    result.loss.backward()
    ours = model.lm.transformer.wte.weight.grad.clone()
    model.zero_grad()
    scores = model(PROMPTS, LENGTHS, groups.tokens_NGT, method.rollouts.sampling.distribution)
    best = torch.tensor(expected).bool()[..., None] & groups.mask_NGT
    (-scores.log_probs.masked_fill(~best, 0.0).sum() / best.sum()).backward()
    torch.testing.assert_close(ours, model.lm.transformer.wte.weight.grad, atol=1e-6, rtol=1e-5)


def test_batch_statistics_are_those_of_two_processes() -> None:
    model = language()
    whole = grpo("reinforce").rollout(model, batch_of(), 0, chunk=4)

    models = [language(), language()]

    def work(shard: Any) -> Tensor:
        mine, its_model = [2 * shard.rank, 2 * shard.rank + 1], models[shard.rank]
        method = grpo("reinforce", shards=shard)
        batch = batch_of(mine, torch.tensor(mine))
        return method.rollout(its_model, batch, 0, chunk=2).advantages

    torch.testing.assert_close(torch.cat(in_two_processes(work)), whole.advantages)


def test_adaptive_kl_weighs_the_next_rollout() -> None:
    """β follows what was measured; the reward of a rollout has the weight from before it."""
    reference, model = moved_from_start()
    control = AdaptiveKL(0.5, target=1e-3, horizon=100.0)
    method = grpo("rloo", reference=reference, control=control, terms=TokenTerms(kl_in="reward"))
    batch = batch_of()
    groups = method.rollout(model, batch, 0, chunk=4)
    assert control.coefficient == pytest.approx(0.5 * (1 + 0.2 * 16 / 100))
    kl = (groups.old_log_probs_NGT - groups.reference_log_probs_NGT).masked_fill(
        ~groups.mask_NGT, 0.0
    )
    rewards = (groups.rewards_NGR[..., 0] - 0.5 * kl.sum(-1)).double().numpy()
    np.testing.assert_allclose(
        groups.advantages.numpy(), advantages_by_hand("rloo", rewards), atol=1e-5
    )


def test_samples_are_plain_data() -> None:
    model = language()
    method = grpo()
    groups = method.rollout(model, batch_of(), 0, chunk=4)
    samples = method.samples(groups, 2)
    assert len(samples) == 2
    for n, sample in enumerate(samples):
        assert sample["prompt"] == groups.texts[n][0]
        assert sample["outputs"] == list(groups.texts[n][1])
        assert sample["rewards"] == groups.rewards_NGR[n, :, 0].tolist()
        assert sample["advantages"] == groups.advantages[n].tolist()
        assert sample["ended"] == groups.ended_NG[n].tolist()
        assert "gold" not in sample
    judged = replace(groups, gold_NG=torch.ones(4, 4), advantages=groups.mask_NGT.double())
    sample = method.samples(judged, 1)[0]
    assert sample["gold"] == [1.0] * 4
    assert sample["advantages"] == [1.0] * 4

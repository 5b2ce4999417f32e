"""The loss over tokens against a loop in float64, and against itself in pieces and processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from token_tools import (
    ENDED,
    LENGTHS,
    MASK,
    PROMPTS,
    STOP,
    batch_of,
    given_groups,
    given_scores,
    in_two_processes,
    language,
    large_tokens,
    random,
    rollouts,
    sampling,
)
from torch import Tensor

from visgrpo.models.token_reference import reference_of
from visgrpo.objectives import preset
from visgrpo.objectives.presets import PRESETS, Objective
from visgrpo.policies.token_groups import TokenGroups
from visgrpo.policies.tokens import TokenGRPO, TokenTerms
from visgrpo.training.kl_controller import AdaptiveKL, FixedKL

LIMIT, BETA = 6, 0.3
OFF_POLICY = TokenTerms(on_policy=False)


def kl_by_hand(estimator: str, log_prob: float, reference: float, old: float | None) -> float:
    d = reference - log_prob
    value = {"k1": -d, "k2": d * d / 2, "k3": math.exp(d) - d - 1}[estimator]
    return value if old is None else value * math.exp(log_prob - old)


def loss_by_hand(
    log_probs: np.ndarray,
    entropies: np.ndarray,
    groups: TokenGroups,
    objective: Objective,
    terms: TokenTerms,
    *,
    at: np.ndarray,
    beta: float = 0.0,
) -> float:
    """The formulas, one token at a time; ``at`` is the point where detached weights are taken."""
    old = at if terms.on_policy else groups.old_log_probs_NGT.numpy()
    reference = groups.reference_log_probs_NGT.numpy()
    advantages = groups.advantages.numpy()
    n_inputs, group_size, length = log_probs.shape
    all_tokens = MASK.sum().item()
    total = 0.0
    for n, g in np.ndindex(n_inputs, group_size):
        kept = [t for t in range(length) if MASK[n, g, t]]
        if terms.mask_truncated and not ENDED[n, g]:
            continue
        divisor = {
            "sequence_mean": n_inputs * group_size * len(kept),
            "token_mean": all_tokens,
            "constant": n_inputs * group_size * LIMIT,
        }[objective.aggregation]
        for t in kept:

            def ratio(point: np.ndarray, n: int = n, g: int = g, t: int = t) -> float:
                whole = [s for s in range(length) if MASK[n, g, s]]
                places = [t] if objective.ratio_level == "token" else whole
                return math.exp(np.mean([point[n, g, s] - old[n, g, s] for s in places]))

            a, low, high = advantages[n, g], 1 - objective.epsilon_low, 1 + objective.epsilon_high
            rho = ratio(log_probs)
            if objective.clip == "two_sided":
                value = -min(rho * a, min(max(rho, low), high) * a)
            elif objective.clip == "detached":
                value = -min(max(ratio(at), low), high) * a * log_probs[n, g, t]
            else:
                value = -rho * a
            if terms.kl_in == "loss":
                value += beta * kl_by_hand(
                    terms.kl_estimator, log_probs[n, g, t], reference[n, g, t], old[n, g, t]
                )
            value -= terms.entropy_weight * entropies[n, g, t]
            total += value / divisor
    return total


def numeric_gradient(value: Callable[[np.ndarray], float], at: np.ndarray) -> np.ndarray:
    gradient = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        if MASK[index]:
            step = np.zeros_like(at)
            step[index] = 1e-6
            gradient[index] = (value(at + step) - value(at - step)) / 2e-6
    return gradient


def assert_loss_by_hand(objective: Objective, terms: TokenTerms, beta: float = 0.0) -> None:
    groups, scores = given_groups(), given_scores()
    method = TokenGRPO(rollouts(drawn=sampling(LIMIT), control=FixedKL(beta)), objective, terms)
    loss = method.loss(scores, batch_of([0, 1]), groups, 0).loss
    loss.backward()
    log_probs = scores.log_probs.detach().numpy()
    entropies = scores.entropy.detach().numpy()

    def by_hand(point: np.ndarray) -> float:
        return loss_by_hand(point, entropies, groups, objective, terms, at=log_probs, beta=beta)

    assert loss.item() == pytest.approx(by_hand(log_probs), rel=1e-10)
    np.testing.assert_allclose(
        scores.log_probs.grad.numpy(), numeric_gradient(by_hand, log_probs), atol=1e-8
    )


@pytest.mark.parametrize("terms", [OFF_POLICY, replace(OFF_POLICY, mask_truncated=True)])
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_the_loop(name: str, terms: TokenTerms) -> None:
    """Off policy, where clips act, with NaN and infinities at masked places."""
    assert_loss_by_hand(preset(name), terms)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_on_policy(name: str) -> None:
    """What generation rounds is ignored: the ratio is 1 and the old policy is the present one."""
    assert_loss_by_hand(preset(name), TokenTerms(on_policy=True), BETA)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("truncated", [False, True])
def test_kl_in_the_loss_is_weighted_by_the_ratio(
    name: str, estimator: str, truncated: bool
) -> None:
    terms = replace(OFF_POLICY, kl_estimator=estimator, mask_truncated=truncated)
    assert_loss_by_hand(preset(name), terms, BETA)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo"])
def test_entropy_is_aggregated_as_the_surrogate(name: str) -> None:
    terms = replace(OFF_POLICY, entropy_weight=0.2, mask_truncated=True)
    assert_loss_by_hand(preset(name), terms, BETA)
    scores = given_scores()
    TokenGRPO(rollouts(drawn=sampling(LIMIT)), preset("dr_grpo"), terms).loss(
        scores, batch_of([0, 1]), given_groups(), 0
    ).loss.backward()
    learned = MASK & ENDED[..., None]
    expected = torch.where(learned, -0.2 / (6 * LIMIT), 0.0).double()
    torch.testing.assert_close(scores.entropy.grad, expected)


def test_kl_in_the_reward_is_no_term_of_the_loss() -> None:
    terms = replace(OFF_POLICY, kl_in="reward")
    assert_loss_by_hand(preset("grpo"), terms, BETA)


def test_metrics_against_the_loop() -> None:
    groups, scores, objective = given_groups(), given_scores(), preset("grpo")
    method = TokenGRPO(rollouts(drawn=sampling(LIMIT)), objective, OFF_POLICY)
    metrics = method.loss(scores, batch_of([0, 1]), groups, 0).metrics
    assert not any(value.requires_grad for value in metrics.values())
    new, old = scores.log_probs.detach().numpy(), groups.old_log_probs_NGT.numpy()
    reference, entropies = groups.reference_log_probs_NGT.numpy(), scores.entropy.detach().numpy()
    places = [index for index in np.ndindex(MASK.shape) if MASK[index]]
    a = groups.advantages.numpy()
    ratios = {index: math.exp(new[index] - old[index]) for index in places}
    rewards = groups.rewards_NGR[..., 0].numpy()
    expected = {
        "ratio_mean": np.mean(list(ratios.values())),
        "clip_ratio/low_mean": np.mean([ratios[i] < 0.8 and a[i[:2]] < 0 for i in places]),
        "clip_ratio/high_mean": np.mean([ratios[i] > 1.2 and a[i[:2]] > 0 for i in places]),
        "entropy": np.mean([entropies[i] for i in places]),
        "kl": np.mean([kl_by_hand("k3", new[i], reference[i], None) for i in places]),
        "kl_k1": np.mean([new[i] - reference[i] for i in places]),
        "completions/mean_length": len(places) / 6,
        "completions/clipped_ratio": 2 / 6,
        "reward": rewards.mean(),
        "reward_std": rewards.std(axis=1, ddof=1).mean(),
        "rewards/large_tokens/mean": rewards.mean(),
        "frac_reward_zero_std": 0.0,
        "advantage_abs": np.abs(a).mean(),
    }
    for name, value in expected.items():
        assert metrics[name].item() == pytest.approx(value, rel=1e-6), name
    assert metrics["clip_ratio/low_mean"] > 0
    assert metrics["clip_ratio/high_mean"] > 0
    both = metrics["clip_ratio/low_mean"] + metrics["clip_ratio/high_mean"]
    assert metrics["clip_ratio/region_mean"] == both
    assert set(metrics) == {*expected, "clip_ratio/region_mean"}


def test_rewards_that_do_not_apply_count_for_nothing() -> None:
    def other(**given: Any) -> list[float]:
        return [0.0]

    rewards = torch.tensor([[[1.0, 2.0], [3.0, 5.0]], [[4.0, torch.nan], [4.0, torch.nan]]])
    groups = replace(
        given_groups(), rewards_NGR=rewards, gold_NG=torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    )
    groups = replace(groups, **{
        name: getattr(groups, name)[:, :2]
        for name in ("mask_NGT", "ended_NG", "old_log_probs_NGT", "tokens_NGT", "advantages")
    }, reference_log_probs_NGT=None)  # fmt: skip
    parts = {"log_probs_NGT": random(2, 2, 5), "entropy_NGT": random(2, 2, 5)}
    source = rollouts(rewards=(large_tokens, other), weights=(1.0, 0.5))
    metrics = TokenGRPO(source, preset("grpo"), OFF_POLICY).loss(
        given_scores(**parts), batch_of([0, 1]), groups, 0
    ).metrics  # fmt: skip
    assert metrics["reward"].item() == pytest.approx((2.0 + 5.5 + 4.0 + 4.0) / 4)
    assert metrics["rewards/large_tokens/mean"].item() == 3.0
    assert metrics["rewards/other/mean"].item() == 3.5
    assert metrics["frac_reward_zero_std"].item() == 0.5
    assert metrics["gold_reward"].item() == 3.0
    assert "kl" not in metrics


# Advantages


def method_on(model: Any, name: str = "grpo", **settings: Any) -> TokenGRPO:
    """A method whose groups hold completions that end, and some that are cut off."""
    terms = settings.pop("terms", OFF_POLICY)
    best_only = settings.pop("best_only", False)
    combination = settings.pop("combination", "sum_then_normalize")
    source = rollouts(drawn=sampling(LIMIT, stop=(STOP, 6)), **settings)
    return TokenGRPO(source, preset(name), terms, combination, best_only)


def moved_from_start(kind: str = "gpt2") -> tuple[Any, Any]:
    model = language(kind)
    reference = reference_of(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    return reference, model


def advantages_by_hand(name: str, rewards: np.ndarray) -> np.ndarray:
    others = rewards.shape[1] - 1
    mean = rewards.mean(axis=1, keepdims=True)
    if name in ("grpo", "dapo", "gspo", "cispo"):
        return (rewards - mean) / (rewards.std(axis=1, ddof=1, keepdims=True) + 1e-4)
    if name == "dr_grpo":
        return rewards - mean
    if name == "rloo":
        return rewards - (rewards.sum(axis=1, keepdims=True) - rewards) / others
    return rewards - rewards.mean()


@pytest.mark.parametrize("name", PRESETS)
def test_advantages_of_every_preset(name: str) -> None:
    model = language()
    groups = method_on(model, name).rollout(model, batch_of(), 0, chunk=2)
    rewards = groups.rewards_NGR[..., 0].double().numpy()
    assert len(np.unique(rewards)) > 3
    np.testing.assert_allclose(
        groups.advantages.numpy(), advantages_by_hand(name, rewards), atol=1e-5
    )


@pytest.mark.parametrize("name", ["grpo", "rloo", "reinforce"])
def test_kl_in_the_reward_is_taken_before_the_baseline(name: str) -> None:
    reference, model = moved_from_start()
    method = method_on(
        model, name, reference=reference, control=FixedKL(BETA), terms=TokenTerms(kl_in="reward")
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
        method = method_on(
            model,
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
    method = method_on(model, "dapo", rewards=(given,), group_size=3, best_only=True)
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
    (-scores.log_probs.masked_fill(~best, 0.0).sum() / groups.mask_NGT.sum()).backward()
    torch.testing.assert_close(ours, model.lm.transformer.wte.weight.grad, atol=1e-6, rtol=1e-5)


def test_batch_statistics_are_those_of_two_processes() -> None:
    model = language()
    whole = method_on(model, "reinforce").rollout(model, batch_of(), 0, chunk=4)

    models = [language(), language()]

    def work(shard: Any) -> Tensor:
        mine, its_model = [2 * shard.rank, 2 * shard.rank + 1], models[shard.rank]
        method = method_on(its_model, "reinforce", shards=shard)
        batch = batch_of(mine, torch.tensor(mine))
        return method.rollout(its_model, batch, 0, chunk=2).advantages

    torch.testing.assert_close(torch.cat(in_two_processes(work)), whole.advantages)


# Pieces


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("name", PRESETS)
def test_a_batch_in_pieces_has_the_loss_and_gradient_of_the_whole(
    name: str, truncated: bool
) -> None:
    """A mean over all tokens too, though pieces have different numbers of tokens."""
    reference, model = moved_from_start()
    terms = TokenTerms(entropy_weight=0.1, mask_truncated=truncated)
    method = method_on(model, name, reference=reference, control=FixedKL(BETA), terms=terms)
    groups = method.rollout(model, batch_of(), 0, chunk=4)
    whole = method.loss(model, batch_of(), groups, 0)
    whole.loss.backward()
    expected = gradients(model)
    for size in (1, 2):
        model.zero_grad()
        pieces = torch.arange(4).split(size)
        total = 0.0
        for rows in pieces:
            piece = groups.select(rows)
            result = method.loss(model, batch_of().select(rows), piece, 0)
            (result.loss / len(pieces)).backward()
            total += result.loss.item() / len(pieces)
        assert total == pytest.approx(whole.loss.item(), abs=1e-6)
        for parameter, value in gradients(model).items():
            torch.testing.assert_close(value, expected[parameter], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["grpo", "dapo"])
def test_two_processes_have_the_loss_and_gradient_of_one(name: str) -> None:
    """Each draws its half; gradients are averaged, as data parallelism does."""

    copies = [moved_from_start() for _ in range(3)]

    def work(shard: Any, rows: list[int]) -> tuple[float, dict[str, Tensor]]:
        reference, model = copies[2 if shard is None else shard.rank]
        method = method_on(
            model, name, reference=reference, control=FixedKL(BETA), terms=TokenTerms(),
            **({} if shard is None else {"shards": shard}),
        )  # fmt: skip
        batch = batch_of(rows, torch.tensor(rows))
        groups = method.rollout(model, batch, 0, chunk=1)
        result = method.loss(model, batch, groups, 0)
        result.loss.backward()
        return result.loss.item(), gradients(model)

    loss, expected = work(None, [0, 1, 2, 3])
    halves = in_two_processes(lambda shard: work(shard, [shard.rank, shard.rank + 2]))
    assert np.mean([half for half, _ in halves]) == pytest.approx(loss, abs=1e-6)
    for parameter, value in expected.items():
        mean = (halves[0][1][parameter] + halves[1][1][parameter]) / 2
        torch.testing.assert_close(mean, value, atol=1e-6, rtol=1e-5)


def test_forbidden_padding_after_an_end_leaves_gradients_finite() -> None:
    """The padding id can never be drawn: its log-prob after an end is -inf, and nobody minds."""
    reference, model = moved_from_start("qwen2")
    terms = TokenTerms(entropy_weight=0.1, on_policy=False)
    method = method_on(model, reference=reference, control=FixedKL(BETA), terms=terms)
    groups = method.rollout(model, batch_of(), 0, chunk=4)
    assert not groups.mask_NGT.all()
    after = groups.reference_log_probs_NGT[~groups.mask_NGT]
    assert (after == -math.inf).any()
    result = method.loss(model, batch_of(), groups, 0)
    result.loss.backward()
    assert result.loss.isfinite()
    assert all(value.isfinite() for value in result.metrics.values())
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert method.rollouts.memory.control.coefficient == BETA


def test_the_first_pass_has_ratio_one_whatever_generation_rounds() -> None:
    groups, scores = given_groups(), given_scores()
    for on_policy, expected in ((True, 1.0), (False, None)):
        method = TokenGRPO(rollouts(), preset("grpo"), TokenTerms(on_policy=on_policy))
        metrics = method.loss(scores, batch_of([0, 1]), groups, 0).metrics
        assert (metrics["ratio_mean"].item() == 1.0) == (expected == 1.0)


def test_an_older_policys_completions_are_weighted_by_their_ratio() -> None:
    """Drawn by one set of weights, learned from with another: ratios are those of full forwards."""
    drawer, model = language(seed=0), language(seed=0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.05)
    method = method_on(model, "rloo")
    groups = method.rollout(drawer, batch_of(), 0, chunk=4)
    metrics = method.loss(model, batch_of(), groups, 0).metrics
    how = method.rollouts.sampling.distribution
    new, old = (m.score(PROMPTS, LENGTHS, groups.tokens_NGT, how) for m in (model, drawer))
    expected = (new - old).exp()[groups.mask_NGT].mean()
    assert metrics["ratio_mean"].item() == pytest.approx(expected.item(), abs=1e-5)
    assert abs(expected.item() - 1) > 1e-3


def test_adaptive_kl_weighs_the_next_rollout() -> None:
    """β follows what was measured; the reward of a rollout has the weight from before it."""
    reference, model = moved_from_start()
    control = AdaptiveKL(0.5, target=1e-3, horizon=100.0)
    method = method_on(
        model, "rloo", reference=reference, control=control, terms=TokenTerms(kl_in="reward")
    )
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
    method = method_on(model)
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
